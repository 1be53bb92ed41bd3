"""A host for the pure run: drives `theory.run` on every rank as the loop does, with no Trainer and no tensor."""

import json
import math
from dataclasses import dataclass, field, replace
from typing import Any

from lightning_bsscale.theory import run
from lightning_bsscale.theory.measured import Arrived
from lightning_bsscale.theory.plan import UserPlan
from lightning_bsscale.theory.policies import Decision, Limits
from lightning_bsscale.theory.rules import Linear
from lightning_bsscale.theory.start import Start
from lightning_bsscale.theory.state import RunSettings, RunState
from lightning_bsscale.theory.stored import FRACTIONS, as_plain, check_stored, from_plain
from tests.helpers.simulated import equal_sums

SIZE = 4  # examples of a usual loader batch of one rank


def user_plan(
    accumulate=1, *, size=1, plan_size=None, max_steps=None, total_examples=None, ends_with_epochs=True
) -> UserPlan:
    """The user's plan, in loader batches of `size` examples; its steps may be counted in others."""
    return UserPlan(
        accumulate=accumulate,
        max_steps=max_steps,
        total_examples=total_examples,
        granularity=size,
        plan_granularity=plan_size or size,
        ends_with_epochs=ends_with_epochs,
    )


class ByStep:
    """Asks for a batch by the number of steps made, so a resumed run needs no state of it."""

    def __init__(self, loader_batches):
        self.loader_batches = loader_batches

    def decide(self, situation, limits):
        wanted = self.loader_batches[situation.optimizer_steps % len(self.loader_batches)] * limits.granularity
        return Decision(batch_size=wanted, reason="by step", code="hold" if wanted == situation.batch_size else "move")


def stored_again(state):
    """The state after a checkpoint: made plain, written as JSON, checked, and read."""
    plain = json.loads(json.dumps(as_plain(state), allow_nan=False))
    check_stored(RunState, plain, fractions=FRACTIONS)
    return from_plain(RunState, plain)


@dataclass(frozen=True)
class Program:
    """A training: loader batches of each epoch, what the loader announces, and what is asked for."""

    epochs: tuple[int, ...] = (10,)
    announced: int | None = 10
    last_size: int = SIZE
    ranks: int = 1
    accumulate: int = 1
    max_steps: int | None = None
    batches: tuple[int, ...] = (1,)
    rows: int = SIZE
    splits: bool = False
    measure_every: int = 1
    warmup: float = 0.0
    acts: bool = True
    decides: bool = True
    explained: tuple[bool | None, ...] = (None,)
    finite: tuple[bool, ...] = (True,)

    @property
    def settings(self):
        granularity = SIZE * self.ranks
        start = Start(
            granularity=granularity, loader_batch_size=granularity, world_size=self.ranks, accumulate=self.accumulate
        )
        smallest = granularity if self.max_steps is None else start.batch_size
        return RunSettings(
            first=start,
            now=start,
            plan=user_plan(
                self.accumulate, size=granularity, max_steps=self.max_steps, ends_with_epochs=self.max_steps is None
            ),
            limits=Limits(granularity=granularity, min_batch_size=smallest, max_batch_size=16 * granularity),
            policy=ByStep(self.batches),
            rule=Linear(),
            rule_for=lambda optimizer: Linear(),
            schedule=None,
            total_examples=None,
            warmup_examples=self.warmup,
            memory=math.inf,
            measure_every=self.measure_every,
            rows=self.rows,
            max_micro_batch_size=None,
            searches_size=False,
            splits=self.splits,
            divides=self.splits,
            samples_per_micro_batch=self.ranks,
            decides=self.decides,
            acts=self.acts and self.decides,
        )

    def sizes(self, epoch, index):
        """Examples of a loader batch on each rank: an epoch's last one is short, and on the last rank by one more."""
        if index + 1 < self.epochs[epoch]:
            return [SIZE] * self.ranks
        return [max(1, self.last_size - (rank > 0 and rank == self.ranks - 1)) for rank in range(self.ranks)]

    def places(self):
        return [(epoch, index) for epoch, length in enumerate(self.epochs) for index in range(length)]


