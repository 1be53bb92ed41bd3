"""The journal: what is written is what is read, and bad files are named."""

import io
import json
import math
import os
import random
import socket
import sys
import tracemalloc
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest

from lightning_bsscale.cli import main
from lightning_bsscale.journal import Journal, RuleEvent, read_journal, read_lines, run_header
from lightning_bsscale.replay import replay
from lightning_bsscale.summary import describe_noise, summary_table
from lightning_bsscale.theory import events
from lightning_bsscale.theory.described import describe
from lightning_bsscale.theory.events import EndEvent, EpochEvent, WindowEvent
from lightning_bsscale.theory.losses import LossEvent
from lightning_bsscale.theory.measured import Arrived
from lightning_bsscale.theory.policies import NoiseScalePolicy
from lightning_bsscale.theory.rules import Capped, Power
from lightning_bsscale.theory.run import begin_run
from lightning_bsscale.theory.stored import as_plain
from tests.helpers.records import DECISION, MEASUREMENT, NOISE
from tests.helpers.written_runs import settings_of, sums_of

SETTINGS = settings_of(100)
BEGUN = begin_run(SETTINGS, SETTINGS.plan.begin(epoch_batches=100, epoch_examples=400), epoch=0)


def write(path, *records):
    journal = Journal(path, {"policy": describe(NoiseScalePolicy())})
    for record in records:
        journal.write(record)
    journal.close()
    journal.close()
    return journal


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "a" / "journal.jsonl"
    write(path, MEASUREMENT, DECISION)
    header, records = read_journal(path)
    assert (header["schema"], records[1]) == (2, DECISION)
    assert write(path, DECISION).path == tmp_path / "a" / "journal-v1.jsonl"


EVENTS = [
    EpochEvent(
        epoch=3, batches=None, examples=None, first=2, ready=9, window=events.Progress(start=7, begun=2, ended=1)
    ),
    WindowEvent(start=2, length=3),
    WindowEvent(
        start=5,
        length=1,
        planned=2,
        ready=8,
        accumulate=2,
        examples=7,
        is_last=True,
        lr=math.inf,
        factor=1.5,
        scheduled=0.25,
        lr_scale=1.25,
        has_sums=True,
        sends=False,
        arrived=Arrived(sums=sums_of(2, random.Random(0)), explained=False, examples=8),
        is_asked=False,
        relative_lr=0.5,
        seconds=(0.001, None),
    ),
    events.DropEvent(ready=3),
    RuleEvent(rule=describe(Capped(Power(0.7), 4))),
    events.SchedulersEvent(frequencies=(1, 3)),
    events.GiveUpEvent(),
    events.MetricEvent(name="val_loss", value=math.inf),
    LossEvent(name="loss", value=math.inf, examples_seen=80.0, optimizer_steps=7),
    EndEvent(ready=3, state=BEGUN),
]


def test_events_come_back_and_defaults_take_no_room(tmp_path):
    journal = write(tmp_path / "j", *EVENTS)
    assert [line for _, line in read_lines(journal.path)][1:] == EVENTS
    assert read_journal(journal.path)[1] == []
    assert journal.path.read_text().splitlines()[2] == '{"event":"window","start":2,"length":3}'
    assert journal.records == len(EVENTS)


def test_a_run_without_a_step_leaves_no_file(tmp_path):
    assert write(tmp_path / "j", EVENTS[0], EVENTS[-1]).is_removed
    assert not write(tmp_path / "j", EVENTS[0], WindowEvent(start=0, length=1)).is_removed


def test_a_resumed_run_continues_after_what_its_checkpoint_knew(tmp_path):
    written = write(tmp_path / "j", DECISION, MEASUREMENT, DECISION)
    again = Journal(tmp_path / "j", {}, resumes=written.state() | {"records": 1})
    assert (again.path, again.is_continued, again.kept, again.replaced) == (tmp_path / "j", True, 1, 2)
    again.write(DECISION)
    assert again.records == 3  # with the line that says what the resumed run is done with
    again.close()
    assert read_journal(tmp_path / "j")[1] == [DECISION, DECISION]


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_torn_line_is_repaired_wherever_it_was_cut(tmp_path, cut):
    path = tmp_path / "j"
    written = write(path, DECISION, MEASUREMENT)
    lines = path.read_bytes().splitlines(keepends=True)
    header, one, two = accumulate(map(len, lines))
    kept = two - cut * (two // 40) - 1  # from within the last line back into the header
    os.truncate(path, kept)
    whole, torn = int(kept >= one), path.read_bytes()
    journal = Journal(path, {"policy": None}, resumes=written.state())
    assert (journal.is_continued, journal.kept) == (kept >= header, whole)
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
    with pytest.warns(UserWarning, match="last line of .*j "):
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


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "is not a journal"),
        ('{"event": "decision"}\n', "first line must be a header"),
        ('{"event": "header", "schema": 1}\n', "schema 1; this version reads 2"),
        ("[1, 2]\n", "is not a journal"),
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
    indent = lines[1].index("reason")
    assert [line[indent:] for line in lines[2:]] == ["hold: not resolved"]
    assert max(map(len, lines)) <= 100


