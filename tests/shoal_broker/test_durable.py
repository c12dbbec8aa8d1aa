import os
import stat

import pytest

from shoal_broker.durable import remove_parts, write_durably


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_file_is_replaced_as_a_whole_and_is_its_owners_alone(tmp_path):
    path = tmp_path / "token"
    path.write_text("old and longer")
    path.chmod(0o644)
    write_durably(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert names(tmp_path) == ["token"]


def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "token"
    path.write_bytes(b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_durably(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["token"]


def test_what_a_kill_left_is_removed_and_nothing_else_is(tmp_path):
    for name in (".blob.0badcafe.part", "blob", ".hidden", "b.part"):
        (tmp_path / name).write_bytes(b"x")
    remove_parts(tmp_path)
    assert names(tmp_path) == [".hidden", "b.part", "blob"]
