"""The verdict of real trainings: each sentence's numbers are those of the run, and the journal says the same."""

import json
import logging
import math
import re
import types

import pytest
import torch
from torch import nn

from lightning_bsscale import BatchSizeScaler, Decision, GradientNoiseScaleMonitor, Milestones, NoiseScalePolicy, Seesaw
from lightning_bsscale.callbacks.trainer import timing
from lightning_bsscale.verdict import read_facts, verdict_of
from tests.helpers.expected_warnings import CANNOT_MEASURE, CKPT_PATH, HARDLY_RESOLVED, MID_EPOCH, ignored
from tests.helpers.training import Broken, Regression, Saves, fit, regression_loader

pytestmark = [
    CANNOT_MEASURE,
    CKPT_PATH,
    MID_EPOCH,
    ignored(HARDLY_RESOLVED, "bsscale. warmup", "bsscale. the model has Batch"),
]

LOADER_BATCH, STEP = 1.0, 2.0  # seconds, by a clock of our own


@pytest.fixture
def clock(monkeypatch):
    """A clock in which a loader batch and a step take as long as each test says."""
    made = types.SimpleNamespace(now=0.0, loader_batch=LOADER_BATCH, step=STEP)
    monkeypatch.setattr(timing, "time", types.SimpleNamespace(perf_counter=lambda: made.now))
    return made


class Timed(Regression):
    """Takes its seconds from a clock, and fails on demand."""

    def __init__(self, clock=None, optimizer=None, breaks_at=None, error=None):
        super().__init__(optimizer)
        self.__dict__.update(clock=clock, breaks_at=breaks_at, error=error, ends=[])

    def training_step(self, batch, batch_idx):
        if batch_idx == self.breaks_at:
            raise self.error
        if self.clock is not None:
            self.clock.now += self.clock.loader_batch
        return super().training_step(batch, batch_idx)

    def on_before_optimizer_step(self, optimizer):
        if self.clock is not None:
            self.clock.now += self.clock.step
            self.ends.append(self.clock.now)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


def trained(callback, module=None, examples=2000, batch_size=4, **settings):
    """The Trainer of a small regression, whose noise scale rises from about 10 as it is learned."""
    loader = regression_loader(examples, batch_size=batch_size, noise=3.0)
    return fit(module or Timed(), loader, [callback], **{"max_epochs": 1, **settings})


def number(text):
    """A written number: ``33,675``, ``12.3 M``."""
    text, _, scale = text.replace(",", "").partition(" ")
    return float(text) * {"": 1, "M": 1e6, "B": 1e9}[scale]


def found(pattern, text):
    """The numbers that a sentence holds: `#` in the pattern stands for one."""
    regex = "".join(
        r"(-?[\d.,]*\d(?: [MB]\b)?)" if part == "#" else re.escape(part) for part in re.split("(#)", pattern)
    )
    match = re.search(regex, text)
    assert match, f"{pattern!r} is not in {text!r}"
    return [number(one) for one in match.groups()]


def close(*values):
    """To the three digits that are written."""
    return pytest.approx(values, rel=6e-3)


def assert_noise_is_said(callback, text):
    noise = callback.noise_scale
    if noise.resolved:
        said = found(f"Noise scale about # {callback._options.unit} [#, #] (90 %) from # windows", text)
        assert said[:3] == close(noise.noise_scale, noise.low, noise.high)
    else:
        assert "The noise scale is not resolved" in text
        said = found("from # windows", text)
    averages = callback._run.measured.averages.sums
    assert said[-1] == averages.windows
    if round(averages.effective_windows) < averages.windows and round(averages.effective_windows) > 1:
        assert found("(the last # or so count)", text) == [round(averages.effective_windows)]


def assert_journal_says_the_same(callback):
    assert verdict_of(read_facts(callback.journal_path)) == callback.verdict()


# ---------------------------------------------------------------- what the batch did


