"""A journal computes its whole run again: what is wrong in it disagrees, and what cannot be computed is named."""

import itertools
import json
import math
import re
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections import Counter, deque
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest

from lightning_bsscale.callbacks.trainer.learning_rate import RELATIVE_DIGITS
from lightning_bsscale.cli import main
from lightning_bsscale.journal import Journal, read_journal, read_lines
from lightning_bsscale.replay import KINDS, replay
from lightning_bsscale.theory.described import describe, make_policy, make_rule, make_schedule
from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.events import WindowEvent
from lightning_bsscale.theory.measured import Arrived
from lightning_bsscale.theory.moments import WindowSums
from lightning_bsscale.theory.numbers import significant
from lightning_bsscale.theory.policies import (
    POLICIES,
    Decision,
    HoldIfWorse,
    Largest,
    Milestones,
    NoiseScalePolicy,
    NormTest,
    Seesaw,
    Sequence,
    Smith,
)
from lightning_bsscale.theory.rules import RULES, Capped, LearningRateRule, Linear, Power, Saturating, resolve_rule
from lightning_bsscale.theory.schedules import SCHEDULES, Checked, Schedule, WarmupConstant, WarmupStep
from lightning_bsscale.what_if import what_if
from tests.helpers.records import DECISION, MEASUREMENT, NOISE
from tests.helpers.written_runs import write_run

ROOT = Path(__file__).parents[1]


def counted(path, **given):
    """How many of each kind agree, and how many do not."""
    return Counter((one.kind, one.agrees) for one in replay(path, **given))


def disagreeing(path, **given):
    return [one for one in replay(path, **given) if not one.agrees]


def changed(path, event, change, number=0):
    """The journal with one line of an event changed by a function of its fields."""
    lines = path.read_text().splitlines()
    places = [place for place, line in enumerate(lines) if line.startswith(f'{{"event":"{event}"')]
    fields = json.loads(lines[places[number]])
    change(fields)
    lines[places[number]] = json.dumps(fields)
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("measure_every", [1, 8])
def test_every_window_factor_measurement_and_decision_is_computed_again(tmp_path, measure_every):
    path = write_run(tmp_path / "j", measure_every=measure_every)
    counts = counted(path)
    assert {kind for kind, agrees in counts if agrees} == set(KINDS)
    assert not [kind for kind, agrees in counts if not agrees]
    _, records = read_journal(path)
    assert counts["measurement", True] + counts["decision", True] == len(records)
    changes = [record for record in records if getattr(record, "is_change", False)]
    assert changes
    factors = [one.replayed[0] for one in replay(path) if one.kind == "factor"]
    assert factors[-2] == changes[-1].lr_scale > 1


def of_list(values, cls, **changes):
    """Change numbers of a record that is written as the list of its fields."""
    names = [field.name for field in fields(cls)]
    for name, value in changes.items():
        values[names.index(name)] = value


