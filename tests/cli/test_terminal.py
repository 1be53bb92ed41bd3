"""What commands write beside their answer."""

import json
import math
import re
import time
import warnings

import pytest

from lightning_bsscale.cli.terminal import Working, problem_with, short_warnings, write_json
from lightning_bsscale.verdict import read_facts
from tests.helpers.written_runs import write_run


def test_long_work_says_that_it_goes_on(capsys):
    with Working("reading run.jsonl", first=0.02, then=0.02) as working:
        working.at = "line 7"
        time.sleep(0.3)
    told = capsys.readouterr()
    lines = told.err.splitlines()
    assert len(lines) > 1
    assert all(re.fullmatch(r"reading run.jsonl(, line 7)? \.\.\. \(\d+ s\)", line) for line in lines)
    assert told.out == ""


def test_short_work_says_nothing(capsys):
    with Working("reading", first=60):
        pass
    with pytest.raises(KeyboardInterrupt), Working("reading", first=60):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == ""


def test_warnings_of_the_package_are_notes_and_others_stay(tmp_path, capsys):
    whole = write_run(tmp_path / "j", 40).read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-20])
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        others = []
        warnings.showwarning = lambda message, *_: others.append(str(message))
        with short_warnings():
            read_facts(tmp_path / "cut")
            warnings.warn("of another", stacklevel=1)
    note = f"note: The last line of {tmp_path / 'cut'} was cut while it was written; it is left out.\n"
    assert (capsys.readouterr().err, others) == (note, ["of another"])


def test_json_has_no_words_for_numbers(capsys):
    write_json({"high": math.inf, "all": [math.nan, (-math.inf, 1.5)], "word": "inf"})
    assert json.loads(capsys.readouterr().out) == {"high": None, "all": [None, [None, 1.5]], "word": "inf"}


def test_a_folder_is_told_what_it_holds(tmp_path):
    refused = ValueError(f"{tmp_path} is a folder.")
    assert problem_with(tmp_path, refused).endswith("is a folder. There is no .jsonl file in it.")
    for name in ("b.jsonl", "a.jsonl", "notes.txt"):
        (tmp_path / name).touch()
    assert problem_with(tmp_path, refused).endswith("is a folder. It holds a.jsonl, b.jsonl.")
    for name in "cdefg":
        (tmp_path / f"{name}.jsonl").touch()
    assert problem_with(tmp_path, refused).endswith("It holds a.jsonl, b.jsonl, c.jsonl and 4 more.")