def test_a_grown_run_says_what_it_saved(clock, caplog, tmp_path):
    scaler, module = BatchSizeScaler(record=tmp_path / "run.jsonl"), Timed(clock)
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        trainer = trained(scaler, module, max_epochs=2)
    verdict, text = scaler.verdict(), str(scaler.verdict())
    changes = [record for record in scaler.decisions if record.is_change]
    assert found("The batch grew from # to # examples in # changes.", verdict.headline) == [
        4,
        scaler.batch_size,
        len(changes),
    ]
    assert_noise_is_said(scaler, text)
    made, planned = trainer.global_step, 1000
    assert planned == scaler.planned_steps
    said = found("It made # optimizer steps instead of # of your plan: # saved.", text)
    assert said == [made, planned, planned - made]
    # By the clock. All but the first two windows are timed; the plan would have measured, and so split, none.
    took, would = module.ends[-1] - module.ends[1], (LOADER_BATCH + STEP) * 998
    assert scaler._context.pace.seconds == pytest.approx(took)
    pattern = (
        "Training took # min, at the measured pace of the first batch it would have taken at most # min: at most #"
    )
    minutes = found(pattern, text)
    assert minutes == close(took / 60, would / 60, (would - took) / 60)
    assert found("Forecast: on many ranks the same growth would also save # all-reduces", text) == [planned - made]
    # It is said once, at the end, and the journal says the same.
    paragraphs = [one.message for one in caplog.records if one.message.startswith("bsscale: The batch grew")]
    assert paragraphs == [f"bsscale: {text}"]
    assert caplog.records[-1].message == paragraphs[0]
    assert "\n" not in text
    assert_journal_says_the_same(scaler)


def test_steps_without_time_are_no_success(clock):
    clock.step = 0.0
    scaler = BatchSizeScaler()
    trained(scaler, Timed(clock), max_epochs=2)
    text = str(scaler.verdict())
    assert found("# saved.", text)[0] > 0
    assert "no time that could be told from chance" in text
    assert "min saved" not in text


def test_a_run_that_took_longer_says_so(clock):
    class Slower(Timed):
        def on_before_optimizer_step(self, optimizer):
            self.clock.now += STEP if self.trainer.accumulate_grad_batches == 1 else 20.0

    scaler = BatchSizeScaler()
    trained(scaler, Slower(clock), max_epochs=2)
    pace = scaler._context.pace
    assert pace.seconds > pace.seconds_of_plan
    more = found("# min more, in spite of fewer steps", str(scaler.verdict()))
    assert more == close((pace.seconds - pace.seconds_of_plan) / 60)


def test_seconds_that_cannot_be_known_are_not_invented(clock):
    # Every window is measured, and so none was timed as it would be without the callback.
    scaler = BatchSizeScaler(measure_every=1)
    trained(scaler, Timed(clock), max_epochs=2)
    text = str(scaler.verdict())
    saved = found("# saved.", text)[0]
    seconds, each = found("That is about # min, by the measured # s of a step beyond its loader batches", text)
    assert [each] == close(scaler._context.seconds[1])
    assert 60 * seconds == pytest.approx(saved * each, rel=2e-2)
    assert "Training took" not in text


def test_a_second_of_training_compares_no_times(clock):
    clock.loader_batch = clock.step = 1e-4
    scaler = BatchSizeScaler()
    trained(scaler, Timed(clock), max_epochs=2)
    assert "too short to compare times" in str(scaler.verdict())


def test_a_dry_run_says_what_would_have_been(tmp_path):
    scaler = BatchSizeScaler(dry_run=True, record=tmp_path / "run.jsonl")
    trained(scaler, max_epochs=2)
    verdict, text = scaler.verdict(), str(scaler.verdict())
    headline = "Dry run: the batch would have grown from # to # examples in # changes."
    changes = [record for record in scaler.decisions if record.is_change]
    assert found(headline, verdict.headline) == [4, scaler.batch_size, len(changes)]
    # The steps of its own windows, if each had had the hypothetical batch of its time.
    sizes = {record.situation.examples_seen: record.batch_size for record in changes}
    size, steps = 4, 0.0
    for seen in range(0, 4000, 4):
        size = sizes.get(float(seen), size)
        steps += 4 / size
    assert found("would have saved about # of # optimizer steps (a forecast)", text) == [
        pytest.approx(1000 - steps, abs=1),
        1000,
    ]
    assert "Training took" not in text
    assert_journal_says_the_same(scaler)


