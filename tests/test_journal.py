"""The journal: what is written is what is read, and bad files are named."""

import io
import json
import math
import os

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
    return journal


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
    other = write(path, other).path
    assert other != path
    assert not next(iter(replay(other))).agrees


def test_a_resumed_run_continues_after_what_its_checkpoint_knew(tmp_path):
    written = write(tmp_path / "j", DECISION, MEASUREMENT, DECISION)
    again = Journal(tmp_path / "j", {}, resumes=written.state() | {"records": 1})
    assert (again.path, again.is_continued, again.records, again.replaced) == (tmp_path / "j", True, 1, 2)
    again.write(DECISION)
    assert again.records == 2
    again.close()
    assert read_journal(tmp_path / "j")[1] == [DECISION, DECISION]


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_torn_line_is_repaired_wherever_it_was_cut(tmp_path, cut):
    path = tmp_path / "j"
    state = write(tmp_path / "begun", DECISION).state() | {"path": str(path)}
    header = len((tmp_path / "begun").read_bytes().splitlines(keepends=True)[0])
    one = (tmp_path / "begun").stat().st_size
    begun = Journal(tmp_path / "begun", {}, resumes=state | {"path": "begun"})
    begun.write(MEASUREMENT)
    begun.close()
    (tmp_path / "begun").rename(path)
    two = path.stat().st_size
    kept = two - cut * (two // 40) - 1  # from within the last line back into the header
    os.truncate(path, kept)
    whole = 1 if kept >= one else 0
    torn = path.read_bytes()
    journal = Journal(path, {"policy": None}, resumes=state | {"records": 2})
    assert journal.is_continued == (kept >= header)
    assert journal.records == whole
    journal.write(MEASUREMENT)
    journal.close()
    _, records = read_journal(journal.path)
    assert records[:-1] == [DECISION] * whole
    assert records[-1].examples_seen == MEASUREMENT.examples_seen
    if not journal.is_continued:  # without its header nobody knows whose it is
        assert journal.path == tmp_path / "j-v1"
        assert path.read_bytes() == torn


def test_reading_leaves_a_torn_last_line_out_and_says_so(tmp_path):
    write(tmp_path / "j", DECISION, MEASUREMENT)
    os.truncate(tmp_path / "j", (tmp_path / "j").stat().st_size - 3)
    with pytest.warns(UserWarning, match="last line of .*j was cut while it was written"):
        _, records = read_journal(tmp_path / "j")
    assert records == [DECISION]


def test_a_full_disk_ends_the_journal_and_not_the_training(tmp_path):
    class Full(io.FileIO):
        def write(self, text):
            super().write(text[:20])
            raise OSError(28, "No space left on device")

    journal = Journal(tmp_path / "j", {})
    journal.write(DECISION)
    journal._file.close()
    journal._file = Full(tmp_path / "j", "a")
    with pytest.warns(UserWarning, match="ends here .*No space left"):
        journal.write(MEASUREMENT)
    journal.write(DECISION)
    journal.close()
    assert read_journal(tmp_path / "j")[1] == [DECISION]  # and no half line


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
        ('{"event": "header", "schema": 1}\n{"event": "deci\n', "line 2 is no JSON"),
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