CHANGES = {
    "an index": ("window", lambda line: line.update(start=line["start"] + 1), {"window"}),
    "a length": ("window", lambda line: line.update(length=line["length"] + 1), {"window"}),
    "a planned length": ("window", lambda line: line.update(planned=99), {"window"}),
    "a factor": ("window", lambda line: line.update(factor=line.get("factor", 1.0) * 1.001), {"factor"}),
    "examples": ("window", lambda line: line.update(examples=5), {"measurement"}),
    "a sum": ("window", lambda line: of_list(line["arrived"]["sums"], WindowSums, mean_sq_norm=1.0), {"measurement"}),
    "a learning rate": ("window", lambda line: line.update(lr=0.7), {"measurement"}),
    "an epoch": ("epoch", lambda line: line.update(batches=50), {"window"}),
    "a measurement": ("measurement", lambda line: line.update(trace=line["trace"] * 1.001), {"measurement"}),
    "its noise": ("measurement", lambda line: of_list(line["noise"], NoiseScale, low=1.0), {"measurement"}),
    "a decision": ("decision", lambda line: line["decision"].update(reason="mine"), {"decision"}),
    "its factor": ("decision", lambda line: line.update(lr_scale=1.001), {"decision"}),
    "the end": ("end", lambda line: line["state"].update(windows=1), {"end"}),
    "the settings": ("header", lambda line: line["settings"].update(memory=10.0), {"measurement"}),
    "the rule": ("header", lambda line: line.update(lr_rule=describe(Linear())), {"factor", "decision"}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_number_disagrees(tmp_path, name):
    event, change, kinds = CHANGES[name]
    path = write_run(tmp_path / "j", 200)
    number = {"a sum": 5, "its noise": 20, "examples": 3}.get(name, 0)
    assert kinds <= {one.kind for one in disagreeing(changed(path, event, change, number))}


@pytest.mark.parametrize("event", ["measurement", "decision"])
def test_a_missing_and_a_strange_record_disagree(tmp_path, event):
    path = write_run(tmp_path / "j", 200)
    lines = path.read_text().splitlines(keepends=True)
    place = next(place for place, line in enumerate(lines) if line.startswith(f'{{"event":"{event}"'))
    path.write_text("".join([*lines[:place], *lines[place + 1 :]]))
    (missing,) = disagreeing(path)
    assert (missing.kind, missing.recorded) == (event, None)
    path.write_text("".join([*lines[:place], lines[place], *lines[place:]]))
    (strange,) = disagreeing(path)
    assert (strange.kind, strange.line, strange.replayed) == (event, place + 2, None)


@pytest.mark.filterwarnings("ignore:The last line of")
def test_a_killed_run_agrees_wherever_its_journal_ends(tmp_path):
    whole = write_run(tmp_path / "whole", 40).read_bytes()
    lines = whole.splitlines(keepends=True)
    ends = [sum(map(len, lines[:number])) + cut for number in range(1, len(lines)) for cut in (0, 20)]
    for end in ends:
        (tmp_path / "cut").write_bytes(whole[:end])
        assert not disagreeing(tmp_path / "cut")


@dataclass(frozen=True)
class Jumps:
    to: int

    def decide(self, situation, limits):
        return Decision(batch_size=self.to, reason="mine")


class Third(LearningRateRule):
    def ratio(self, old_batch, new_batch, noise):
        return (new_batch / old_batch) ** (1 / 3)


class Duck:
    def ratio(self, old_batch, new_batch, noise):
        return 1.5


class Falling(Schedule):
    def factor(self, examples_seen, total_examples, warmup_examples):
        return 1 - examples_seen / total_examples / 2


def test_logged_losses_change_nothing(tmp_path):
    """Wherever they stand: after each line, also between a window and its measurement."""
    path = write_run(tmp_path / "j", 100)
    before = counted(path)
    header, *lines = path.read_text().splitlines()
    loss = json.dumps({"event": "loss", "name": "loss", "value": "nan", "examples_seen": 8.0, "optimizer_steps": 1})
    path.write_text("\n".join([header, *(one for line in lines for one in (line, loss))]) + "\n")
    assert counted(path) == before


def test_a_policy_of_ones_own_must_be_given(tmp_path):
    path = write_run(tmp_path / "j", policy=Jumps(64))
    with pytest.raises(ValueError, match=r"written with the policy 'Jumps'.*pass the policy, replay\(path, policy="):
        list(replay(path))
    assert not disagreeing(path, policy=Jumps(64))
    assert {"window", "decision"} <= {one.kind for one in disagreeing(path, policy=Jumps(32))}


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("own", [Third(), Duck()])
def test_a_rule_of_ones_own_must_be_given(tmp_path, own, cap):
    path = write_run(tmp_path / "j", rule=resolve_rule(own, cap=cap))
    with pytest.raises(ValueError, match=rf"written with the rule '{type(own).__name__}'.*pass the rule"):
        list(replay(path))
    assert not disagreeing(path, rule=own)
    assert disagreeing(path, rule=Linear())
    if cap is not None and isinstance(own, LearningRateRule):
        assert not disagreeing(path, rule=Capped(own, cap))


def test_a_schedule_of_ones_own_must_be_given(tmp_path):
    path = write_run(tmp_path / "j", schedule=Checked(Falling()))
    with pytest.raises(ValueError, match=r"written with the schedule 'Falling'.*pass the schedule"):
        list(replay(path))
    assert not disagreeing(path, schedule=Falling())
    assert "factor" in {one.kind for one in disagreeing(path, schedule=WarmupConstant())}


def test_what_is_described_is_made_again():
    rules = [*(cls() for cls in RULES.values()), Power(0.3), Capped(Power(0.3), 7), Capped(Saturating(), 2)]
    assert [make_rule(json.loads(json.dumps(describe(rule))), "j") for rule in rules] == rules
    schedules = [*(cls() for cls in SCHEDULES.values()), WarmupStep(milestones=(0.1, 0.7), gamma=0.3)]
    assert [make_schedule(json.loads(json.dumps(describe(one))), "j") for one in schedules] == schedules
    guarded = HoldIfWorse(Sequence([Milestones({0.1: 2, 500: 4}), Largest([Seesaw(gate=None), Smith()])], at=[0.5]))
    policies = [
        *(make() for make in POLICIES.values()),
        NoiseScalePolicy(not_before=300, step_price=2, example_price="measured"),
    ]
    for policy in [
        *policies,
        Milestones({300: 64}, unit="examples"),
        NormTest(theta=0.4),
        guarded,
        HoldIfWorse(guarded),
    ]:
        described = json.loads(json.dumps(describe(policy)))
        assert make_policy(described, "j") == policy
        assert describe(make_policy(described, "j")) == described  # 300 examples stay an int


@pytest.mark.parametrize(
    "rule",
    [
        None,
        [],
        {"class": "Capped", "options": {"rule": {"class": "Sqrt", "options": {}}, "cap": 0.5}},
        {"class": "Capped", "options": {"rule": "Sqrt", "cap": 2}},
        {"class": "Power", "options": {"exponent": 7}},
        {"class": "Path", "options": {}},
    ],
)
def test_a_hostile_rule_is_refused(rule):
    with pytest.raises(ValueError, match=r"^j was written with .*pass the rule, replay\(path, rule=\.\.\.\)"):
        make_rule(rule, "j")
    nested = {"class": "Sqrt", "options": {}}
    for _ in range(900):
        nested = {"class": "Capped", "options": {"rule": nested, "cap": 2}}
    with pytest.raises(ValueError, match="written with the rule 'Capped'"):
        make_rule(nested, "j")


@pytest.mark.parametrize(
    "policy",
    [
        {"class": "Milestones", "options": {"milestones": {"0.3": 2}, "unit": "multiples", "more": 1}},
        {"class": "Sequence", "options": {"policies": [{"class": "Jumps", "options": {}}] * 2, "at": [0.5]}},
        {"class": "HoldIfWorse", "options": {"policy": "<tests.Jumps>"}},
        {"class": "HoldIfWorse", "options": {"policy": {"class": "HoldIfWorse", "options": {"policy": {"class": 3}}}}},
        {"class": "Policy", "options": {}},
    ],
)
def test_a_hostile_policy_is_refused(policy):
    with pytest.raises(ValueError, match=r"^j was written with .*pass the policy, replay\(path, policy=\.\.\.\)"):
        make_policy(policy, "j")
    for _ in range(300):
        policy = {"class": "HoldIfWorse", "options": {"policy": policy}}
    with pytest.raises(ValueError, match="pass the policy"):
        make_policy(policy, "j")


def test_a_journal_without_settings_is_named(tmp_path, capsys):
    journal = Journal(tmp_path / "j", {"policy": None})
    journal.write(DECISION)
    journal.close()
    assert main(["replay", str(journal.path)]) == 1
    assert f"{journal.path}, line 1 is no whole header: lacks settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("event", "change"),
    [
        ("window", lambda line: of_list(line["arrived"]["sums"], WindowSums, sum_sq_norms=1e300, mean_sq_norm=1e300)),
        ("window", lambda line: of_list(line["arrived"]["sums"], WindowSums, sum_inverse_sizes=0.0)),
        ("window", lambda line: line.update(start=10**6)),
        ("window", lambda line: line.update(seconds=[1.0])),
        ("header", lambda line: line["settings"]["plan"].update(plan_granularity=0)),
        ("header", lambda line: line["state"]["position"].update(before=[])),
        ("header", lambda line: line["state"]["position"].update(before=[[1]])),
        ("header", lambda line: line["state"]["position"].update(origin=[])),
        ("header", lambda line: line["settings"].update(measure_every=0)),
        ("header", lambda line: line["settings"]["now"].update(world_size=0, granularity=0)),
        ("header", lambda line: line["settings"]["limits"].update(granularity=0)),
        ("header", lambda line: line["state"]["batch"].update(start_batch_size=0, batch_size=0)),
        ("epoch", lambda line: line.update(batches=0, examples=0)),
    ],
)
def test_strange_numbers_disagree_or_are_named(tmp_path, event, change, capsys):
    path = changed(write_run(tmp_path / "j", 60), event, change, number=3 if event == "window" else 0)
    assert main(["replay", str(path)]) in (1, 3)  # it cannot be done, or does not agree
    said = "".join(capsys.readouterr())
    named = r"j, line \d+ (holds numbers that NoiseScalePolicy cannot work with \(|is no whole )"
    assert " of " in said or re.search(named, said)


def test_an_error_of_ones_own_policy_is_ones_own(tmp_path):
    class Breaks:
        def decide(self, situation, limits):
            raise ZeroDivisionError("mine")

    path = write_run(tmp_path / "j")
    for policy in (Breaks(), HoldIfWorse(Breaks())):
        with pytest.raises(ZeroDivisionError, match="mine"):
            list(replay(path, policy=policy))
        with pytest.raises(ZeroDivisionError, match="mine"):
            what_if(path, policy=policy)
    # The file's numbers stay the file's, whatever policy is given.
    changed(path, "window", lambda line: line["arrived"]["sums"].__setitem__(3, 0.0), 3)
    for use in (lambda: list(replay(path, policy=Seesaw())), lambda: what_if(path, policy=Seesaw())):
        with pytest.raises(ValueError, match=r"j, line \d+ holds numbers that .* cannot work with"):
            use()


def test_it_replays_where_torch_lightning_and_numpy_cannot_be_imported(tmp_path):
    path = write_run(tmp_path / "j")
    code = (
        "import sys\n"
        "for name in ('torch', 'lightning', 'numpy'): sys.modules[name] = None\n"
        "from lightning_bsscale.cli import main; sys.exit(main(['replay', sys.argv[1]]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 of 1 end states agree" in done.stdout


def replay_long(path, windows):
    write_run(path, windows * 2, measure_every=8, policy=Jumps(8), memory=windows / 2)
    tracemalloc.start()
    try:
        assert counted(path, policy=Jumps(8))["window", True] == windows
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_long_journal_is_replayed_in_bounded_memory(tmp_path):
    assert replay_long(tmp_path / "j", 2000) < 400_000 < (tmp_path / "j").stat().st_size


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_a_hundred_thousand_windows_are_replayed_in_bounded_memory(tmp_path):
    assert replay_long(tmp_path / "j", 100_000) < 2_000_000  # with what CPython keeps for its next objects
    assert (tmp_path / "j").stat().st_size < 25e6


def usual_window(start):
    usual = dict(length=4, factor=math.sqrt(2), seconds=(0.001235, 0.0001235), took=0.005432)
    return WindowEvent(start=start, relative_lr=significant(math.cos(start), RELATIVE_DIGITS), **usual)


def test_a_window_takes_about_150_bytes(tmp_path):
    journal = Journal(tmp_path / "j", {})
    before = journal.path.stat().st_size
    for start in range(2000):
        journal.write(usual_window(start))
    journal.close()
    assert (journal.path.stat().st_size - before) / 2000 < 160


def late_over_early(early, late, *, repeats=11):
    """The processor time of a late call over that of an early one: medians of calls made in turn."""
    seconds = {early: [], late: []}
    for _ in range(repeats):
        for call, took in seconds.items():
            started = time.process_time()
            call()
            took.append(time.process_time() - started)
    return statistics.median(seconds[late]) / statistics.median(seconds[early])


class ReadsItself(Journal):
    """Reads all of its file before each line: what a run of many windows must not cost."""

    def write(self, record):
        self.path.read_bytes().splitlines()
        super().write(record)


def late_windows_over_early(kind, folder):
    """What a window costs a journal that has 10,000, over what it costs one that has a tenth of them."""
    journals = {}
    for windows in (1000, 10_000):
        journals[windows] = made = kind(folder / f"{windows}.jsonl", {})
        for start in range(windows):
            Journal.write(made, usual_window(start))
    calls = [lambda made=made: [made.write(usual_window(start)) for start in range(30)] for made in journals.values()]
    ratio = late_over_early(*calls)
    for made in journals.values():
        made.close()
    return ratio


def test_the_ten_thousandth_window_is_written_as_fast_as_the_thousandth(tmp_path):
    # All windows of a run of N then cost in proportion to N, not to its square.
    assert late_windows_over_early(Journal, tmp_path) < LINEAR


def test_a_journal_that_reads_itself_is_found(tmp_path):
    assert late_windows_over_early(ReadsItself, tmp_path) > LINEAR


def late_replay_over_early(path, policy):
    """What a window costs after a thousand others of a replay, over what it costs at its beginning."""
    early, late = replay(path, policy=policy()), replay(path, policy=policy())
    deque(itertools.islice(late, 2 * 1000), maxlen=0)  # each window comes with its factor
    calls = [lambda made=made: deque(itertools.islice(made, 20), maxlen=0) for made in (early, late)]
    return late_over_early(*calls)


class Remembers(Jumps):
    """Looks at everything that it was ever asked, at each window."""

    def decide(self, situation, limits):
        asked = self.__dict__.setdefault("asked", [])
        asked.append(situation.examples_seen)
        assert sum(map(math.sqrt, 200 * asked)) > 0
        return super().decide(situation, limits)


def test_the_last_windows_are_replayed_as_fast_as_the_first(tmp_path):
    path = write_run(tmp_path / "j", 2400, measure_every=8, policy=Jumps(8), memory=600.0)
    assert late_replay_over_early(path, lambda: Jumps(8)) < LINEAR
    assert late_replay_over_early(path, lambda: Remembers(8)) > LINEAR  # a planted quadratic replay is found


LINEAR = 3.0
"""A ratio of costs that a busy machine does not reach, and that ten times the windows exceed where each costs more."""


LONG = 100 / 3  # all its digits
WINDOW = WindowEvent(
    start=123_456, length=16, factor=LONG, relative_lr=0.123456789, seconds=(0.01235, 0.001235), took=0.123456
)
TO_MEASURE = replace(WINDOW, lr=LONG, has_sums=True)
SUMS = WindowSums(sum_sq_norms=LONG, mean_sq_norm=LONG, num_samples=16, sum_inverse_sizes=LONG, examples=512.0)
OF_RANKS = Arrived(
    sums=replace(SUMS, sum_weights=LONG, sum_sq_weights=LONG),
    explained=True,
    examples=4096,
    seconds_per_loader_batch=LONG,
    seconds_per_step=LONG,
    seconds_per_row=0.000123456,
    row_limit=512,
)
NUMBERS = [field.name for field in fields(NOISE) if field.name not in ("resolved", "confidence")]
MEASURED = replace(MEASUREMENT, examples_seen=123_456_789, optimizer_steps=1_234_567, batch_size=1024, trace=LONG)
MEASURED = replace(MEASURED, window_examples=1024, grad_sq=LONG, lr=LONG, lr_scale=LONG)


@pytest.mark.parametrize(
    ("record", "most"),
    [
        (WindowEvent(start=0, length=1), 40),
        (WINDOW, 190),
        (TO_MEASURE, 190),
        (replace(TO_MEASURE, arrived=Arrived(sums=SUMS)), 280),
        (replace(TO_MEASURE, has_sums=False, arrived=OF_RANKS), 460),
        (replace(MEASURED, noise=replace(NOISE, **dict.fromkeys(NUMBERS, LONG))), 490),
    ],
)
def test_lines_are_as_short_as_the_reference_says(tmp_path, record, most):
    journal = Journal(tmp_path / "j", {})
    before = journal.path.stat().st_size
    journal.write(record)
    journal.close()
    assert journal.path.stat().st_size - before <= most
    _, (_, found) = read_lines(journal.path)
    assert found == record