def test_a_unit_of_ones_own(caplog):
    def tokens(batch):
        return 128 * len(batch[0])

    scaler = BatchSizeScaler(batch_size_fn=tokens, unit="tokens", verbose=True)
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        trained(scaler, max_epochs=2)
    text = str(scaler.verdict())
    assert_noise_is_said(scaler, text)
    assert found("The batch grew from # to # tokens", text) == [512, scaler.batch_size]
    said = " ".join(one.message for one in caplog.records if one.message.startswith("bsscale"))
    assert "example" not in f"{text} {said} {scaler!r}"
    assert scaler.summary().splitlines()[1].startswith("tokens ")


# ---------------------------------------------------------------- why it did not grow (any further)


def test_a_bound_that_was_too_small(tmp_path):
    policy = NoiseScalePolicy(target_ratio=1, confidence=0.9)
    scaler = BatchSizeScaler(policy=policy, memory=1.0, max_batch_size=400, record=tmp_path / "run.jsonl")
    trained(scaler, batch_size=40, max_epochs=2)
    verdict = scaler.verdict()
    assert scaler.noise_scale.resolved
    assert verdict.headline == "The batch stayed at 40 examples."
    assert_noise_is_said(scaler, str(verdict))
    needed, had, confidence = found("Growing needed a lower bound of # and had # (# %).", str(verdict))
    assert needed == 80  # the next possible batch, which is more than 1.25 x 40
    assert [had] == close(scaler._context.latest.situation.noise.lower_bound(0.9))
    assert confidence == 90
    assert scaler.noise_scale.upper_bound(0.9) < needed
    assert verdict.next_steps == ("Nothing to change: the batch is about as large as the noise scale justifies.",)
    assert_journal_says_the_same(scaler)


def test_an_unresolved_run_forecasts_the_windows_it_needs(tmp_path):
    policy = NoiseScalePolicy(target_ratio=1, confidence=0.9)
    scaler = BatchSizeScaler(policy=policy, record=tmp_path / "run.jsonl")
    trained(scaler, examples=1200)
    verdict, noise = scaler.verdict(), scaler.noise_scale
    assert not noise.resolved
    assert "Growing waits until the noise scale is resolved: its interval has no upper end yet." in str(verdict)
    assert "needed" not in str(verdict)
    had, needed = found("its lower bound, # (90 %) so far, does not count; growing will need one of #.", str(verdict))
    latest = scaler._context.latest
    assert needed == max(1.25 * scaler.batch_size, scaler.batch_size + 4)
    assert had == pytest.approx(latest.decision.bound, rel=6e-3)
    (advice,) = verdict.next_steps
    twice = re.search(r"About (twice|(\d+) times) as many windows would resolve it, with a lower bound of at", advice)
    times = int(twice[2] or 2)
    assert found("a lower bound of at least # (a forecast): ", advice) == [needed]
    # With so many windows, and not with half of them, by Fieller's condition on the variance of the squared norm.
    from lightning_bsscale.verdict.measured import with_windows

    assert with_windows(noise, times).resolved
    assert with_windows(noise, times).lower_bound(0.9) >= needed
    less = with_windows(noise, times / 2)
    assert not less.resolved or less.lower_bound(0.9) < needed
    assert f"measure_every={8 // times} (now 8)" in advice
    assert f"memory={0.05 * times:g} (now 0.05)" in advice


def test_at_the_limit_that_the_user_set():
    scaler = BatchSizeScaler(max_batch_size=8)
    trained(scaler, max_epochs=2)
    text = str(scaler.verdict())
    assert "The batch is at its limit of 8, from max_batch_size=8." in text
    bound, target = found("The lower bound of # (80 %) would allow a batch of #.", text)
    decision = scaler._context.latest.decision
    assert [bound, target] == close(decision.bound, 1.25 * decision.bound)
    (advice,) = found("set max_batch_size=#.", text)
    assert advice <= target < advice + 4


@pytest.mark.parametrize(
    ("examples", "why"), [(64, "at least 8 steps in an epoch"), (2000, "32 times the first batch")]
)
def test_at_the_default_limit(examples, why):
    at_once = types.SimpleNamespace(decide=lambda now, limits: Decision(batch_size=limits.max_batch_size, reason="all"))
    scaler = BatchSizeScaler(policy=at_once, warmup=0)
    trained(scaler, examples=examples)
    limit = {64: 8, 2000: 128}[examples]
    assert scaler.batch_size == limit
    assert f"The batch is at its limit of {limit}, the default ({why})." in str(scaler.verdict())


