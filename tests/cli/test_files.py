"""Files are whole, however a command ends."""

import os
import threading
from pathlib import Path

import pytest

from lightning_bsscale.cli.files import write_whole


@pytest.mark.parametrize("step", ["write_bytes", "replace"])
def test_who_interrupts_finds_the_old_file(tmp_path, monkeypatch, step):
    def interrupted(self, *_):
        if step == "write_bytes":
            self.touch()  # half of it
        raise KeyboardInterrupt

    path = tmp_path / "page.html"
    write_whole(path, b"old")
    with monkeypatch.context() as patched:
        patched.setattr(Path, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_whole(path, b"new")
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"old", [path])
    write_whole(path, b"new")
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"new", [path])


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_a_pipe_is_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    found = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write_whole(tmp_path / "pipe", b"new")
    reader.join()
    assert found == [b"new"]


def test_a_folder_is_not_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_whole(tmp_path / "folder", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
