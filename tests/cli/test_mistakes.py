"""User errors, each in its own process: one sentence on stderr, nothing on stdout, no traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.probed_task import CONFIG, TASK
from tests.helpers.written_runs import write_run

ROOT = Path(__file__).parents[2]
FILES = {
    "notes.txt": "hello\n",
    "empty.jsonl": "",
    "raises.py": "import os\nvalue = undefined\n",
    "syntax.py": "def f(:\n",
    "probed_task.py": f"{TASK}\n\ndef raises():\n    return 1 / 0\n",
    "broken.py": "import lightning.pytorch as pl\n\n\nclass Model(pl.LightningModule):\n    def __init__(self):\n"
    "        raise RuntimeError('no such width')\n",
    "config.yaml": CONFIG,
    "bad.yaml": "model: {class_path: probed_task.Model\n",
    "broken.yaml": CONFIG.replace("probed_task.Model", "broken.Model"),
    "nowhere.yaml": CONFIG.replace("probed_task.Model", "nowhere.Model"),
    "raises.yaml": CONFIG.replace("probed_task.Model", "raises.Model"),
    "option.yaml": CONFIG.replace("probed_task.Model}", "probed_task.Model, init_args: {width: 3}}"),
    "text.yaml": "hello\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("mistakes")
    for name, text in FILES.items():
        (made / name).write_text(text)
    (made / "folder").mkdir()
    write_run(made / "run.jsonl", 60)
    whole = (made / "run.jsonl").read_bytes()
    (made / "header.jsonl").write_bytes(whole[: whole.index(b"\n") + 1])
    (made / "damaged.jsonl").write_bytes(whole.replace(b'{"event":"window"', b'{"event":"windows"', 1))
    return made


READERS = {"summary": [], "report": [], "plot": [], "replay": [], "plan": ["--journal"]}
NO_JOURNAL = {
    "nowhere.jsonl": "no such journal: nowhere.jsonl",
    "notes.txt": "notes.txt is not a journal: its first line must be a header",
    "empty.jsonl": "empty.jsonl is not a journal",
    "folder": "folder is a folder; a journal is a regular file. Give the path of the file. There is no .jsonl file in",
    ".": "It holds damaged.jsonl, empty.jsonl, header.jsonl and 1 more.",
}
DAMAGED = "damaged.jsonl, line 3: unknown event 'windows'; known are "  # a report says it on its page
NO_STEP = "header.jsonl holds no optimizer step"
PLAN = ["plan", "--critical-batch", "480", "--examples", "1M", "--at-batch", "8"]
SIMULATE = ["simulate", "--noise-scale", "10", "--examples", "8k", "--batch-size", "4", "--policy", "noise_scale"]
CASES = [
    *(([name, *words, file], 1, said) for name, words in READERS.items() for file, said in NO_JOURNAL.items()),
    *(([name, *READERS[name], "damaged.jsonl"], 1, DAMAGED) for name in ("summary", "plot", "replay", "plan")),
    *(([name, *READERS[name], "header.jsonl"], 1, NO_STEP) for name in ("summary", "plan")),
    (["report", "run.jsonl", "-o", "folder"], 1, "folder cannot be written: Is a directory"),
    (["plot", "run.jsonl", "-o", "run.docx"], 1, "run.docx has the suffix of no picture"),
    (["replay", "run.jsonl", "--policy", "nowhere:Mine"], 1, "cannot be loaded: No module named 'nowhere'"),
    (["replay", "run.jsonl", "--policy", "raises:Mine"], 1, "cannot be loaded: NameError: name 'undefined' is not "),
    (["replay", "run.jsonl", "--policy", "syntax:Mine"], 1, "cannot be loaded: invalid syntax (syntax.py, line 1)"),
    (["replay", "run.jsonl", "--set", "target_ratio=-1"], 1, "target_ratio must be a finite number above 0, got -1"),
    ([*PLAN, "--probe", "nowhere.json"], 1, "nowhere.json cannot be read: No such file or directory"),
    ([*PLAN, "--probe", "folder"], 1, "folder cannot be read: Is a directory"),
    ([*PLAN, "--probe", "notes.txt"], 1, "notes.txt is no JSON file of a probe: "),
    ([*PLAN, "--rule", "cubic"], 1, "--rule must be one of "),
    ([*PLAN, "--out", "notes.txt/plan.png"], 1, "notes.txt/plan.png cannot be written: "),
    (PLAN[:3], 1, "No loss to be reached is known."),
    ([*SIMULATE, "--policy", "fly"], 1, "simulate: policy must be one of "),
    ([*SIMULATE, "--fixed", "2"], 1, "simulate: fixed must be an integer of at least 4, got 2"),
    ([*SIMULATE, "--out", "folder"], 1, "folder cannot be written: Is a directory"),
    (["probe", "--task", "probed_task"], 1, "--task must be package.module:function, got 'probed_task'"),
    (["probe", "--task", "probed_task:none"], 1, "module 'probed_task' has no attribute 'none'"),
    (["probe", "--task", "syntax:task"], 1, "cannot be loaded: invalid syntax (syntax.py, line 1)"),
    (["probe", "--config", "nowhere_else.yaml"], 1, "no such config: nowhere_else.yaml"),
    (["probe", "--config", "folder"], 1, "no such config: folder"),
    (["demo", "--out", "notes.txt"], 1, "notes.txt cannot be written: File exists"),
    (["fly"], 2, "invalid choice: 'fly'"),
    *(([name], 2, "required") for name in ("summary", "report", "plot", "replay", "probe", "simulate")),
    *(([name, "--fly"], 2, "") for name in ("demo", "plan")),
]
WITH_LIGHTNING = [
    (["probe", "--task", "probed_task:raises"], "ZeroDivisionError: division by zero (probed_task.py, line "),
    (["probe", "--config", "bad.yaml"], "bad.yaml cannot be used as a LightningCLI config with class_path for model "),
    (["probe", "--config", "text.yaml"], "Unexpected config: hello"),
    (["probe", "--config", "nowhere.yaml"], "data: model: No module named 'nowhere'."),
    (["probe", "--config", "raises.yaml"], "model: NameError: name 'undefined' is not defined (raises.py, line 2)."),
    (["probe", "--config", "broken.yaml"], "RuntimeError: no such width (broken.py, line 6)."),
    (["probe", "--config", "option.yaml"], "model: Option 'width' is not accepted."),
]


def run(folder, words):
    command = [sys.executable, "-W", "ignore", "-m", "lightning_bsscale", *words]
    path = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=path)


def check(folder, words, status, said):
    found = sorted(folder.iterdir())
    done = run(folder, words)
    sentences = [line for line in done.stderr.splitlines() if not line.endswith(" s)")]  # a machine may be slow
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert said in sentences[0]
    assert len(sentences) == status
    assert not [path.name for path in folder.iterdir() if path not in found and path.name != "__pycache__"]


@pytest.mark.parametrize(("words", "status", "said"), CASES, ids=[" ".join(words) for words, *_ in CASES])
def test_one_sentence_and_no_traceback(folder, words, status, said):
    check(folder, words, status, said)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("words", "said"), WITH_LIGHTNING, ids=[words[-1] for words, _ in WITH_LIGHTNING])
def test_one_sentence_where_lightning_reads_the_config(folder, words, said):
    check(folder, words, 1, said)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_traceback_shows_all_of_it(folder):
    done = run(folder, ["probe", "--task", "probed_task:raises", "--traceback"])
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"
