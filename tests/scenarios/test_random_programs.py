"""Random mixtures of everything, against a model of twenty lines: what should enter each step, at which rate.

A program draws a training (epoch's length, sized or not, accumulation, micro-batches, precision, scheduler, rule,
validation, limits) and then, in any order, kills after a checkpoint anywhere and exceptions anywhere, and lets it run
to its end. The invariants are checked after every optimizer step.
"""

import math
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from torch.utils.data import DataLoader

from lightning_bsscale import BatchSizeScaler
from lightning_bsscale.journal import read_journal
from lightning_bsscale.theory.records import DecisionRecord
from tests.helpers.training import (
    ByStep,
    KeepsRates,
    KeepSteps,
    Numbers,
    OneHot,
    UnsizedNumbers,
    fit,
    gradient_scaler,
    run_of,
)

POWERS = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}
LARGEST = 12


@dataclass(frozen=True)
class Training:
    """One drawn training, and what should happen in it. Examples are loader batches of one."""

    length: int
    epochs: int
    sized: bool
    accumulate: int
    max_steps: int | None
    script: tuple[int, ...]
    largest: int | None
    rule: str
    precision: str
    scheduler: bool
    validate_every: int | None
    measure_every: int

    def planned_steps(self, position):
        epochs, index = divmod(position, self.length)
        return epochs * math.ceil(self.length / self.accumulate) + index // self.accumulate

    @property
    def end(self):
        whole = self.length * self.epochs
        if self.max_steps is None:
            return whole
        return next((n for n in range(1, whole + 1) if self.planned_steps(n) >= self.max_steps), whole)

    def batch(self, steps):
        if steps == 0:
            return self.accumulate
        smallest = self.accumulate if self.max_steps is not None else 1
        return min(max(self.script[steps % len(self.script)], smallest), LARGEST)

    def window(self, position, steps, rest):
        """Length of the window that begins at `position`, and the factor on its rate."""
        batch = self.batch(steps)
        length = min(rest or batch, self.length - position % self.length, self.end - position)
        factor, own = self.factor(batch), self.factor(length)
        return length, factor if length == batch and not rest else min(factor, max(1.0, own))

    def factor(self, batch):
        return (batch / self.accumulate) ** POWERS[self.rule]


class Killed(Exception):
    pass


class Probe(OneHot):
    def __init__(self, training, fails_at=None):
        super().__init__(training.length * training.epochs, training.length)
        self.training_, self.fails_at = training, fails_at

    def position(self, batch_idx):
        return self.current_epoch * self.training_.length + batch_idx

    def on_train_batch_start(self, batch, batch_idx):
        if self.position(batch_idx) == self.fails_at:  # `training_step` may come some loader batches later
            raise Killed

    def training_step(self, batch, batch_idx):
        # A gathered micro-batch bears the index of its last loader batch; resumed, the data begin anew.
        self.log("loss", 0.0)
        return self.weight[self.position(batch_idx) - torch.arange(len(batch))].mean()

    def on_before_optimizer_step(self, optimizer):
        super().on_before_optimizer_step(optimizer)
        assert self.trainer.global_step + 1 == self.first_step + len(self.steps)

    def on_train_start(self):
        self.first_step = self.trainer.global_step

    def configure_optimizers(self):
        optimizer = KeepsRates(self.parameters(), lr=0.5)
        if not self.training_.scheduler:
            return optimizer
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class SaveThenKill(ModelCheckpoint):
    """Comes last; saves after one loader batch, and kills after a later one."""

    def __init__(self, path, save_at, kill_at):
        super().__init__(save_top_k=0)
        self.path, self.save_at, self.kill_at = path, save_at, kill_at

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        position = pl_module.position(batch_idx)
        if position == self.save_at and not trainer.is_last_batch:
            trainer.save_checkpoint(self.path)
        if position == self.kill_at:
            raise Killed

    def on_train_epoch_end(self, trainer, pl_module):
        if pl_module.position(pl_module.training_.length - 1) == self.save_at:
            trainer.save_checkpoint(self.path)


trainings = st.builds(
    Training,
    length=st.integers(1, 13),
    epochs=st.integers(1, 3),
    sized=st.sampled_from([True, True, False]),
    accumulate=st.integers(1, 4),
    max_steps=st.one_of(st.none(), st.integers(1, 20)),
    script=st.lists(st.integers(1, LARGEST), min_size=1, max_size=6).map(tuple),
    largest=st.none() | st.integers(1, LARGEST),
    rule=st.sampled_from(sorted(POWERS)),
    precision=st.sampled_from(["32-true", "bf16-mixed", "64-true", "16-mixed"]),
    scheduler=st.booleans(),
    validate_every=st.one_of(st.none(), st.integers(1, 13)),
    measure_every=st.integers(1, 4),
)


