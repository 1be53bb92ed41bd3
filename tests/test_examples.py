"""Every example runs alone, from any folder, and says what it found."""

import ast
import contextlib
import importlib.util
import io
import json
import os
import re
import runpy
import subprocess
import sys

import pytest

from tests.helpers.processes import ROOT, run, script_environment

EXAMPLES = ROOT / "examples"
CONFIG = str(EXAMPLES / "cli" / "config.yaml")
NOTEBOOK = json.loads((EXAMPLES / "tutorial.ipynb").read_text(encoding="utf-8"))
CODE_CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]

# Script, options that make it short, and words of its output.
RUNS = {
    "digits": ("digits.py", ["--max_epochs", "2"], ["2694 examples", "accuracy", "reason"]),
    "digits, measured": ("digits.py", ["--max_epochs", "2", "--measure_only"], ["170 optimizer steps", "noise scale"]),
    "char_lm": ("char_lm.py", ["--sequences", "400"], ["400 sequences", "nats per byte", "reason"]),
    "char_lm, fixed": ("char_lm.py", ["--sequences", "200", "--fixed"], ["200 sequences in 50 optimizer steps"]),
    "plain_pytorch": ("plain_pytorch.py", ["--epochs", "2"], ["noise scale", "it would be"]),
    "cli": ("cli/main.py", ["fit", "--config", CONFIG, "--trainer.max_epochs", "2"], ["reason"]),
    "multi_node": ("multi_node/train.py", ["--max_epochs", "2"], ["1 processes", "2694 examples", "accuracy"]),
    "tabular": ("tabular.py", ["--rows", "800", "--max_epochs", "2"], ["1600 rows", "validation error", "reason"]),
    # The cosine comes to its end, although fewer updates are made.
    "timm": ("timm_scheduler.py", ["--max_epochs", "2"], ["updates instead of 170, learning rate at the end 0,"]),
    "hugging_face": ("hugging_face.py", ["--texts", "80", "--max_epochs", "1"], ["tokens predicted", "The batch "]),
    "ddp": ("ddp.py", ["--max_epochs", "1"], ["2 processes: the batch started at 16 examples", "accuracy", "reason"]),
    "own_policy": ("own_policy.py", ["--max_epochs", "2", "--to", "64"], ["the ramp is at", "accuracy"]),
    "probe_and_plan": (
        "probe_and_plan.py",
        ["--steps", "40", "--offsets", "3"],
        ["The noise scale is", "an example is worth  1.00", "Use a batch of"],
    ),
}
BY_THEMSELVES = {"cli", "plain_pytorch", "ddp"}
NEEDS = {"hugging_face": "transformers"}


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
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"needs {NEEDS[name]}")
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


def as_notebook(rank, folder, parameters):
    """Runs the cells in order, with other values in place of those of the cell tagged `parameters`.

    What a cell's last expression gives is printed, as Jupyter shows it.
    """
    os.chdir(folder)
    names = {"__name__": "__main__"}
    with contextlib.redirect_stdout(io.StringIO()) as told:
        for number, cell in enumerate(CODE_CELLS):
            tree = ast.parse("".join(cell["source"]), f"tutorial.ipynb, code cell {number}")
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, f"code cell {number}", "exec"), names)
            if last is not None:
                shown = eval(compile(ast.Expression(last.value), f"code cell {number}", "eval"), names)
                print("" if shown is None else repr(shown))
            if "parameters" in cell["metadata"].get("tags", ()):
                assert parameters.keys() <= names.keys()
                names.update(parameters)
    return told.getvalue()


def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path):
    (told,) = run(as_notebook, 1, tmp_path, {"EPOCHS": 1}, init=False)
    assert told.count("optimizer steps, 1,347 examples") == 5
    for words in ("NoiseScale(", "The batch ", "reason", "<Figure", "largest batch", "Use a batch of"):
        assert words in told
    assert list(tmp_path.iterdir()) == []


def test_the_notebook_is_kept_without_outputs():
    """jupyter nbconvert --clear-output --inplace examples/tutorial.ipynb."""
    assert [cell["outputs"] for cell in CODE_CELLS] == [[] for _ in CODE_CELLS]
    assert {cell["execution_count"] for cell in CODE_CELLS} == {None}
    assert all(cell["metadata"].keys() <= {"tags"} for cell in NOTEBOOK["cells"])
    assert not [cell for cell in CODE_CELLS if re.search(r"^\s*[%!]", "".join(cell["source"]), flags=re.MULTILINE)]


def test_no_example_is_forgotten():
    assert {script for script, _, _ in RUNS.values()} == {
        path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*.py")
    }


def test_each_header_shows_the_command():
    for path in EXAMPLES.rglob("*.py"):
        assert f"python examples/{path.relative_to(EXAMPLES).as_posix()}" in path.read_text().split('"""')[1]


def test_the_list_of_examples_is_complete():
    listed = re.findall(r"^\| \[`(.+?)`\]\((.+?)\) \|", (EXAMPLES / "README.md").read_text("utf-8"), flags=re.MULTILINE)
    assert all(name == target for name, target in listed)
    found = [path for pattern in ("*.py", "*.ipynb") for path in EXAMPLES.rglob(pattern)]
    assert {name for name, _ in listed} == {path.relative_to(EXAMPLES).as_posix() for path in found}