@dataclass
class Host:
    """Trains a program from one place to another.

    Attributes:
        steps: every step so far: epoch, window, factors, and what the policy answered
        truth: examples that really went into the steps, by number of steps
    """

    program: Program
    settings: RunSettings = None
    states: list[RunState] = field(default_factory=list)
    steps: list[Any] = field(default_factory=list)
    truth: list[int] = field(default_factory=lambda: [0])
    is_over: bool = False
    unsent: list[float] = field(default_factory=list)
    in_flight: Arrived | None = None

    @classmethod
    def begin(cls, program):
        settings = program.settings
        position = settings.plan.begin(**cls.lengths(program))
        states = [run.begin_run(settings, position, epoch=0) for _ in range(program.ranks)]
        return cls(program, settings, states, unsent=[0.0] * program.ranks)

    @staticmethod
    def lengths(program):
        return {"epoch_batches": program.announced, "epoch_examples": None}

    @property
    def state(self):
        return self.states[0]

    def snapshot(self):
        pending = self.state.pending
        if pending is None or pending.arrived is not None:
            return self.state
        return replace(self.state, pending=replace(pending, arrived=self.in_flight))

    @classmethod
    def resume(cls, program, stored, *, epoch, **changes):
        settings = replace(program.settings, first=stored.first, **changes)
        position = settings.plan.resumed(stored.position, **cls.lengths(program))
        states = [run.resume_run(settings, stored, position, epoch=epoch) for _ in range(program.ranks)]
        unsent = [states[0].examples.assumed / program.ranks] * program.ranks
        return cls(program, settings, states, unsent=unsent)

    def train(self, places):
        for epoch, index in places:
            if self.is_over:
                break
            self.loader_batch(epoch, index)
        return self

    def loader_batch(self, epoch, index):
        program = self.program
        is_last = index + 1 == program.epochs[epoch]
        pending = self.state.pending
        arrived = self.in_flight if pending is None or pending.arrived is None else pending.arrived
        for rank, size in enumerate(program.sizes(epoch, index)):
            state = self._begun(self.states[rank], epoch, index, size)
            window = state.window
            # Where windows are not placed, Lightning steps at the multiples.
            is_full = window.begun == window.planned if self.settings.acts else (index + 1) % program.accumulate == 0
            has_stepped = is_full or is_last
            self.unsent[rank] += window.examples if has_stepped else 0
            state = replace(state, window=replace(window, ended=window.ended + 1), loader_batches_in_epoch=index + 1)
            self.states[rank] = self._closed(state, rank, (epoch, index), arrived) if has_stepped else state
        if has_stepped:
            self._send()

    def _begun(self, state, epoch, index, size):
        settings, position, accumulate = self.settings, state.position, self.program.accumulate
        lengths = self.lengths(self.program)
        if index == 0 or (epoch != state.epoch and index < position.loader_batches):
            state = run.start_epoch(settings, state, epoch=epoch, **lengths).state
        elif state.is_resumed and position.is_last:
            state = run.start_epoch(settings, state, epoch=epoch, first=index, **lengths).state
        elif not settings.acts and index % accumulate == 0:
            state, _ = run.drop_window(settings, state)
        if state.window is None:
            state = run.open_window(settings, state, index, accumulate=accumulate, steps_before=state.windows)
        window = replace(state.window, begun=state.window.begun + 1, examples=state.window.examples + size)
        return replace(state, window=window, is_resumed=False)

    def _closed(self, state, rank, place, arrived):
        settings, window, (epoch, index) = self.settings, state.window, place
        usual = window.has_usual_size and window.begun == window.planned
        factors = run.learning_rate_factors(settings, state, window.begun, has_usual_size=usual)
        end = run.WindowEnd(
            ready=index + 1,
            is_last=index + 1 == self.program.epochs[epoch],
            lr=0.1,
            lr_scale=factors[0],
            has_sums=window.is_watched and window.begun * settings.samples_per_micro_batch > 1,
            sends=True,
        )
        closed = run.close_window(settings, state, end, arrived)
        asked = run.ask_policy(settings, closed.state, run.Conditions(1.0, None, None))
        if rank == 0:
            self.steps.append((epoch, window.start, window.begun, window.is_measured, factors, asked.record))
        # Where nothing is placed, Lightning itself stops after so many steps.
        steps = asked.state.planned_steps if settings.acts else asked.state.windows
        self.is_over = self.program.max_steps is not None and steps >= self.program.max_steps
        assert not settings.acts or asked.state.is_over(self.program.max_steps or -1, None) == self.is_over
        return asked.state

    def _send(self):
        # The sums are made up from the number of the step, so that a resumed run receives the same.
        self.in_flight = None
        state, count = self.state, self.state.windows
        epoch, start, begun, *_ = self.steps[-1]
        examples = sum(sum(self.program.sizes(epoch, index)) for index in range(start, start + begun))
        self.truth.append(self.truth[-1] + examples)
        if state.pending is None:
            return
        program, samples = self.program, begun * self.program.ranks
        mean = 1.0 + math.sin(count) ** 2 if program.finite[count % len(program.finite)] else math.nan
        sums = equal_sums(samples * (mean + 1.0 + math.cos(count) ** 2), mean, samples, SIZE)
        self.in_flight = Arrived(
            sums=replace(sums, examples=examples),
            explained=program.explained[count % len(program.explained)],
            examples=None if program.ranks == 1 else round(sum(self.unsent)),
        )
        self.unsent = [0.0] * program.ranks