class Programs(RuleBasedStateMachine):
    @initialize(training=trainings)
    def begin(self, training):
        self.training = training
        self.folder = tempfile.TemporaryDirectory()
        self.checkpoint = None
        self.position = self.steps = self.rest = self.lost = 0
        self.counted_to = 0  # the plan's position at the last window's end
        self.logged = []
        self.has_failed = False

    def train(self, module, *callbacks):
        t, path = self.training, Path(self.folder.name)
        every = dict(max_micro_batch_size=t.largest, measure_every=t.measure_every)
        options = dict(policy=ByStep(t.script), lr_rule=t.rule, max_batch_size=LARGEST, **every)
        scaler = BatchSizeScaler(warmup=0, memory=1.0, record=path / "journal.jsonl", **options)
        data = Numbers(t.length) if t.sized else UnsizedNumbers(t.length)
        precision = gradient_scaler() if t.precision == "16-mixed" else {"precision": t.precision}
        settings = dict(max_epochs=t.epochs, max_steps=-1 if t.max_steps is None else t.max_steps)
        settings |= dict(accumulate_grad_batches=t.accumulate, num_sanity_val_steps=0, log_every_n_steps=1)
        settings |= dict(ckpt_path=self.checkpoint, enable_checkpointing=bool(callbacks))
        if t.validate_every is not None and t.validate_every <= t.length:
            settings |= dict(val=DataLoader(Numbers(1)), val_check_interval=t.validate_every)
        logger = KeepSteps()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                fit(
                    module, DataLoader(data, batch_size=1), [scaler, *callbacks], logger=logger, **settings, **precision
                )
        except Killed:
            pass
        finally:
            self.check(module, scaler)
            self.new_steps = [step for step, metrics in logger.logged if "loss" in metrics]
        return scaler

    def check(self, module, scaler):
        """What entered each step and at which rate, from the present checkpoint on, against the model."""
        t, position, steps, rest, counted_to = self.training, self.position, self.steps, self.rest, self.counted_to
        self.states = [(position, steps, counted_to)]
        rates = module.trainer.optimizers[0].used
        for entered, rate in zip(module.steps, rates, strict=True):
            length, factor = t.window(position, steps, rest)
            rest = 0
            assert entered == pytest.approx({position + i: 1 / length for i in range(length)}), (position, steps)
            user = 0.5 / (1 + t.planned_steps(counted_to)) if t.scheduler else 0.5
            assert rate[0] == pytest.approx(user * factor), (position, steps)
            position, steps = position + length, steps + 1
            counted_to = position
            self.states.append((position, steps, counted_to))

    def goes_on_from(self, done):
        """The state of a checkpoint after `done` loader batches of the whole training."""
        before = max(state for state in self.states if state[0] <= done)
        at_start = before == self.states[0]
        unfinished = done - before[0]
        length = self.training.window(before[0], before[1], self.rest if at_start else 0)[0]
        self.position, self.steps, self.counted_to = done, before[1], before[2]
        self.lost += unfinished
        self.rest = length - unfinished if unfinished else 0 if not at_start else self.rest
        self.logged = [*self.logged, *self.new_steps][: self.steps]

    @rule()
    def is_left_alone(self):
        """Where no other rule may act."""

    # Resumed, a loader without a length begins anew, and Lightning cannot know that its epoch was over. And once it was
    # resumed from an exception's checkpoint, Lightning repeats the last loader batch before any later checkpoint.
    @precondition(lambda self: self.training.sized and not self.has_failed)
    @rule(save_after=st.floats(0, 0.99), kill_after=st.floats(0, 0.99))
    def is_killed(self, save_after, kill_after):
        left = self.training.end - self.position
        if left < 2:
            return
        save_at = self.position + int(save_after * (left - 1))
        if self.training.max_steps is not None and (save_at + 1) % self.training.length == 0:
            return  # with max_steps, Lightning resumed at an epoch's end takes one loader batch more in that epoch
        kill_at = save_at + 1 + int(kill_after * (self.training.end - save_at - 1))
        event("killed")
        path = Path(self.folder.name) / f"{self.position}-{save_at}.ckpt"
        self.train(Probe(self.training), SaveThenKill(path, save_at, kill_at))
        self.checkpoint = path
        self.goes_on_from(save_at + 1)

    @precondition(lambda self: self.training.sized)
    @rule(after=st.floats(0, 0.99))
    def fails(self, after):
        fails_at = self.position + int(after * (self.training.end - self.position))
        # In an epoch's last loader batch Lightning itself counts a step too many for the loggers.
        if fails_at >= self.training.end or (fails_at + 1) % self.training.length == 0:
            return
        event("failed")
        folder = Path(self.folder.name) / f"{self.position}-failed-{fails_at}"
        self.train(Probe(self.training, fails_at), OnExceptionCheckpoint(folder))
        self.checkpoint = folder / "on_exception.ckpt"
        self.goes_on_from(fails_at)
        self.has_failed = True

    def teardown(self):
        if not hasattr(self, "training"):
            return
        module = Probe(self.training)
        scaler = self.train(module)
        position, steps, _ = self.states[-1]
        assert position == self.training.end
        assert [*self.logged, *self.new_steps] == list(range(steps))
        state = scaler.state_dict()
        assert run_of(state).lost_loader_batches == self.lost
        assert scaler.examples_seen == self.training.end - self.lost
        records = read_journal(Path(self.folder.name) / "journal.jsonl")[1]
        decisions = [record for record in records if isinstance(record, DecisionRecord)]
        assert decisions == scaler.decisions
        assert [record.situation.optimizer_steps for record in decisions] == list(range(1, steps + 1))
        assert [record for record in records if not isinstance(record, DecisionRecord)] == scaler.history
        assert len({made.optimizer_steps for made in scaler.history}) == len(scaler.history)
        self.folder.cleanup()


def test_programs(request):
    nightly = request.config.getoption("--nightly")
    run_state_machine_as_test(
        Programs,
        settings=settings(
            max_examples=500 if nightly else 50,
            stateful_step_count=5,
            deadline=None,
            derandomize=not nightly,
            phases=[Phase.generate],  # a program is short already, and shrinking would take minutes
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
