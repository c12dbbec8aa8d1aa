import os

import pytest

from shoal_agent.pipelines.folder import Folder


@pytest.fixture
def spool(tmp_path):
    path = tmp_path / "spool"
    path.mkdir()
    return path


def folder(path, known=None) -> Folder:
    return Folder(path, ["png", "jpeg"], known or {})


def write(path, at_s: int, content: bytes = b"x"):
    path.write_bytes(content)
    os.utime(path, (at_s, at_s))


def test_the_oldest_comes_first_and_only_when_it_stands_still(spool):
    looking = folder(spool)
    write(spool / "b.png", 10)
    write(spool / "a.PNG", 20)
    assert looking.look() is None
    name, stamp = looking.look()
    assert name == "b.png"
    looking.done(name, stamp, delete=False)
    name, stamp = looking.look()
    assert name == "a.PNG"
    write(spool / "a.PNG", 30, b"more")
    assert looking.look() is None
    assert looking.look()[0] == "a.PNG"


def test_a_file_that_changes_is_a_new_one_and_one_that_is_known_is_not(spool):
    write(spool / "a.png", 10)
    looking = folder(spool)
    looking.look()
    name, stamp = looking.look()
    again = folder(spool, {name: stamp})
    assert again.look() is None
    assert again.look() is None
    write(spool / "a.png", 11)
    again.look()
    assert again.look()[0] == "a.png"


def test_hidden_files_other_kinds_links_folders_and_empty_files_are_passed_over(spool, tmp_path):
    write(tmp_path / "outside.png", 1)
    (spool / "link.png").symlink_to(tmp_path / "outside.png")
    (spool / "folder.png").mkdir()
    write(spool / ".a.png", 1)
    write(spool / "a.png.part", 1)
    write(spool / "empty.png", 1, b"")
    os.mkfifo(spool / "fifo.png")
    looking = folder(spool)
    assert looking.look() is None
    assert looking.look() is None


def test_one_file_is_looked_at_wherever_it_is_and_may_come_later(spool):
    looking = folder(spool / "latest")
    assert looking.look() is None
    write(spool / "latest", 5)
    looking.look()
    name, stamp = looking.look()
    assert looking.read(name, stamp, max_bytes=10) == b"x"


def test_what_is_gone_is_forgotten(spool):
    write(spool / "a.png", 10)
    looking = folder(spool, {"a.png": "1", "b.png": "2"})
    assert looking.forget_gone() == ["b.png"]


def test_only_the_file_that_was_found_is_read_and_deleted(spool):
    write(spool / "a.png", 10)
    looking = folder(spool)
    looking.look()
    name, stamp = looking.look()
    write(spool / "a.png", 12, b"other")
    with pytest.raises(ValueError, match="it changed"):
        looking.read(name, stamp, max_bytes=10)
    looking.done(name, stamp, delete=True)
    assert (spool / "a.png").exists()
    looking.look()
    name, stamp = looking.look()
    with pytest.raises(ValueError, match="5 bytes; at most 4"):
        looking.read(name, stamp, max_bytes=4)
    looking.done(name, stamp, delete=True)
    assert not (spool / "a.png").exists()


@pytest.mark.parametrize("name", ["../a.png", "", ".", "..", "b/a.png"])
def test_a_name_cannot_lead_out(spool, name):
    with pytest.raises(ValueError, match="is no name of a file"):
        folder(spool).read(name, "1", max_bytes=1)
