"""The journal: what is written is what is read, and bad files are named."""

import json
import math

import pytest

from lightning_bsscale.journal import (
    DecisionRecord,
    Journal,
    Measurement,
    as_plain,
    describe_noise,
    describe_policy,
    from_plain,
    read_journal,
    replay,
    summary_table,
)
from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.policies import Decision, Limits, NoiseScalePolicy, Reason, Situation

NOISE = NoiseScale(
    noise_scale=math.inf,
    low=3.5,
    high=math.inf,
    trace=2.0,
    grad_sq=-0.1,
    effective_windows=7.5,
    resolved=False,
    trace_variance=0.1,
    grad_sq_variance=0.2,
    covariance=-0.01,
    confidence=0.9,
)
SITUATION = Situation(batch_size=8, start_batch_size=8, examples_seen=100, total_examples=1000, noise=NOISE)
LIMITS = Limits(granularity=8, min_batch_size=8, max_batch_size=64)
DECISION = DecisionRecord(
    situation=SITUATION,
    limits=LIMITS,
    decision=Decision(batch_size=8, reason=Reason.UNRESOLVED.value),
    batch_size=8,
    lr_scale=1.0,
    lr_rule="sqrt",
)
MEASUREMENT = Measurement(
    examples_seen=100,
    optimizer_steps=12,
    batch_size=8,
    accumulate_grad_batches=2,
    window_examples=16,
    trace=math.nan,
    grad_sq=-math.inf,
    noise=None,
    lr=0.1,
    lr_scale=1.5,
)


@pytest.mark.parametrize("record", [DECISION, NOISE, SITUATION])
def test_records_come_back(record):
    plain = json.loads(json.dumps(as_plain(record), allow_nan=False))
    assert from_plain(type(record), plain) == record


def test_not_a_number_comes_back():
    again = from_plain(Measurement, json.loads(json.dumps(as_plain(MEASUREMENT), allow_nan=False)))
    assert math.isnan(again.trace)
    assert again.grad_sq == -math.inf
    assert again.noise is None


def write(path, *records, policy=None):
    journal = Journal(path, {"policy": describe_policy(policy or NoiseScalePolicy())})
    for record in records:
        journal.write(record)
    journal.close()
    journal.close()


def test_write_read_replay(tmp_path):
    path = tmp_path / "a" / "journal.jsonl"
    write(path, MEASUREMENT, DECISION)
    header, records = read_journal(path)
    assert header["schema"] == 1
    assert records[1] == DECISION
    (again,) = replay(path)
    assert again.agrees
    assert again.recorded == again.replayed == DECISION.decision
    # The options of the policy travel too: without its warmup gate's input the twin disagrees.
    other = DecisionRecord(
        situation=SITUATION,
        limits=LIMITS,
        decision=Decision(batch_size=16, reason="another"),
        batch_size=16,
        lr_scale=2.0,
        lr_rule="linear",
    )
    write(path, other)
    assert not next(iter(replay(path))).agrees


def test_a_run_that_goes_on_appends(tmp_path):
    write(tmp_path / "j", DECISION)
    again = Journal(tmp_path / "j", {}, append=True)
    again.write(DECISION)
    again.close()
    assert read_journal(tmp_path / "j")[1] == [DECISION, DECISION]
    Journal(tmp_path / "new", {}, append=True).close()
    assert read_journal(tmp_path / "new")[1] == []


def test_a_full_disk_ends_the_journal_and_not_the_training(tmp_path):
    class Full:
        def write(self, text):
            raise OSError(28, "No space left on device")

    journal = Journal(tmp_path / "j", {})
    journal._file.close()
    journal._file = Full()
    with pytest.warns(UserWarning, match="ends here .*No space left"):
        journal.write(DECISION)
    journal.write(DECISION)
    journal.close()


def test_a_foreign_policy_must_be_given(tmp_path):
    class Mine:
        def decide(self, situation, limits):
            return Decision(batch_size=8, reason="mine")

    write(tmp_path / "j", DECISION, policy=Mine())
    with pytest.raises(ValueError, match=r"written with the policy 'Mine'.*pass the policy"):
        list(replay(tmp_path / "j"))
    assert not next(iter(replay(tmp_path / "j", Mine()))).agrees


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "is not a journal"),
        ('{"event": "decision"}\n', "first line must be a header"),
        ('{"event": "header", "schema": 7}\n', "schema 7; this version reads 1"),
        ('{"event": "header", "schema": 1}\n{"event": "odd"}\n', "line 2: unknown event 'odd'"),
        ('{"event": "header", "schema": 1}\n{"event": "deci', "line 2 is no JSON"),
        ("[1, 2]\n", "line 1 is no JSON object"),
    ],
)
def test_bad_files_are_named(tmp_path, text, match):
    (tmp_path / "j").write_text(text)
    with pytest.raises(ValueError, match=match):
        read_journal(tmp_path / "j")


def test_summary():
    assert describe_noise(None) == "unknown"
    assert describe_noise(NOISE) == "inf [3.5, inf]"
    lines = summary_table([DECISION]).splitlines()
    assert len(lines) == 2
    assert lines[1].endswith(Reason.UNRESOLVED.value)
