"""What else follows the batch: in the update it is the rule's, and everywhere else the user's."""

import copy
import weakref

import lightning.pytorch as pl
import pytest
import torch
from torch.optim import SGD, AdamW, lr_scheduler

from lightning_bsscale import BatchSizeScaler, Beta2, GradientNoiseScaleMonitor, WeightDecay
from lightning_bsscale.callbacks.trainer.hyperparameters import MOST_KNOWN, ScopedHyperparameters, unusable_entry
from lightning_bsscale.journal import read_journal
from tests.helpers.expected_warnings import CANNOT_MEASURE, WITHOUT_VALIDATION
from tests.helpers.lightning_cli import callbacks_from
from tests.helpers.training import (
    Broken,
    ByStep,
    Regression,
    Saves,
    assert_same_weights,
    fit,
    keeping_values,
    regression_loader,
    scripted,
    values_of,
)

pytestmark = [CANNOT_MEASURE, WITHOUT_VALIDATION]
# One epoch of 16 loader batches of 4, the last window of 3 of them: batches of 4, 8, 8, 16, 16, 12 (a ragged end).
WINDOWS, BATCHES = [1, 2, 2, 4, 4, 3], [8, 8, 16]


class Looks(Regression):
    """Keeps what the user sees of the first group, wherever the user's code runs in a window."""

    def on_fit_start(self):
        self.seen = []

    def look(self):
        self.seen.append(values_of(self.trainer.optimizers[0].param_groups[0]))

    def on_train_batch_start(self, batch, batch_idx):
        self.look()

    def training_step(self, batch, batch_idx):
        self.look()
        return super().training_step(batch, batch_idx)

    def on_before_optimizer_step(self, optimizer):
        self.look()

    def on_train_batch_end(self, *_):
        self.look()


def two_groups(parameters):
    weight, bias = parameters
    groups = [{"params": [weight], "weight_decay": 0.1}, {"params": [bias], "weight_decay": 0, "betas": (0.8, 0.94)}]
    return keeping_values(AdamW)(groups, lr=0.01, betas=(0.9, 0.99))


def train(optimizer, *callbacks, module=None, examples=64, **settings):
    module = module or Looks(optimizer)
    return fit(module, regression_loader(examples), callbacks, **{"max_epochs": 1, **settings}), module


def test_each_group_updates_with_its_own_values_and_has_them_back():
    trainer, module = train(two_groups, scripted(*BATCHES, also_scale=["weight_decay", Beta2(floor=0.97)]))
    first, second = trainer.optimizers[0].param_groups
    assert trainer.optimizers[0].used == [
        [
            {"weight_decay": pytest.approx(0.1 * ratio**0.25), "betas": (0.9, pytest.approx(max(0.97, 0.99**ratio)))},
            {"weight_decay": 0, "betas": (0.8, 0.94)},
        ]
        for ratio in WINDOWS
    ]
    assert len(module.seen) == 16 * 3 + len(WINDOWS)
    assert all(seen == {"weight_decay": 0.1, "betas": (0.9, 0.99)} for seen in module.seen)
    assert values_of(first) == {"weight_decay": 0.1, "betas": (0.9, 0.99)}
    assert values_of(second) == {"weight_decay": 0, "betas": (0.8, 0.94)}


# ---------------------------------------------------------------- kinds of optimizers, and values in tensors

ADAMS = {
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "tensors": {"lr": torch.tensor(0.01), "betas": (torch.tensor(0.9), torch.tensor(0.99))},
}


@pytest.mark.parametrize("name", ADAMS)
def test_every_kind_of_adam_updates_with_the_same_values(name):
    def run(**options):
        options = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.5, **options}
        scaler = scripted(*BATCHES, also_scale=["weight_decay", Beta2(floor=0.97)])
        trainer, module = train(lambda p: keeping_values(AdamW)(p, **options), scaler)
        return trainer.optimizers[0], module

    (found, module), (plain, expected) = run(**copy.deepcopy(ADAMS[name])), run()
    for (one,), (other,) in zip(found.used, plain.used, strict=True):
        assert one == {key: pytest.approx(value) for key, value in other.items()}
    for mine, theirs in zip(module.parameters(), expected.parameters(), strict=True):
        assert mine.detach().flatten().tolist() == pytest.approx(theirs.detach().flatten().tolist(), rel=1e-4)
    assert all(seen == {"weight_decay": 0.5, "betas": pytest.approx((0.9, 0.99))} for seen in module.seen)