FIRST = json.dumps({"event": "header", "schema": 2, **run_header(SETTINGS, BEGUN)})
LINE = json.dumps({"event": "decision", **as_plain(DECISION)})
MEASURED = json.dumps({"event": "measurement", **as_plain(MEASUREMENT)})


def changed(line, *path, to=None, without=False):
    """The line with one field replaced (`to` is JSON), or taken away."""
    fields = json.loads(line)
    inner = fields
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = "THIS"
    if without:
        del inner[path[-1]]
    return json.dumps(fields).replace('"THIS"', to or "")


HOSTILE = {
    "deep": ("[" * 100_000, "line 2 .*nested"),
    "deep within": (changed(LINE, "lr_rule", to='{"a":' * 5000 + "1" + "}" * 5000), "line 2 .*nested"),
    "many digits": (changed(LINE, "batch_size", to="9" * 100_000), "line 2 .*100,000 digits"),
    "digits": (changed(LINE, "batch_size", to="9" * 309), r"batch_size .*9+ \.\.\."),
    "1e999": (changed(LINE, "lr_scale", to="1e999"), 'lr_scale .*"inf", "-inf" or "nan".*inf'),
    "NaN": (changed(LINE, "lr_scale", to="NaN"), "line 2 .*NaN"),
    "Infinity": (changed(LINE, "lr_scale", to="-Infinity"), "line 2 .*-Infinity"),
    "a word": (changed(LINE, "lr_scale", to='"1_0"'), "lr_scale .*'1_0'"),
    "a bool": (changed(MEASURED, "lr", to="true"), "measurement: lr .*True"),
    "below zero": (changed(MEASURED, "examples_seen", to="-1"), "examples_seen .*-1"),
    "a fraction": (changed(MEASURED, "batch_size", to="8.5"), r"batch_size .*8\.5"),
    "a list": (changed(LINE, "decision", to="[8]"), r"decision .*Decision.*\[8\]"),
    "null": (changed(LINE, "situation", to="null"), "situation .*Situation.*None"),
    "nested": (changed(LINE, "situation", "noise", "low", to="{}"), r"situation\.noise\.low .*\{\}"),
    "a record less": (changed(LINE, "limits", without=True), "line 2 .*decision.*limits"),
    "a field less": (changed(LINE, "situation", "noise", "low", without=True), r"situation\.noise .*low"),
    "a field more": (changed(LINE, "limits", "extra", to="1"), "limits .*'extra'"),
    "no batch": (changed(LINE, "limits", "granularity", to="0"), "granularity .*0"),
    "an event": (
        changed(LINE, "event", to='["decision"]'),
        r"unknown event \['decision'\]; known are measurement, decision, window, epoch, ",
    ),
    "a null event": (changed(LINE, "event", to="null"), "unknown event None"),
    "NUL bytes": ("\0" * 1000, "line 2 is no JSON"),
    "no UTF-8": (LINE.replace("sqrt", "\udcff"), "line 2 is no JSON: 'utf-8' codec can't decode byte 0xff"),
    "a number": ("3", "line 2 is no JSON object, got 3"),
    "a long string": (json.dumps("x" * 500_000), r"line 2 is no JSON object, got 'x+ \.\.\."),
    "a long line": (" " * 2**20, r"line 2 is longer than 1,048,576 bytes"),
    "a window without its start": ('{"event":"window","length":2}', "line 2 is no whole window: lacks start"),
    "half a window": ('{"event":"window","start":0,"length":0.5}', "length must be a whole number of at least 0"),
    "half a sum": (
        '{"event":"window","start":0,"length":2,"arrived":{"sums":{"examples":8}}}',
        r"line 2 is no whole window: arrived.sums lacks mean_sq_norm, num_samples",
    ),
    "an end without a state": ('{"event":"end","ready":0}', "line 2 is no whole end: lacks state"),
}


def expect_refused(path, match, capsys):
    """By both readers in a bounded sentence that names the file, and by the command with status 1 and that sentence."""
    with pytest.raises(ValueError, match=match) as refused:
        list(replay(path))
    sentence = str(refused.value)
    assert str(path) in sentence
    assert len(sentence) < len(str(path)) + 400
    assert main(["replay", str(path)]) == 1
    told = capsys.readouterr()
    assert told.err.removesuffix(" There is no .jsonl file in it.\n").removesuffix("\n") == sentence
    assert told.out == ""


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_line_is_refused_in_a_sentence(name, tmp_path, capsys):
    line, match = HOSTILE[name]
    path = tmp_path / "j"
    path.write_bytes(f"{FIRST}\n{line}\n{LINE}\n".encode(errors="surrogateescape"))
    expect_refused(path, match, capsys)
    with pytest.raises(ValueError, match=match):
        read_journal(path)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["/dev/zero", "a link to it", "a pipe", "a folder", "a socket", "3 GiB", "3 GiB more"])
