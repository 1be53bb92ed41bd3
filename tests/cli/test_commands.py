"""The commands together: their words, their help, and how an interrupted one ends."""

import re
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest

from lightning_bsscale import cli
from lightning_bsscale.cli import main
from tests.helpers.training import Regression, fit, regression_loader

ROOT = Path(__file__).parents[2]


def test_the_demo_is_given_its_options(monkeypatch):
    calls = []
    demo = SimpleNamespace(run=lambda **given: calls.append(given) or given["seed"])
    monkeypatch.setitem(sys.modules, "lightning_bsscale.demo", demo)
    assert main(["demo"]) == 0
    assert main(["demo", "--out", "elsewhere", "--seed", "3", "--epochs", "2"]) == 3  # its exit status
    assert calls == [dict(out=Path("runs/demo"), seed=0, epochs=25), dict(out=Path("elsewhere"), seed=3, epochs=2)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        *(([], "usage:"), (["fly"], "usage:"), (["demo", "--seed", "x"], "usage:")),
        *((["demo", f"--epochs={epochs}"], repr(epochs)) for epochs in ("0", "-1", "1.5", "many", "")),
    ],
)
def test_wrong_words_are_refused(words, said, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def help_of(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_example_of_the_help_is_understood(name, capsys):
    command = cli.COMMANDS[name]
    assert f"example:\n  {command.EXAMPLE}\n" in help_of([name], capsys)
    assert command.HELP in " ".join(help_of([], capsys).split())
    start = f"python -m lightning_bsscale {name} "
    assert command.EXAMPLE.startswith(start)
    arguments = cli._parser().parse_args([name, *command.EXAMPLE.removeprefix(start).split()])
    assert arguments.run is command.run


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


def test_other_ends_of_a_command_stay_as_they_are(monkeypatch):
    def run(**_):
        raise SystemExit(3)

    monkeypatch.setitem(sys.modules, "lightning_bsscale.demo", SimpleNamespace(run=run))
    with pytest.raises(SystemExit) as end:
        main(["demo"])
    assert end.value.code == 3
