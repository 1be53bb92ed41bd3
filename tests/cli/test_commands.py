"""The commands together: their words, their help, and how an interrupted one ends."""

import argparse
import re
import shlex
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest

from lightning_bsscale import cli
from lightning_bsscale.cli import main, terminal
from tests.helpers.training import Regression, fit, regression_loader
from tests.helpers.written_runs import write_run

ROOT = Path(__file__).parents[2]


def test_the_demo_is_given_its_options(monkeypatch):
    calls = []
    demo = SimpleNamespace(run=lambda **given: calls.append(given) or given["seed"])
    monkeypatch.setitem(sys.modules, "lightning_bsscale.demo", demo)
    assert main(["demo"]) == 0
    assert main(["demo", "--out", "elsewhere", "--seed", "3", "--epochs", "2", "--json"]) == 3  # its exit status
    usual = dict(out=Path("runs/demo"), seed=0, epochs=25, as_json=False)
    assert calls == [usual, dict(out=Path("elsewhere"), seed=3, epochs=2, as_json=True)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fly"], "argument COMMAND: invalid choice: 'fly' (choose from "),
        (["demo", "--seed", "x"], "argument --seed: must be a number such as 33,675, 12.3M or 1e6, found 'x'"),
        (["demo", "--fast"], "unrecognized arguments: --fast"),
        (["summary"], "the following arguments are required: JOURNAL"),
        *((["demo", f"--epochs={epochs}"], f"found {epochs!r}") for epochs in ("0", "-1", "1.5", "many", "")),
    ],
)
def test_wrong_words_are_refused_in_one_sentence(words, said, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    sentence, where = capsys.readouterr().err.splitlines()
    assert said in sentence
    assert "--help` shows what is understood" in where


def test_no_words_at_all_show_the_help(capsys):
    assert main([]) == 2
    told = capsys.readouterr()
    assert (told.out, "exit status:" in told.err) == ("", True)


def help_of(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_help_of_a_command_is_enough_to_use_it(name, capsys):
    """A paragraph with the units, every option explained with its default, and examples that are understood."""
    command, parser = cli.COMMANDS[name], cli._parser()
    said = " ".join(help_of([name], capsys).split())
    assert command.HELP in " ".join(help_of([], capsys).split())
    assert " ".join(command.ABOUT.split()) in said
    assert len(command.ABOUT.split()) > 40
    for example in command.EXAMPLES:
        assert f"lightning_bsscale {name} {example}".rstrip() in said
        assert parser.parse_args([name, *shlex.split(example)]).run is command.run
    own = argparse.ArgumentParser()
    command.add_arguments(own)
    for action in own._actions:
        assert action.help, action.dest
        if action.nargs == 0:
            continue
        assert action.metavar, f"{action.dest} shows no word for its value"
        if action.default not in (None, []):
            assert "default" in cli._Help("")._get_help_string(action), action.dest


def test_the_statuses_of_the_help_are_those_of_the_code(capsys):
    shown = help_of([], capsys).split("exit status:")[1]
    statuses = [int(word) for word in re.findall(r"^  (\d+) ", shown, flags=re.MULTILINE)]
    assert statuses == [0, terminal.CANNOT, terminal.WRONG_WORDS, terminal.DISAGREES, terminal.INTERRUPTED]


def test_the_script_runs_main():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^\[project.scripts\]\nbsscale = "lightning_bsscale.cli:main"$', project, flags=re.MULTILINE)


class Interrupts(pl.Callback):
    def on_train_batch_start(self, *_):
        raise KeyboardInterrupt


@pytest.mark.parametrize("callbacks", [None, [Interrupts()]], ids=["outside of a Trainer", "within one"])
def test_control_c_ends_with_130_and_no_traceback(callbacks, monkeypatch, capsys):
    def run(**_):
        if callbacks is None:
            raise KeyboardInterrupt
        fit(Regression(), regression_loader(8), callbacks, max_epochs=1)

    monkeypatch.setitem(sys.modules, "lightning_bsscale.demo", SimpleNamespace(run=run))
    before = signal.getsignal(signal.SIGINT)
    try:
        assert main(["demo"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)  # which a Trainer ignores from then on
    assert "Traceback" not in "".join(capsys.readouterr())


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    path = write_run(tmp_path / "j")
    for words in (["summary", str(path), "--json"], ["replay", str(path), "--set", "target_ratio=0.5"]):
        command = [sys.executable, "-m", "lightning_bsscale", *words]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as started:
            started.stdout.close()
            assert (started.stderr.read(), started.wait()) == (b"", 1)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_control_c_in_a_process_leaves_whole_files(tmp_path):
    """The demo, in its third training: no traceback, and of the journal whole lines."""
    command = [sys.executable, "-m", "lightning_bsscale", "demo", "--epochs", "1", "--out", str(tmp_path)]
    # Tests that a shell started in the background ignore Ctrl-C, and so would their children.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(command, cwd=ROOT, preexec_fn=heard, **pipes) as started:
        said = []
        for line in started.stderr:
            said.append(line)
            if line.startswith("training: BatchSizeScaler"):
                break
        started.send_signal(signal.SIGINT)
        out, errors = started.communicate()
    assert (started.returncode, out) == (130, "")
    assert "Traceback" not in "".join([*said, errors])
    assert {path.name for path in tmp_path.iterdir()} <= {"bsscale.jsonl"}
    assert all(path.read_text().endswith("\n") for path in tmp_path.iterdir())


def test_other_ends_of_a_command_stay_as_they_are(monkeypatch):
    def run(**_):
        raise SystemExit(3)

    monkeypatch.setitem(sys.modules, "lightning_bsscale.demo", SimpleNamespace(run=run))
    with pytest.raises(SystemExit) as end:
        main(["demo"])
    assert end.value.code == 3