def test_a_tensor_keeps_its_identity_and_has_its_value_back_to_the_last_digit():
    decay, betas = torch.tensor(0.1), (torch.tensor(0.9), torch.tensor(0.99))
    groups = [{"weight_decay": decay, "betas": betas}, {"weight_decay": 0.3, "betas": betas}]  # as torch shares them
    scoped = ScopedHyperparameters([WeightDecay(0.5), Beta2(floor=0)])
    scoped.ratio = 4.0
    for _ in range(3):
        scoped.apply(groups)
        scoped.apply(groups)
        assert (decay.item(), groups[1]["weight_decay"]) == (pytest.approx(0.2), 0.6)
        assert [beta.item() for beta in betas] == pytest.approx([0.9, 0.99**4])
        scoped.restore()
    assert all(group["betas"] is betas for group in groups)
    assert groups[0]["weight_decay"] is decay
    assert (decay, *betas) == (torch.tensor(0.1), torch.tensor(0.9), torch.tensor(0.99))


def test_a_tensor_is_read_from_its_device_only_when_the_user_has_changed_it(monkeypatch):
    reads = []
    item = torch.Tensor.item
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: reads.append(item(tensor)) or reads[-1])
    decay = torch.tensor(0.5)
    groups, scoped = [{"weight_decay": decay}], ScopedHyperparameters([WeightDecay(0.5)])
    for ratio, users in [(4.0, 0.5), (16.0, 0.5), (1.0, 0.5), (4.0, 0.25), (4.0, 0.25)]:
        if users == 0.25 and not reads[1:]:
            decay.fill_(users)
        scoped.ratio = ratio
        scoped.apply(groups)
        assert decay == users * ratio**0.5
        scoped.restore()
        assert decay == users
    assert reads == [0.5, 0.25]


def test_a_new_tensor_in_every_step_is_not_kept():
    group, kept = {}, weakref.WeakSet()
    scoped = ScopedHyperparameters([WeightDecay(0.5)])
    scoped.ratio = 4.0
    for _ in range(2 * MOST_KNOWN):
        group["weight_decay"] = decay = torch.tensor(0.5)
        kept.add(decay)
        scoped.apply([group])
        assert decay == 1.0
        scoped.restore()
        assert decay == 0.5
    assert len(kept) <= MOST_KNOWN


def test_what_the_optimizer_changes_of_a_tensor_is_the_users():
    decay = torch.tensor(0.5)
    scoped = ScopedHyperparameters([WeightDecay(0.5)])
    scoped.ratio = 4.0
    scoped.apply([{"weight_decay": decay}])
    decay.mul_(0.5)
    scoped.restore()
    assert decay == 0.25


@pytest.mark.parametrize(
    ("betas", "is_usable"),
    [
        ((torch.tensor(0.9), torch.tensor([0.99])), True),
        ((0.9, torch.tensor(0.99)), False),
        ((torch.tensor(0.9), torch.tensor([0.99, 0.9])), False),
        ((torch.tensor(0), torch.tensor(1)), False),
    ],
)
def test_which_tensors_are_numbers(betas, is_usable):
    assert (unusable_entry([{"betas": betas}], Beta2()) is None) == is_usable


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_gradient_moves_the_weights_as_far_whatever_the_momentum(nesterov):
    class Slope(pl.LightningModule):
        """A constant gradient of one."""

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
            self.path = [0.0]

        def training_step(self, batch, batch_idx):
            return self.weight

        def on_train_batch_end(self, *_):
            self.path.append(self.weight.item())

        def configure_optimizers(self):
            return keeping_values(SGD)(self.parameters(), lr=1.0, momentum=0.5, nesterov=nesterov)

    module = Slope()
    scaler = scripted(*60 * [4], 8, lr_rule="none", also_scale="momentum")
    trainer, _ = train(None, scaler, module=module, examples=364)
    used = trainer.optimizers[0].used
    assert [one["momentum"] for (one,) in used] == [0.5] * 61 + [0.25] * (len(used) - 61)
    steps = [-(b - a) for a, b in zip(module.path, module.path[1:], strict=False) if b != a]
    assert len(steps) == len(used)
    steady = [*steps[50:61], *steps[-5:]] if nesterov else steps[50:]  # Nesterov's buffer has to fill up
    assert steady == pytest.approx([2.0] * len(steady), rel=1e-3)


