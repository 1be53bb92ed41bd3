"""Journals of runs that no Trainer made: many windows in no time, with a noise scale of about 50."""

import math
import random
from dataclasses import replace

from lightning_bsscale.callbacks.trainer.learning_rate import RELATIVE_DIGITS
from lightning_bsscale.callbacks.trainer.timing import SECONDS_DIGITS
from lightning_bsscale.journal import Journal, run_header
from lightning_bsscale.theory import run
from lightning_bsscale.theory.described import describe, min_steps_of
from lightning_bsscale.theory.events import EndEvent, EpochEvent, WindowEvent, apply
from lightning_bsscale.theory.measured import Arrived
from lightning_bsscale.theory.numbers import significant
from lightning_bsscale.theory.policies import Limits, NoiseScalePolicy
from lightning_bsscale.theory.profile import RunProfile
from lightning_bsscale.theory.rules import Sqrt
from tests.helpers.simulated import equal_sums
from tests.helpers.simulated_run import SIZE, Program

TRACE, GRAD_SQ = 200.0, 4.0


def settings_of(loader_batches, *, measure_every=1, policy=None, rule=None, schedule=None, memory=1000.0):
    """The settings of one epoch on one device."""
    rule = rule or Sqrt()
    return replace(
        Program(accumulate=2, measure_every=measure_every, warmup=100.0).settings,
        limits=Limits(granularity=SIZE, min_batch_size=2 * SIZE, max_batch_size=32 * SIZE),
        policy=policy or NoiseScalePolicy(),
        rule=rule,
        rule_for=lambda optimizer: rule,
        schedule=schedule,
        total_examples=float(loader_batches * SIZE),
        memory=memory,
    )


def sums_of(length, dice):
    """The sums of one measured window."""
    micro, mean = GRAD_SQ + TRACE / SIZE, GRAD_SQ + TRACE / (SIZE * length)
    return equal_sums(length * micro * dice.uniform(0.8, 1.2), mean * dice.uniform(0.8, 1.2), length, SIZE)


def write_run(path, loader_batches=400, *, journal=None, **options):
    """Write the journal of a run of one epoch, with the digits that a training writes; return its path."""
    settings, dice = settings_of(loader_batches, **options), random.Random(0)
    lengths = dict(epoch_batches=loader_batches, epoch_examples=loader_batches * SIZE)
    state = run.begin_run(settings, settings.plan.begin(**lengths), epoch=0)
    profile = RunProfile(policy=type(settings.policy).__name__, min_steps=min_steps_of(describe(settings.policy)))
    journal = journal or Journal(path, run_header(settings, state, profile))

    def write(event):
        nonlocal state
        journal.write(event)
        state, _, *made = apply(settings, state, event)
        state = state.without_history()
        for record in made:
            if record is not None:
                journal.write(record)

    write(EpochEvent(epoch=0, batches=loader_batches, examples=loader_batches * SIZE, ready=0))
    done, arrived = 0, None
    while done < loader_batches:
        window = run.open_window(settings, state, done, accumulate=2, steps_before=0).window
        factor, scheduled = run.learning_rate_factors(
            settings, state, window.planned, has_usual_size=window.has_usual_size
        )
        cosine = (1 + math.cos(math.pi * done / loader_batches)) / 2
        write(
            WindowEvent(
                start=done,
                length=window.planned,
                is_last=done + window.planned == loader_batches,
                lr=0.2 * cosine * factor if window.is_measured else None,
                factor=factor,
                scheduled=scheduled,
                has_sums=window.is_watched,
                arrived=arrived,
                relative_lr=significant(cosine, RELATIVE_DIGITS),
                seconds=(
                    significant(dice.uniform(1e-3, 2e-3), SECONDS_DIGITS),
                    significant(dice.uniform(1e-4, 2e-4), SECONDS_DIGITS),
                ),
            )
        )
        done += window.planned
        arrived = Arrived(sums=sums_of(window.planned, dice)) if state.pending is not None else None
    last, _, _ = run.take_arrived(settings, state, arrived)
    write(EndEvent(ready=done, arrived=arrived, state=last.without_history()))
    journal.close()
    return journal.path