def test_a_bound_that_came_too_late():
    scaler = BatchSizeScaler(policy=NoiseScalePolicy(target_ratio=1, confidence=0.9, cooldown=0.6))
    trained(scaler, max_epochs=2)
    latest = scaler._context.latest
    assert latest.decision.code in ("cooling_down", "near_end")
    text = str(scaler.verdict())
    assert scaler.decisions
    if latest.decision.target >= latest.decision.needed and scaler.noise_scale.resolved:
        needed, bound, target = found("needed a target of #, and the lower bound of # (90 %) gave #, but ", text)
        assert [needed, bound, target] == close(latest.decision.needed, latest.decision.bound, latest.decision.target)
    else:
        needed, had = found("needed a lower bound of # and had #", text)
        assert [needed, had] == close(latest.decision.needed, latest.decision.bound)


def test_a_ratio_from_a_probe(tmp_path):
    file = tmp_path / "probe.json"
    file.write_text(json.dumps({"critical_batch_ratio": {"value": 0.25, "low": 0.2, "high": 0.3}}))
    scaler = BatchSizeScaler(policy=NoiseScalePolicy(target_ratio=str(file), confidence=0.9))
    trained(scaler)
    latest, text = scaler._context.latest.decision, str(scaler.verdict())
    had, needed, ratio = found("# (90 %) so far, does not count; growing will need one of #, as the target is #", text)
    assert [needed, had, ratio] == close(4 * latest.needed, latest.bound, 0.25)


def test_training_that_ended_in_the_warmup():
    scaler = BatchSizeScaler(warmup=1500)
    with pytest.raises(Broken):
        trained(scaler, Timed(breaks_at=300, error=Broken()))
    assert "Nothing grows in the warmup, whose 1,500 examples are not over." in str(scaler.verdict())


@pytest.mark.parametrize(
    ("policy", "options"),
    [(Seesaw(gate=None), {"schedule": "cosine"}), (Milestones({0.3: 2, 0.6: 4}), {})],
    ids=["Seesaw", "Milestones"],
)
def test_other_policies_in_their_own_words(policy, options, tmp_path):
    scaler = BatchSizeScaler(policy=policy, record=tmp_path / "run.jsonl", **options)
    trained(scaler, Timed(optimizer=adam), max_epochs=2)
    text = str(scaler.verdict())
    assert scaler.batch_size > 4
    assert f"The last decision of {type(policy).__name__}: {scaler._context.latest.decision.reason}." in text
    assert "needed a lower bound" not in text
    assert_journal_says_the_same(scaler)


# ---------------------------------------------------------------- what could not be measured


class Normalised(Timed):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("module", "batch_size", "options", "why"),
    [
        (None, 1, {}, "one loader batch with one row"),
        (None, 4, {"split": False}, "not split in two (split=False)"),
        (Normalised, 4, {}, "not split in two (the model has batch normalisation)"),
    ],
    ids=["single", "split", "batch norm"],
)
def test_what_was_never_measured(module, batch_size, options, why, tmp_path):
    scaler = BatchSizeScaler(record=tmp_path / "run.jsonl", **options)
    trained(scaler, module() if module else None, examples=80, batch_size=batch_size)
    verdict = scaler.verdict()
    assert scaler.noise_scale is None
    assert verdict.headline == f"The batch stayed at {batch_size} example{'s' if batch_size > 1 else ''}."
    assert why in str(verdict)
    assert "accumulate_grad_batches=2" in verdict.next_steps[0]
    assert "None" not in str(verdict)
    assert_journal_says_the_same(scaler)


def test_too_few_steps_to_measure():
    scaler = BatchSizeScaler(warmup=0, measure_every=8)
    trained(scaler, examples=16)
    assert scaler.noise_scale is None
    assert "One window was measured in 4 optimizer steps" in str(scaler.verdict())
    assert "measure_every=2 (now 8)" in scaler.verdict().next_steps[0]


