"""docs/command_line.md: every block runs, and prints what the page says."""

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from lightning_bsscale import NoiseScalePolicy, Power, Seesaw, WarmupCosine, WeightDecay, cli
from lightning_bsscale.cli import terminal
from tests.helpers.lightning_cli import callbacks_from

ROOT = Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(ROOT / "docs" / "run_command_line.py"))
PAGE = SCRIPT["PAGE"].read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```([\w{}-]+)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [(found[1], found[2]) for found in SCRIPT["COMMAND"].finditer(PAGE)]
FLAGS = [text for kind, text in BLOCKS if kind == "bash" and text.startswith("python main.py fit ")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder in which the page's commands are run: its module, and the journals of two runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "my_policies", raising=False)
    SCRIPT["prepare"](tmp_path)
    return tmp_path


def test_every_block_is_one_that_is_run():
    kinds = [kind for kind, _ in BLOCKS]
    assert kinds.count("bash") == len(COMMANDS) + len(FLAGS)
    assert kinds.count("text") == sum(expected is not None for _, expected in COMMANDS) >= 7
    assert set(kinds) == {"bash", "text", "python", "yaml", "{eval-rst}"}


@pytest.mark.min_steps
@pytest.mark.parametrize("number", range(len(COMMANDS)))
def test_a_command_prints_what_the_page_says(folder, number):
    command, expected = COMMANDS[number]
    told = SCRIPT["printed"](command)
    if expected is None:
        assert json.loads(told)
        assert "--json" in command
    else:
        assert told == expected, "run python docs/run_command_line.py"


def test_the_tables_name_every_command_and_status():
    table = PAGE.split("\n## ")[0]
    assert set(re.findall(r"`bsscale (\w+)", table)) == set(cli.COMMANDS)
    statuses = [int(word) for word in re.findall(r"^\| (\d+) \|", PAGE, flags=re.MULTILINE)]
    assert statuses == [0, terminal.CANNOT, terminal.WRONG_WORDS, terminal.DISAGREES, terminal.INTERRUPTED]


def test_the_yaml_and_the_flags_make_the_same_callback(tmp_path):
    ((_, text),) = [block for block in BLOCKS if block[0] == "yaml"]
    config = yaml.safe_load(text)
    by_flags, overridden, short = (shlex.split(words)[3:] for words in FLAGS)
    quiet = ["--trainer.logger=false", "--trainer.accelerator=cpu"]
    made = [callbacks_from(config["trainer"]["callbacks"])[0], callbacks_from(None, *by_flags, *quiet)[0]]
    for scaler in made:
        assert scaler._options.policy == NoiseScalePolicy(target_ratio=0.25)
        assert scaler._options.max_batch_size == 512
    (tmp_path / "config.yaml").write_text(text)
    assert overridden[:2] == ["--config", "config.yaml"]
    (scaler,) = callbacks_from(None, "--config", str(tmp_path / "config.yaml"), *overridden[2:], *quiet)
    assert scaler._options.policy == NoiseScalePolicy(target_ratio=0.5)
    assert scaler._options.max_batch_size == 512
    (scaler,) = callbacks_from(None, *short, *quiet)
    assert scaler._options.policy == Seesaw()
    assert scaler._options.rule_for.args[0] == Power(exponent=0.75)
    assert scaler._options.schedule == WarmupCosine(final=0.05)
    assert scaler._options.also_scale_for.args[0] == (WeightDecay(exponent=0.5),)


def test_an_option_of_the_default_policy_alone_is_not_understood(capsys):
    with pytest.raises(SystemExit):
        callbacks_from(None, "--trainer.callbacks+=BatchSizeScaler", "--trainer.callbacks.policy.target_ratio=0.25")
    assert "policy.target_ratio" in capsys.readouterr().err.splitlines()[-1]