def test_a_schedule_of_ones_own_stays_in_charge():
    class Decays(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            trainer.optimizers[0].param_groups[0]["weight_decay"] = 0.1 * 0.9**batch_idx

    trainer, module = train(two_groups, Decays(), scripted(*BATCHES, also_scale="weight_decay"))
    ends = [sum(WINDOWS[: n + 1]) - 1 for n in range(len(WINDOWS))]
    found = [first["weight_decay"] for first, _ in trainer.optimizers[0].used]
    assert found == pytest.approx([0.1 * 0.9**end * ratio**0.25 for end, ratio in zip(ends, WINDOWS, strict=True)])
    assert [seen["weight_decay"] for seen in module.seen[::4]][-1] <= 0.1
    assert trainer.optimizers[0].param_groups[0]["weight_decay"] == 0.1 * 0.9**15


def test_a_scheduler_that_cycles_the_momentum_stays_in_charge():
    def one_cycle(optimizer, trainer):
        cycle = lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=17, base_momentum=0.6, max_momentum=0.9)
        return {"scheduler": cycle, "interval": "step"}

    def optimizer(parameters):
        return keeping_values(SGD)(parameters, lr=0.01, momentum=0.9)

    module = Looks(optimizer, one_cycle)
    trainer, _ = train(None, scripted(*BATCHES, also_scale="momentum"), module=module)
    planned, _ = train(None, module=Looks(optimizer, one_cycle))
    starts = [sum(WINDOWS[:n]) for n in range(len(WINDOWS))]
    users = [planned.optimizers[0].used[start][0]["momentum"] for start in starts]
    assert len(set(users)) == len(users)
    used = [one["momentum"] for (one,) in trainer.optimizers[0].used]
    assert used == pytest.approx([momentum**ratio for momentum, ratio in zip(users, WINDOWS, strict=True)])


@pytest.mark.parametrize("changes", [lambda decay: decay * 0.9, lambda decay: decay])
def test_what_the_optimizer_changes_in_its_step_is_the_users(changes):
    class Decays(keeping_values(AdamW)):
        def step(self, closure=None):
            loss = super().step(closure)
            self.param_groups[0]["weight_decay"] = changes(self.param_groups[0]["weight_decay"])
            self.param_groups[0]["betas"] = tuple(map(changes, self.param_groups[0]["betas"]))
            return loss

    trainer, _ = train(lambda p: Decays(p, weight_decay=0.1), scripted(*BATCHES, also_scale=["weight_decay", "beta2"]))
    group = trainer.optimizers[0].param_groups[0]
    assert group["weight_decay"] == pytest.approx(0.1 * changes(1.0) ** len(WINDOWS))
    assert group["betas"] == pytest.approx(tuple(beta * changes(1.0) ** len(WINDOWS) for beta in (0.9, 0.999)))


@pytest.mark.parametrize(
    "callback",
    [GradientNoiseScaleMonitor(), BatchSizeScaler(dry_run=True, warmup=0, also_scale=["weight_decay", "beta2"])],
    ids=["monitor", "dry run"],
)
def test_what_only_measures_touches_nothing(callback):
    def run(*callbacks):
        torch.manual_seed(0)
        trainer, module = train(two_groups, *callbacks, accumulate_grad_batches=2)
        return trainer.optimizers[0].used, module

    (used, module), (plain, bare) = run(callback), run()
    assert used == plain
    assert_same_weights(module, bare)


def test_a_resumed_run_goes_on_with_the_same_values(tmp_path):
    def run(*callbacks, **settings):
        scaler = scripted(policy=ByStep([4, 8, 16, 16, 16, 8, 12]), also_scale=["weight_decay", "beta2"])
        trainer, module = train(two_groups, scaler, *callbacks, max_epochs=2, **settings)
        return trainer.optimizers[0].used, module

    unbroken, whole = run(Saves(tmp_path / "c", None))
    after, resumed = run(ckpt_path=tmp_path / "c")
    assert len({str(one) for one in after}) > 1
    assert after == unbroken[-len(after) :] != unbroken
    assert_same_weights(whole, resumed)