@pytest.mark.filterwarnings("ignore:bsscale. the last .* measured windows had a non-finite")
def test_gradients_that_are_not_finite():
    class Diverged(Timed):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * math.nan

    scaler = BatchSizeScaler()
    trained(scaler, Diverged(), examples=400)
    dropped = scaler._run.measured.averages.dropped
    assert found("The gradient of all # measured windows was not finite", str(scaler.verdict())) == [dropped]
    assert "learning rate" in scaler.verdict().next_steps[0]


# ---------------------------------------------------------------- the monitor


def test_a_monitor_says_what_a_batch_is_worth(tmp_path):
    monitor = GradientNoiseScaleMonitor(memory=1.0, record=tmp_path / "run.jsonl")
    trained(monitor, max_epochs=2)
    verdict, noise = monitor.verdict(), monitor.noise_scale
    assert verdict.headline == "The noise scale was measured, at a batch of 4 examples."
    assert_noise_is_said(monitor, str(verdict))
    assert found("an example in a batch of # is worth # % of one", str(verdict)) == [
        4,
        pytest.approx(100 / (1 + 4 / noise.noise_scale), abs=0.6),
    ]
    assert found("BatchSizeScaler would let the batch grow, to about #.", verdict.next_steps[0]) == close(noise.low)
    assert_journal_says_the_same(monitor)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_monitor_names_its_usual_batch_not_the_short_last_one(accumulate, tmp_path):
    # 101 loader batches of 4, of which the last one has 3 rows and is alone in its window, or one of two.
    monitor = GradientNoiseScaleMonitor(memory=1.0, record=tmp_path / "run.jsonl")
    trained(monitor, examples=403, max_epochs=2, accumulate_grad_batches=accumulate)
    usual = 4 * accumulate
    text = str(monitor.verdict())
    assert monitor.verdict().headline == f"The noise scale was measured, at a batch of {usual} examples."
    if monitor.noise_scale.resolved:
        assert found("an example in a batch of # is worth", text) == [usual]
    assert_journal_says_the_same(monitor)
    lines = monitor.journal_path.read_text().splitlines()
    end = next(number for number, line in enumerate(lines) if line.startswith('{"event":"end"'))
    monitor.journal_path.write_text("\n".join(lines[:end]) + "\n")
    assert read_facts(monitor.journal_path).batch_size == usual


def test_a_window_that_is_a_whole_epoch_is_the_usual_one():
    monitor = GradientNoiseScaleMonitor()
    trained(monitor, examples=12, max_epochs=3, accumulate_grad_batches=8)
    assert monitor.verdict().headline.endswith("at a batch of 12 examples.")


def test_a_monitor_of_a_batch_that_is_too_large():
    monitor = GradientNoiseScaleMonitor(memory=1.0, measure_every=1)
    stays = Timed(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0))
    trained(monitor, stays, batch_size=200, max_epochs=3)
    assert monitor.noise_scale.high < 200
    assert found("A batch of about # would use its examples better.", monitor.verdict().next_steps[0]) == close(
        monitor.noise_scale.noise_scale
    )


# ---------------------------------------------------------------- ends that are none, and runs of several parts


