"""Losses are read where they are new, and never before the device is done with them."""

import pytest
import torch
from torch.optim import SGD

from lightning_bsscale import BatchSizeScaler, GradientNoiseScaleMonitor
from lightning_bsscale.callbacks.trainer import losses as losses_module
from tests.helpers.expected_warnings import CANNOT_MEASURE, CKPT_PATH, MID_EPOCH, WITHOUT_VALIDATION
from tests.helpers.training import KeepSteps, Regression, fit, regression_loader, scripted

pytestmark = [CANNOT_MEASURE, CKPT_PATH, MID_EPOCH, WITHOUT_VALIDATION]


class Logs(Regression):
    """Logs losses in every way that users do: at steps, at epochs, at both, and in validation."""

    def __init__(self):
        super().__init__(lambda p: SGD(p, lr=0.01))
        self.steps, self.sums, self.validations, self.count = [], [], [], 0

    def on_train_epoch_start(self):
        self.sums.append([])

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("step_loss", loss)
        self.log("epoch_Loss", loss, on_step=False, on_epoch=True)
        self.log("both_loss", loss, on_step=True, on_epoch=True)
        self.log("accuracy", loss)
        self.steps.append(loss.item())
        self.sums[-1].append(loss.item())
        return loss

    def validation_step(self, batch, batch_idx):
        self.count += 1
        self.log("val_loss", float(self.count))

    def on_validation_epoch_end(self):
        self.validations.append(self.count)


def values(callback, name):
    return [point.value for point in callback.losses[name]]


def places(callback, name):
    return [(point.examples_seen, point.optimizer_steps) for point in callback.losses[name]]


@pytest.mark.parametrize("has_logger", [True, False])
def test_what_the_user_logs_is_known_with_where_it_was(has_logger):
    module, monitor = Logs(), GradientNoiseScaleMonitor(split=False)
    settings = dict(max_epochs=2, log_every_n_steps=4, val_check_interval=0.5, accumulate_grad_batches=2)
    settings["logger"] = KeepSteps() if has_logger else False
    fit(module, regression_loader(64), [monitor], val=regression_loader(4), **settings)  # 16 loader batches, 8 steps
    assert set(monitor.losses) == {"step_loss", "both_loss", "val_loss", "epoch_Loss"}  # as many as are kept
    # The last loader batch of every fourth step.
    assert values(monitor, "step_loss") == pytest.approx([module.steps[index] for index in (7, 15, 23, 31)])
    assert values(monitor, "both_loss") == values(monitor, "step_loss")
    assert places(monitor, "step_loss") == [(32, 4), (64, 8), (96, 12), (128, 16)]
    assert values(monitor, "epoch_Loss") == pytest.approx([sum(one) / len(one) for one in module.sums])
    assert places(monitor, "epoch_Loss") == [(64, 8), (128, 16)]
    assert places(monitor, "val_loss") == [(32, 4), (64, 8), (96, 12), (128, 16)]
    assert values(monitor, "val_loss") == [2, 3, 4, 5]  # the first was the sanity check
    seconds = [point.seconds for point in monitor.losses["step_loss"]]
    assert seconds == sorted(seconds)
    assert seconds[-1] > 0


def test_no_step_waits_for_its_own_loss(monkeypatch):
    """Whatever is read from a tensor was logged at an earlier reading."""
    order = []
    settle, logged = losses_module.LossReader.settle, losses_module.LossReader._logged
    monkeypatch.setattr(
        losses_module.LossReader, "settle", lambda self: order.append(("read", len(self._unread))) or settle(self)
    )
    monkeypatch.setattr(
        losses_module.LossReader, "_logged", lambda self, *args: order.append(("noted", None)) or logged(self, *args)
    )
    fit(Logs(), regression_loader(32), [scripted(4)], max_epochs=1, log_every_n_steps=1)
    assert order[0] == ("read", 0)
    assert [kind for kind, _ in order[:6]] == ["read", "noted"] * 3
    assert [many for kind, many in order if kind == "read"][-1] > 0  # the last one, when training has ended


def test_a_resumed_run_has_what_came_before(tmp_path):
    """Also where a checkpoint is only loaded."""
    first = scripted(8, 16)
    settings = dict(log_every_n_steps=2)
    trainer = fit(Logs(), regression_loader(64), [first], max_epochs=1, **settings)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    before = first.losses
    second = scripted()
    fit(Logs(), regression_loader(64), [second], max_epochs=2, ckpt_path=tmp_path / "a.ckpt", **settings)
    assert second.losses["step_loss"][: len(before["step_loss"])] == before["step_loss"]
    assert len(second.losses["step_loss"]) > len(before["step_loss"])
    loaded = BatchSizeScaler()
    loaded.load_state_dict(torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"]["BatchSizeScaler"])
    assert loaded.losses == before


@pytest.mark.parametrize("damage", [None, {"curves": 3}])
def test_a_checkpoint_without_them_is_as_good(tmp_path, damage):
    first = scripted(8)
    trainer = fit(Logs(), regression_loader(32), [first], max_epochs=1)
    state = first.state_dict()
    state = {key: value for key, value in state.items() if key != "losses"} | (
        {} if damage is None else {"losses": damage}
    )
    loaded = BatchSizeScaler()
    loaded.load_state_dict(state)
    assert loaded.losses == {}
    assert loaded.examples_seen == first.examples_seen
    assert trainer.global_step


def test_the_callbacks_own_keys_are_no_losses():
    scaler = scripted(8, log_prefix="my_loss/")
    fit(Logs(), regression_loader(32), [scaler], max_epochs=1, log_every_n_steps=1)
    assert not [name for name in scaler.losses if name.startswith("my_loss/")]


def test_an_exception_leaves_what_was_read():
    class Breaks(Logs):
        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 5:
                raise RuntimeError("on purpose")

    scaler, module = scripted(4), Breaks()
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(module, regression_loader(64), [scaler], max_epochs=1, log_every_n_steps=1)
    assert values(scaler, "step_loss") == pytest.approx(module.steps[:4])  # the fifth may still be on its device