def test_an_error_in_the_step_leaves_nothing_replaced():
    class Fails(AdamW):
        def step(self, closure=None):
            super().step(closure)
            if self.param_groups[0]["weight_decay"] > 0.25:
                raise Broken

    module = Looks(lambda p: Fails(p, lr=0.01, weight_decay=0.2, betas=(0.9, 0.99)))
    with pytest.raises(Broken):
        train(None, scripted(*BATCHES, also_scale=["weight_decay", "beta2"]), module=module)
    assert values_of(module.trainer.optimizers[0].param_groups[0]) == {"weight_decay": 0.2, "betas": (0.9, 0.99)}


def test_values_are_put_on_once_and_taken_off_once():
    group = {"weight_decay": 0.1}
    scoped = ScopedHyperparameters([WeightDecay(0.5)])
    scoped.ratio = 4.0
    scoped.apply([group])
    scoped.apply([group])  # where the update began before it was noticed
    assert group["weight_decay"] == 0.2
    scoped.restore()
    scoped.restore()
    assert group["weight_decay"] == 0.1


def test_an_error_of_a_rule_leaves_nothing_replaced():
    groups = [{"weight_decay": 0.1, "betas": (0.9, 0.99)}, {"weight_decay": 0.1}]
    scoped = ScopedHyperparameters([WeightDecay(0.5), Beta2()])
    scoped.ratio = 4.0
    with pytest.raises(KeyError):
        scoped.apply(groups)
    scoped.restore()
    assert [group["weight_decay"] for group in groups] == [0.1, 0.1]


def test_the_journal_names_the_rules(tmp_path):
    scaler = scripted(*BATCHES, also_scale=["weight_decay", "momentum"], record=tmp_path / "j")
    train(lambda p: SGD(p, lr=0.01, momentum=0.9), scaler)
    assert read_journal(tmp_path / "j")[0]["also_scale"] == [
        {"class": "WeightDecay", "options": {"exponent": 0.25}},
        {"class": "Momentum", "options": {}},
    ]


class Tuned(AdamW):
    """A user's own subclass."""


@pytest.mark.parametrize(("cls", "follows"), [(AdamW, True), (Tuned, True), (torch.optim.NAdam, True), (SGD, False)])
def test_by_default_beta2_follows_the_batch_in_adam_and_its_relatives(cls, follows):
    betas = {"betas": (0.9, 0.999)} if follows else {}
    trainer, module = train(lambda p: keeping_values(cls)(p, lr=0.01, **betas), scripted(*BATCHES))
    used = [values[0].get("betas") for values in trainer.optimizers[0].used]
    assert used == [(0.9, pytest.approx(0.999**ratio)) if follows else None for ratio in WINDOWS]
    assert all(seen.get("betas") == betas.get("betas") for seen in module.seen)
    if follows:
        trainer, _ = train(lambda p: keeping_values(cls)(p, lr=0.01, **betas), scripted(*BATCHES, also_scale=()))
        assert all(values[0]["betas"] == (0.9, 0.999) for values in trainer.optimizers[0].used)


def test_the_default_depends_on_what_the_second_beta_is():
    parameter = torch.nn.Parameter(torch.zeros(1))
    chosen = BatchSizeScaler()._options.also_scale_for
    assert chosen(Tuned([parameter])) == (Beta2(),)
    assert chosen(torch.optim.Adamax([parameter])) == chosen(torch.optim.RMSprop([parameter])) == ()
    adam = AdamW([parameter])
    adam.param_groups[0]["betas"] = "adaptive"
    assert chosen(adam) == ()  # only what the user asks for by name is refused
    assert GradientNoiseScaleMonitor()._options.also_scale_for(AdamW([parameter])) == ()


def test_from_yaml():
    scaler = {
        "class_path": "lightning_bsscale.BatchSizeScaler",
        "init_args": {
            "also_scale": ["weight_decay", {"class_path": "lightning_bsscale.Beta2", "init_args": {"floor": 0.9}}]
        },
    }
    (made,) = callbacks_from([scaler])
    optimizer = AdamW([torch.nn.Parameter(torch.zeros(1))])
    assert made._options.also_scale_for(optimizer) == (WeightDecay(), Beta2(floor=0.9))