@pytest.mark.parametrize("error", [Broken(), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_an_interrupted_run_still_says_what_it_knows(error, caplog, tmp_path):
    scaler = BatchSizeScaler(record=tmp_path / "run.jsonl")
    with (
        caplog.at_level(logging.INFO, logger="lightning.pytorch"),
        pytest.raises((Broken, KeyboardInterrupt, SystemExit)),
    ):
        trained(scaler, Timed(breaks_at=300, error=error))
    text = str(scaler.verdict())
    assert found("Training is at # of # examples (# %).", text) == [1200, 2000, 60]
    assert_noise_is_said(scaler, text)
    assert [one.message for one in caplog.records if one.message == f"bsscale: {text}"] == [f"bsscale: {text}"]
    assert_journal_says_the_same(scaler)


def test_nothing_measured_and_interrupted_says_nothing(caplog):
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"), pytest.raises(Broken):
        trained(BatchSizeScaler(), Timed(breaks_at=0, error=Broken()))
    assert not [one for one in caplog.records if "The batch" in one.message]


def test_it_is_muted_with_the_package(caplog):
    with caplog.at_level(logging.WARNING, logger="lightning.pytorch"):
        trained(BatchSizeScaler(), examples=400)
    assert not [one for one in caplog.records if one.message.startswith("bsscale: The batch")]


def test_before_training_it_says_that(tmp_path):
    assert str(BatchSizeScaler().verdict()) == "No training in this process yet."
    scaler = BatchSizeScaler()
    trained(scaler, examples=200)
    loaded = BatchSizeScaler()
    loaded.load_state_dict(scaler.state_dict())
    assert "only the state of a checkpoint is loaded" in str(loaded.verdict())


def test_during_training_it_stands_as_it_does(tmp_path):
    class Asks(Timed):
        said = ""

        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 250:
                self.said = str(self.trainer.callbacks[0].verdict())

    module = Asks()
    trained(BatchSizeScaler(), module)
    assert found("Training is at # of # examples (# %).", module.said) == [1000, 2000, 50]


def test_a_resumed_run_counts_all_its_parts(clock, tmp_path):
    path, checkpoint = tmp_path / "run.jsonl", tmp_path / "half.ckpt"
    whole = BatchSizeScaler(record=path)
    module = Timed(clock)
    loader = regression_loader(2000, noise=3.0)
    fit(module, loader, [whole, Saves(checkpoint, None)], max_epochs=2)
    resumed = BatchSizeScaler(record=path)
    trainer = fit(Timed(clock), loader, [resumed], max_epochs=2, ckpt_path=checkpoint)
    text = str(resumed.verdict())
    assert "The run was resumed; the numbers are those of all its parts." in text
    assert found("It made # optimizer steps instead of # of your plan", text) == [trainer.global_step, 1000]
    # The seconds before the checkpoint are in it, and those of the first two windows after it are not timed.
    pace = resumed._context.pace
    untimed = 2 + 2
    assert pace.windows == trainer.global_step - untimed
    assert pace.seconds_of_plan / pace.examples == pytest.approx((LOADER_BATCH + STEP) / 4)
    assert resumed.journal_path == path
    assert_journal_says_the_same(resumed)


def test_the_journal_of_a_killed_run_says_what_it_holds(tmp_path):
    scaler = BatchSizeScaler(record=tmp_path / "run.jsonl")
    trained(scaler, max_epochs=2)
    lines = scaler.journal_path.read_text().splitlines()
    end = next(number for number, line in enumerate(lines) if line.startswith('{"event":"end"'))
    scaler.journal_path.write_text("\n".join(lines[:end]) + "\n")
    facts, whole = read_facts(scaler.journal_path), scaler.verdict()
    assert facts.optimizer_steps == scaler._run.windows
    assert facts.examples_seen == scaler.examples_seen == 4000
    assert facts.batch_size == scaler.batch_size
    assert verdict_of(facts).headline == whole.headline
    said = found("It made # optimizer steps instead of about # of your plan: # saved.", str(verdict_of(facts)))
    assert said[0] == scaler._run.windows
    assert said[1] == pytest.approx(scaler.planned_steps, abs=2)


def test_a_journal_without_a_step_is_refused(tmp_path):
    path = tmp_path / "run.jsonl"
    scaler = BatchSizeScaler(record=path)
    trained(scaler, examples=200)
    header = path.read_text().splitlines()[0]
    path.write_text(header + "\n")
    with pytest.raises(ValueError, match="holds no optimizer step"):
        read_facts(path)


# ---------------------------------------------------------------- Adam's memory


@pytest.mark.parametrize(("beta2", "scaled", "is_said"), [(0.999, (), True), (0.5, (), False), (0.999, "beta2", False)])
def test_adams_memory_is_named_where_it_outlives_the_growth(beta2, scaled, is_said):
    by_hand = types.SimpleNamespace(decide=lambda now, limits: Decision(batch_size=16, reason="as planned"))
    scaler = BatchSizeScaler(policy=by_hand, warmup=400, also_scale=scaled, measure_every=1)
    module = Timed(optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, beta2)))
    trainer = trained(scaler, module)
    text = str(scaler.verdict())
    assert scaler.noise_scale.noise_scale > 16 or not is_said
    since = trainer.global_step - next(one for one in scaler.decisions if one.is_change).situation.optimizer_steps
    if is_said:
        assert found("remembers about # steps (beta2=0.999), more than the # since", text) == [1000, since]
        assert scaler.verdict().next_steps[-1] == 'Set also_scale="beta2".'
    else:
        assert 'also_scale="beta2"' not in text
