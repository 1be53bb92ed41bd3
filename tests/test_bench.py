"""benchmarks/bench.py: it knows every benchmark and every picture, and resumes."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def bench(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import bench

    monkeypatch.setattr(bench, "DONE", tmp_path / "done.json")
    return bench


def test_every_command_of_the_readme_is_run_but_the_one_for_a_gpu(bench):
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `python (benchmarks/\w+\.py)", text, flags=re.MULTILINE))
    run = {shlex.split(command.line)[0] for command in bench.BENCHMARKS.values()}
    assert listed - run == {"benchmarks/gpu.py"}
    assert all(command.script.exists() for command in (*bench.BENCHMARKS.values(), *bench.PICTURES.values()))


def test_every_script_that_draws_for_the_docs_is_run(bench):
    drawn = {command.line.split()[0] for command in bench.PICTURES.values()}
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("draw_*.py")} <= drawn


def test_a_stopped_run_resumes_with_the_next_one(bench, monkeypatch, capsys, tmp_path):
    commands = {name: bench.Command(f"benchmarks/{name}.py", 0.1) for name in ("digits", "deep", "averages")}
    monkeypatch.setattr(bench, "BENCHMARKS", commands)
    monkeypatch.setattr(bench, "PICTURES", {})
    made, fails = [], {"averages"}
    monkeypatch.setattr(bench, "run", lambda name, command: made.append(name) or int(name in fails))
    monkeypatch.setattr(sys, "argv", ["bench.py"])
    assert bench.main() == 1
    assert "Failed: averages." in capsys.readouterr().err
    assert json.loads(bench.DONE.read_text()).keys() == {"digits", "deep"}
    fails.clear()
    assert bench.main() == 0
    assert made == ["digits", "deep", "averages", "averages"]
    # Another script is another benchmark.
    monkeypatch.setattr(bench, "digest", lambda command: "new")
    monkeypatch.setattr(sys, "argv", ["bench.py", "--list"])
    assert bench.main() == 0
    assert capsys.readouterr().out.count(" to do ") == 3


def test_an_unknown_name_is_refused(bench, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.py", "--only", "digit"])
    with pytest.raises(SystemExit):
        bench.main()
    assert "--only has digit, but the names are digits, " in capsys.readouterr().err
