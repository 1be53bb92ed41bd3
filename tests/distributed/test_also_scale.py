"""What else follows the batch, on several ranks: in the update, in checkpoints, and where the user changes it."""

import functools

import lightning.pytorch as pl
import pytest
from torch.optim import AdamW

from lightning_bsscale import Beta2, WeightDecay
from tests.helpers.ddp_runs import trainer_of
from tests.helpers.places import here
from tests.helpers.processes import fit_on
from tests.helpers.sharded_models import local
from tests.helpers.sharded_runs import FromPosition, FsdpToOneFile, Trains, fsdp1, fsdp2, items
from tests.helpers.training import ByStep, Saves, keeping_values, scripted, values_of

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("place")]

KINDS = {
    "alone": lambda: None,
    "ddp": lambda: None,
    "fsdp1": functools.partial(fsdp1, state_dict_type="sharded"),
    "fsdp1, one file": functools.partial(fsdp1, on_cpu=FsdpToOneFile, state_dict_type="full"),
    "fsdp2": fsdp2,
    "fsdp2, one file": functools.partial(fsdp2, save_distributed_checkpoint=False),
}
ON_RANKS = [kind for kind in KINDS if kind != "alone"]
RULES = (WeightDecay(), Beta2(floor=0.95))
OWN = [{"weight_decay": 0.5, "betas": (0.9, 0.99)}, {"weight_decay": 0.1, "betas": (0.8, 0.94)}]
CHANGED, CHANGES_AT = 0.2, 4  # the user's new weight decay of the first group, and the step before which it comes
START = 8
SIZES = [START, 16, 32, 16, 24]  # by step; an epoch of 18 loader batches a rank has windows of 1, 2, 4, 2, 3, 1, 2, 3
SAVED = {"at a window's end": 11, "within a window": 4}


class Decays(Trains):
    """Two parameter groups; keeps the examples of each step, and what the user sees of the groups."""

    def __init__(self):
        super().__init__(lr=0.05, frozen=False)
        self.windows, self.seen, self.examples = [], [], 0

    def on_train_start(self):
        self.trainer.optimizers[0].used = []  # torch makes a step without a learning rate to load FSDP2's checkpoints

    def look(self):
        now = [values_of(group) for group in self.trainer.optimizers[0].param_groups]
        if now not in self.seen:
            self.seen.append(now)

    def training_step(self, batch, batch_idx):
        self.examples += len(batch[0]) * self.trainer.world_size
        self.look()
        return super().training_step(batch, batch_idx)

    def on_before_optimizer_step(self, optimizer):
        self.windows.append(self.examples)
        self.examples = 0
        self.look()

    def on_train_batch_end(self, *_):
        self.look()

    def configure_optimizers(self):
        parts = [[], []]
        for name, parameter in self.named_parameters():
            parts[not name.endswith("weight")].append(parameter)
        groups = [{"params": part, **own} for part, own in zip(parts, OWN, strict=True)]
        return keeping_values(AdamW)(groups, lr=self.lr)


