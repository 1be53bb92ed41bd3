"""The file of finished branches: read again as it was written, and never mistaken for another."""

import pytest

from lightning_bsscale.critical_batch.branch_file import BranchFile
from lightning_bsscale.critical_batch.probe import ProbeError

SETTINGS = {"seed": 1}


def written(path):
    file = BranchFile(path, SETTINGS)
    file.once("noise", lambda: 12.5)
    for batch_size, loss, seconds in ((8.0, 0.5, 1.25), (16.0, float("inf"), 2.0)):
        if not file.has(0, batch_size):
            file.add(0, batch_size, loss, seconds, "data", [0.75, float("nan")])
    return path.read_text()


def test_what_is_finished_is_read_again(tmp_path):
    path = tmp_path / "new" / "probe.jsonl"
    text = written(path)
    file = BranchFile(path, SETTINGS)
    assert file.once("noise", lambda: pytest.fail("it is there")) == 12.5
    assert (file.loss(0, 8.0), file.loss(0, 16.0), file.seconds) == (0.5, float("inf"), 3.25)
    assert repr(file.earlier(0, 8.0)) == "[0.75, nan]"
    assert (file.median_seconds(8.0), file.median_seconds(4.0)) == (1.25, None)
    assert (file.known("noise"), file.known("other", 3)) == (12.5, 3)
    assert file.has(0, 8.0, "data")
    assert not file.has(0, 8.0, "other")
    assert not file.has(1, 8.0)
    assert path.read_text() == text


def test_a_kill_at_any_character_loses_one_line_at_most(tmp_path):
    path = tmp_path / "probe.jsonl"
    text = written(path)
    for end in range(len(text)):
        path.write_text(text[:end])
        assert written(path) == text, end


@pytest.mark.parametrize("end", ["\n", ""])
@pytest.mark.parametrize("first", ["no JSON", "[1]", '{"other": 1}', '{"settings": {"seed": 2}}'])
def test_another_file_is_refused_and_stays(tmp_path, first, end):
    path = tmp_path / "probe.jsonl"
    path.write_text(f"{first}{end}")
    with pytest.raises(ProbeError, match="another probe"):
        BranchFile(path, SETTINGS)
    assert path.read_text() == f"{first}{end}"


def test_a_line_of_something_else_is_passed_over(tmp_path):
    path = tmp_path / "probe.jsonl"
    text = written(path)
    path.write_text(text + "[1]\n7\nno JSON\n")
    assert BranchFile(path, SETTINGS).seconds == 3.25
