"""The command that sums a run up: verdict and decisions from a journal, also of a run that has not ended."""

import json
import warnings

import pytest

from lightning_bsscale import GradientNoiseScaleMonitor
from lightning_bsscale.cli import main
from lightning_bsscale.verdict import read_facts, verdict_of
from tests.helpers.expected_warnings import CANNOT_MEASURE
from tests.helpers.training import Regression, fit, regression_loader
from tests.helpers.written_runs import write_run


def words_of(text):
    return text.split()


def test_the_verdict_and_the_decisions(tmp_path, capsys):
    path = write_run(tmp_path / "j")
    assert main(["summary", str(path)]) == 0
    told = capsys.readouterr()
    verdict, facts = verdict_of(read_facts(path)), read_facts(path)
    paragraphs = told.out.split("\n\n")
    assert paragraphs[0] == verdict.headline
    assert words_of(" ".join(paragraphs[:-1]).replace("Next: ", "")) == words_of(str(verdict).replace("Next: ", ""))
    assert max(map(len, told.out.splitlines())) <= 100
    assert sum(" -> " in line for line in paragraphs[-1].splitlines()) == facts.decisions.changes > 0
    assert (told.err, "has no end" in told.out) == ("", False)


def test_a_run_that_was_killed(tmp_path, capsys):
    whole = write_run(tmp_path / "j").read_bytes()
    (tmp_path / "killed").write_bytes(whole[: len(whole) * 2 // 3])
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["summary", str(tmp_path / "killed")]) == 0
    told = capsys.readouterr()
    assert "The journal has no end: the run was interrupted, or is still training." in told.out
    assert " -> " in told.out
    assert told.err.startswith("note: The last line of ")


def test_json_is_the_same_in_numbers(tmp_path, capsys):
    paths = [write_run(tmp_path / name, size) for name, size in (("a", 400), ("b", 60))]
    assert main(["summary", *map(str, paths), "--json"]) == 0
    told = capsys.readouterr()
    runs = json.loads(told.out, parse_constant=pytest.fail)["runs"]
    assert told.err == ""
    for path, run in zip(paths, runs, strict=True):
        facts = read_facts(path)
        assert run["journal"] == str(path)
        assert run["headline"] == verdict_of(facts).headline
        assert (run["batch_size"], run["optimizer_steps"]) == (facts.batch_size, facts.optimizer_steps)
        assert (run["changes"], len(run["decisions"])) == (facts.decisions.changes, len(facts.decisions.records))
        assert run["has_end"] is True
    assert runs[0]["noise_scale"]["low"] < runs[0]["noise_scale"]["value"] < runs[0]["noise_scale"]["high"]
    grown = [one for one in runs[0]["decisions"] if one["is_change"]]
    assert grown[-1]["batch_size"] == runs[0]["batch_size"] > runs[0]["start_batch_size"]
    assert all(one["target"] >= one["needed"] for one in grown)
    assert runs[1]["decisions"][0]["noise_scale_high"] is None  # infinite


def test_what_cannot_be_read_does_not_hide_the_others(tmp_path, capsys):
    good, bad = write_run(tmp_path / "good"), tmp_path / "bad"
    bad.write_text("hello\n")
    for words, expected in (([], "The batch grew"), (["--json"], '"journal": ')):
        assert main(["summary", str(bad), str(good), str(tmp_path / "none"), *words]) == 1
        told = capsys.readouterr()
        assert expected in told.out
        assert told.out.count(str(good)) == 1
        assert told.err.splitlines() == [
            f"{bad} is not a journal: its first line must be a header, as BatchSizeScaler(record=True) writes it.",
            f"no such journal: {tmp_path / 'none'}",
        ]
    assert main(["summary", str(bad), "--json"]) == 1
    assert capsys.readouterr().out == ""


def test_numbers_that_do_not_belong_together_are_no_traceback(tmp_path, capsys):
    path = write_run(tmp_path / "j", 60)
    path.write_text(path.read_text().replace('"granularity":4', '"granularity":0'))
    assert main(["summary", str(path)]) == 1
    told = capsys.readouterr()
    assert (told.out, str(path) in told.err, told.err.count("\n")) == ("", True, 1)


@CANNOT_MEASURE
def test_a_monitor_has_no_decisions(tmp_path, capsys):
    monitor = GradientNoiseScaleMonitor(record=tmp_path / "j", measure_every=1)
    fit(Regression(), regression_loader(64), [monitor], max_epochs=1, accumulate_grad_batches=2)
    assert main(["summary", str(monitor.journal_path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("The noise scale was measured, at a batch of 8 examples.")
    assert said.endswith("A monitor decides nothing: there is no table.\n")
