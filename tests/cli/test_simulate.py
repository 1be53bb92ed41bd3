import json

import pytest

from lightning_bsscale.cli import main

NUMBERS = ["--noise-scale=10", "--noise-scale-end=200", "--examples=8000", "--batch-size=4"]


def test_a_sentence_a_table_and_a_picture(tmp_path, capsys):
    picture = tmp_path / "new" / "simulated.png"
    assert main(["simulate", *NUMBERS, "--policy=noise_scale", "--fixed=32", f"--out={picture}"]) == 0
    sentence, _, head, *rows = capsys.readouterr().out.splitlines()
    assert sentence.startswith("noise_scale goes from a batch of 4 to ")
    assert [row.split("  ")[0].strip() for row in rows[:3]] == ["fixed 4", "noise_scale", "fixed 32"]
    assert head.split()[:3] == ["policy", "final", "batch"]
    assert "2,000" in rows[0]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_numbers_are_read_as_people_write_them(capsys):
    words = ["--noise-scale=10", "--noise-scale-end=0.2k", "--examples=8,000", "--batch-size=4", "--fixed=8"]
    assert main(["simulate", *words, "--policy=noise_scale", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["noise_scale_end"], found["examples"]) == (200.0, 8000)


@pytest.mark.parametrize("word", ["--noise-scale=-1", "--noise-scale=nan", "--fixed=1.5", "--seed=x", "--examples="])
def test_words_that_are_no_numbers(word, capsys):
    with pytest.raises(SystemExit) as end:
        main(["simulate", *NUMBERS, word])
    assert end.value.code == 2
    assert f"argument {word.partition('=')[0]}: must be a " in capsys.readouterr().err


def test_json(capsys):
    assert main(["simulate", *NUMBERS, "--policy=noise_scale", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    fixed, grown = found["policies"]
    assert (fixed["steps"], fixed["relative_loss"], fixed["changes"]) == (2000, 1.0, [])
    assert grown["changes"][-1]["batch_size"] >= grown["final_batch_size"] > 4
    assert grown["steps"] < 1500


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--policy=fly"], "policy must be one of"),
        (["--rule=cubic"], "rule must be one of"),
        (["--schedule=up"], "schedule must be one of"),
        (["--optimizer=adm"], "optimizer must be one of 'sgd', 'adam', got 'adm'"),
        (["--growth=fast"], "growth must be one of"),
        (["--noise-scale=0"], "noise_scale must be a finite number above 0, got 0"),
        (["--examples=8"], "examples must be an integer of at least 80, got 8"),
        (["--max-batch-size=2"], "max_batch_size must be an integer of at least 4, got 2"),
        (["--fixed=2"], "fixed must be an integer of at least 4, got 2"),
        (["--out=/dev/null/x.png"], "/dev/null"),
        (["--out=x.nonsense"], "nonsense"),
    ],
)
def test_a_mistake_is_one_sentence(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["simulate", *NUMBERS, "--policy=noise_scale", *words]) == 1
    captured = capsys.readouterr()
    assert said in captured.err
    assert (captured.out, captured.err.count("\n")) == ("", 1)
