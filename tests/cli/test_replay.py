"""The command that replays a journal: what it says, and how it ends."""

import re

from lightning_bsscale.cli import main
from tests.helpers.written_runs import write_run


def test_a_replay_that_agrees(tmp_path, capsys):
    assert main(["replay", str(write_run(tmp_path / "j", 60))]) == 0
    said = capsys.readouterr().out
    counts = [int(count) for count in re.findall(r"(\d+) of \1 ", said)]
    assert said.endswith("1 of 1 end states agree\n")
    assert len(counts) == 5
    assert min(counts) > 0


def test_a_replay_that_disagrees(tmp_path, capsys):
    path = write_run(tmp_path / "j", 100)
    lines = path.read_text().splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith('{"event":"decision"'))
    lines[place] = lines[place].replace('"lr_rule":"sqrt"', f'"lr_rule":"{"x" * 5000}"')
    path.write_text("\n".join(lines) + "\n")
    assert main(["replay", str(path)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"line {place + 1}, decision: recorded DecisionRecord(")
    assert (len(said[0]) < 2100, " of " in said[-1], len(said)) == (True, True, 2)


def test_only_the_first_disagreements_are_shown(tmp_path, capsys):
    path = write_run(tmp_path / "j", 200)
    path.write_text(path.read_text().replace('"trace":', '"trace":1'))
    assert main(["replay", str(path)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 12
    assert re.fullmatch(r"\.\.\. and \d+ more that disagree", said[10])


def test_a_file_that_is_no_journal(tmp_path, capsys):
    path = tmp_path / "notes.txt"
    assert main(["replay", str(path)]) == 1
    assert "no such journal" in capsys.readouterr().err
    path.write_text("hello\n")
    assert main(["replay", str(path)]) == 1
    assert str(path) in capsys.readouterr().err