def test_what_is_no_file_of_lines_is_not_read(name, tmp_path, capsys, monkeypatch):
    path = tmp_path / "j"
    match = "device.*regular file"
    if name == "/dev/zero":
        path = Path(name)
    elif name == "a link to it":
        path.symlink_to("/dev/zero")
    elif name == "a pipe":
        os.mkfifo(path)
        match = "named pipe.*regular file"
    elif name == "a folder":
        path.mkdir()
        match = "folder.*regular file"
    elif name == "a socket":
        monkeypatch.chdir(tmp_path)  # a socket's path is short
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("j")
        match = "socket.*regular file"
    else:
        path.write_text("" if name == "3 GiB" else f'{FIRST}\n{{"event":"gave_up"}}\n')
        os.truncate(path, 3 * 2**30)  # a hole: it takes no room on the disk
        match = f"line {1 if name == '3 GiB' else 3} is longer than 1,048,576 bytes"
    tracemalloc.start()
    try:
        expect_refused(path, match, capsys)
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "policy",
    [
        "[]",
        '{"class": ["NoiseScalePolicy"], "options": {}}',
        '{"class": "NoiseScalePolicy", "options": [1]}',
        '{"class": "NoiseScalePolicy", "options": {"self": 1}}',
        '{"class": "NoiseScalePolicy", "options": {"target_ratio": 1e999}}',
        '{"class": "NoiseScalePolicy", "options": {"target_ratio": {"a": [1]}}}',
        '{"class": "Path", "options": {}}',
        '{"class": "' + "x" * 100_000 + '", "options": {}}',
    ],
    ids=lambda policy: policy[:60],
)
def test_a_hostile_header_makes_no_policy(policy, tmp_path, capsys):
    path = tmp_path / "j"
    path.write_text(f"{changed(FIRST, 'policy', to=policy)}\n{LINE}\n")
    expect_refused(path, r"pass the policy, replay\(path, policy=\.\.\.\)", capsys)


@pytest.mark.parametrize("schema", ["true", "1e999", '{"a": 1}', "9" * 100_000, "[" * 100_000])
def test_a_hostile_schema(schema, tmp_path, capsys):
    path = tmp_path / "j"
    path.write_text(f'{{"event": "header", "schema": {schema}}}\n')
    expect_refused(path, "has journal schema|is not a journal", capsys)


def test_a_path_that_the_terminal_cannot_show(tmp_path, capsys, monkeypatch):
    assert main(["replay", "a\0b"]) == 1
    assert "embedded null " in capsys.readouterr().err
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main(["replay", f"{tmp_path}/\udcff\u2028"]) == 1
    assert terminal.buffer.getvalue() == f"no such journal: {tmp_path}/\\udcff\\u2028\n".encode()


def test_half_a_surrogate_pair_in_a_reason_is_written_and_read_again(tmp_path):
    odd = replace(DECISION, decision=replace(DECISION.decision, reason="half \ud800 ‖G‖\n\u2028"))
    assert read_journal(write(tmp_path / "j", odd).path)[1] == [odd]


def test_a_record_that_is_too_long_is_left_out(tmp_path):
    long = replace(DECISION, decision=replace(DECISION.decision, reason="x" * 2**20))
    with pytest.warns(UserWarning, match=r"1,0.* bytes"):
        written = write(tmp_path / "j", DECISION, long, DECISION)
    assert written.records == 2
    assert read_journal(written.path)[1] == [DECISION] * 2


def test_a_header_that_is_too_long_loses_what_is_long(tmp_path):
    policy = {"class": "Mine", "options": {"table": ["x"] * 10**6}}
    journal = Journal(tmp_path / "j", {"policy": policy, "lr_rule": "a"})
    journal.write(DECISION)
    journal.close()
    header, records = read_journal(journal.path)
    assert (header["policy"], header["lr_rule"], header["id"]) == (None, "a", journal.id)
    assert records == [DECISION]


@pytest.mark.parametrize("batch_size", [8, 8.0, 11.9, 10**300])
def test_whatever_batch_a_policy_may_ask_for_is_read_again(batch_size, tmp_path):
    asked = replace(DECISION, decision=replace(DECISION.decision, batch_size=batch_size))
    assert read_journal(write(tmp_path / "j", asked).path)[1] == [asked]
