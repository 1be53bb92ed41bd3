"""Every example runs alone, from any folder, and says what it found."""

import contextlib
import io
import os
import runpy
import subprocess
import sys

import pytest

from tests.helpers.processes import ROOT, run, script_environment

EXAMPLES = ROOT / "examples"
CONFIG = str(EXAMPLES / "cli" / "config.yaml")

# Script, options that make it short, and words of its output.
RUNS = {
    "digits": ("digits.py", ["--max_epochs", "2"], ["2694 examples", "accuracy", "reason"]),
    "digits, measured": ("digits.py", ["--max_epochs", "2", "--measure_only"], ["170 optimizer steps", "noise scale"]),
    "char_lm": ("char_lm.py", ["--sequences", "400"], ["400 sequences", "nats per byte", "reason"]),
    "char_lm, fixed": ("char_lm.py", ["--sequences", "200", "--fixed"], ["200 sequences in 50 optimizer steps"]),
    "plain_pytorch": ("plain_pytorch.py", ["--epochs", "2"], ["noise scale", "it would be"]),
    "cli": ("cli/main.py", ["fit", "--config", CONFIG, "--trainer.max_epochs", "2"], ["reason"]),
    "multi_node": ("multi_node/train.py", ["--max_epochs", "2"], ["1 processes", "2694 examples", "accuracy"]),
}
BY_THEMSELVES = {"cli", "plain_pytorch"}


def by_itself(folder, script, options):
    command, environment = [sys.executable, str(EXAMPLES / script), *options], script_environment(COLUMNS="100")
    made = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100)
    assert made.returncode == 0, made.stderr[-3000:]
    return made.stdout


def as_script(rank, folder, script, options):
    """The same in a process that has imported torch and Lightning already, which is most of the time."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    os.environ["COLUMNS"] = "100"
    os.chdir(folder)
    sys.argv = [str(EXAMPLES / script), *options]
    sys.path[:] = [str((EXAMPLES / script).parent), *sys.path]
    with contextlib.redirect_stdout(io.StringIO()) as told:
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    return told.getvalue()


@pytest.mark.parametrize("name", RUNS)
def test_example_runs_and_says_what_it_found(name, tmp_path):
    script, options, words = RUNS[name]
    if name in BY_THEMSELVES:
        told = by_itself(tmp_path, script, options)
    else:
        (told,) = run(as_script, 1, tmp_path, script, options, init=False)
    assert [word for word in words if word not in told] == [], told
    if name == "cli":
        folder = tmp_path / "runs" / "cli" / "version_0"
        assert "bsscale/batch_size" in (folder / "metrics.csv").read_text().splitlines()[0]
        assert (folder / "bsscale.jsonl").is_file()
    else:
        assert list(tmp_path.iterdir()) == []  # nothing is written unless asked for


def test_no_example_is_forgotten():
    assert {script for script, _, _ in RUNS.values()} == {
        path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*.py")
    }


def test_each_header_shows_the_command():
    for path in EXAMPLES.rglob("*.py"):
        assert f"python examples/{path.relative_to(EXAMPLES).as_posix()}" in path.read_text().split('"""')[1]