class ChangesDecay(pl.Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == CHANGES_AT:
            trainer.optimizers[0].param_groups[0]["weight_decay"] = CHANGED


def trained(rank, kind, rules, folder=None, ckpt=None):
    """A training of two epochs; without `rules`, without the scaler."""
    ranks = 1 if kind == "alone" else 2
    module, callbacks = Decays(), [ChangesDecay()]
    if rules is not None:
        callbacks.append(scripted(policy=ByStep(SIZES), lr_rule="sqrt", also_scale=rules))
    if folder is not None:
        callbacks += [Saves(folder / name, batch_idx) for name, batch_idx in SAVED.items()]
    settings = dict(max_epochs=2, accumulate_grad_batches=2 // ranks)
    trainer = trainer_of(ranks, callbacks, KINDS[kind](), **settings)
    trainer.fit(module, FromPosition(items(36)[rank::ranks], batch_size=None), ckpt_path=ckpt)
    optimizer = trainer.optimizers[0]
    left = [values_of(group) for group in optimizer.param_groups]
    squares = [float(local(p.detach()).double().square().sum()) for p in module.parameters()]
    return module.windows, optimizer.used, module.seen, left, sum(squares)


def on(kind, *args, **options):
    return fit_on(1 if kind == "alone" else 2, trained, kind, *args, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """By kind and place: what the ranks of a run that nothing stopped return, and the folder of its checkpoints."""

    @functools.cache
    def made(kind, place):
        folder = tmp_path_factory.mktemp("checkpoints")
        return on(kind, RULES, folder), folder

    return lambda kind: made(kind, here())


def own_values(step):
    """What the user's groups hold in a step."""
    first = OWN[0] | {"weight_decay": CHANGED} if step >= CHANGES_AT else OWN[0]
    return [first, OWN[1]]


def expected(windows, first=0):
    """What the rules' formulas say for each step, from the user's values and the examples of the step."""
    found = []
    for step, examples in enumerate(windows, first):
        ratio, own = examples / START, own_values(step)
        decays = [one["weight_decay"] * ratio**0.25 for one in own]
        betas = [(0.9, max(0.95, 0.99**ratio)), (0.8, 0.94)]  # the second group's is below the floor
        found.append(
            [{"weight_decay": pytest.approx(a), "betas": pytest.approx(b)} for a, b in zip(decays, betas, strict=True)]
        )
    return found


@pytest.mark.parametrize("kind", ["ddp", "fsdp1", "fsdp2"])
def test_every_rank_updates_with_the_scaled_values(whole, kind):
    ranks, _ = whole(kind)
    for windows, used, seen, left, _ in ranks:
        assert [examples // START for examples in windows] == [1, 2, 4, 2, 3, 1, 2, 3, 2, 3, 1, 2, 4, 2, 3, 1]
        assert used == expected(windows)
        assert seen == [own_values(0), own_values(CHANGES_AT)]
        assert left == own_values(CHANGES_AT)


def square_of(kind, ranks):
    """The squared norm of all weights, of which a rank has a shard or, under DDP, all."""
    squares = [square for *_, square in ranks]
    return sum(squares) if kind.startswith("fsdp") else squares[0]


@pytest.mark.parametrize("kind", ["ddp", "fsdp1", "fsdp2"])
def test_the_weights_are_those_of_one_process_with_the_same_windows(whole, kind):
    alone, bare = (square_of("alone", on("alone", rules)) for rules in (RULES, ()))
    assert square_of(kind, whole(kind)[0]) == pytest.approx(alone, rel=1e-4)
    assert bare != pytest.approx(alone, rel=0.01)


@pytest.mark.parametrize("saved", SAVED)
@pytest.mark.parametrize("kind", ON_RANKS)
def test_a_resumed_run_updates_with_the_same_values(whole, kind, saved):
    """The changed weight decay comes from the checkpoint; of a window that was cut, the rest counts."""
    ranks, folder = whole(kind)
    first = 5 if saved == "at a window's end" else 2
    for rank, (windows, used, seen, left, square) in enumerate(on(kind, RULES, ckpt=folder / saved)):
        assert used == expected(windows, first)
        assert seen == [own_values(step) for step in dict.fromkeys([min(first, CHANGES_AT), CHANGES_AT])]
        assert left == own_values(CHANGES_AT)
        if saved == "at a window's end":
            assert used == ranks[rank][1][first:]
            # One file of FSDP1 numbers the optimizer's states by the model, not by groups, also without the scaler.
            if kind != "fsdp1, one file":
                assert square == pytest.approx(ranks[rank][4], rel=1e-5)


@pytest.mark.parametrize("saved", SAVED)
@pytest.mark.parametrize("kind", ON_RANKS)
def test_a_checkpoint_loaded_without_the_scaler_holds_the_users_values(whole, kind, saved):
    _, folder = whole(kind)
    first = 5 if saved == "at a window's end" else 2
    for windows, used, _, left, _ in on(kind, None, ckpt=folder / saved):
        assert {examples for examples in windows[1:]} == {START}
        assert used == [own_values(step) for step in range(first, first + len(used))]
        assert left == own_values(CHANGES_AT)
