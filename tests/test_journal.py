"""The journal: what is written is what is read, and bad files are named."""

import json
import math
import os

import pytest

from lightning_bsscale.journal import (
    DecisionRecord,
    Journal,
    Measurement,
    as_plain,
    describe_policy,
    from_plain,
    read_journal,
    replay,
)
from lightning_bsscale.summary import describe_noise, summary_table
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
    decision=NoiseScalePolicy().decide(SITUATION, LIMITS),
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


def test_a_run_that_goes_on_writes_on_after_what_its_checkpoint_knew(tmp_path):
    write(tmp_path / "j", DECISION, MEASUREMENT, DECISION)
    again = Journal(tmp_path / "j", {}, keep=1)
    assert again.records == 1
    again.write(DECISION)
    assert again.records == 2
    again.close()
    assert read_journal(tmp_path / "j")[1] == [DECISION, DECISION]
    new = Journal(tmp_path / "new", {}, keep=3)  # the log folder of a resumed run may be another one
    assert new.records == 0
    new.close()
    assert read_journal(tmp_path / "new")[1] == []


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_torn_line_is_repaired_wherever_it_was_cut(tmp_path, cut):
    path = tmp_path / "j"
    write(path, DECISION)
    one = path.stat().st_size
    write(path, DECISION, MEASUREMENT)
    two = path.stat().st_size
    kept = two - cut * (two // 40) - 1  # from within the last line back into the header
    os.truncate(path, kept)
    whole = 1 if kept >= one else 0
    journal = Journal(path, {"policy": None}, keep=2)
    assert journal.records == whole
    journal.write(MEASUREMENT)
    journal.close()
    _, records = read_journal(path)
    assert records[:-1] == [DECISION] * whole
    assert records[-1].examples_seen == MEASUREMENT.examples_seen


def test_reading_leaves_a_torn_last_line_out_and_says_so(tmp_path):
    write(tmp_path / "j", DECISION, MEASUREMENT)
    os.truncate(tmp_path / "j", (tmp_path / "j").stat().st_size - 3)
    with pytest.warns(UserWarning, match="last line of .*j was cut while it was written"):
        _, records = read_journal(tmp_path / "j")
    assert records == [DECISION]


@pytest.mark.parametrize("keep", [None, 2])
def test_a_file_that_is_no_journal_is_left_alone(tmp_path, keep):
    for text in ("notes\n", "{}\n", '{"event": "decision"}\n'):
        (tmp_path / "mine.txt").write_text(text)
        with pytest.raises(ValueError, match=r"is there and is no journal. It is left as it is"):
            Journal(tmp_path / "mine.txt", {}, keep=keep)
        assert (tmp_path / "mine.txt").read_text() == text


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
    indent = lines[0].index("reason")
    assert " ".join(line[indent:] for line in lines[1:]) == Reason.UNRESOLVED.value
    assert max(map(len, lines)) <= 120
