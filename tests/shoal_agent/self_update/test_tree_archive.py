"""Archives of release trees, good and hostile: what comes out is a release tree, or nothing that counts."""

import gzip
import stat
import tarfile

import pytest
from tests.support.release_trees import MACHINE, PYTHON, about, member, packed, tree_archive

from shoal_agent.self_update.errors import BadTreeError
from shoal_agent.self_update.tree_archive import unpack


def unpacked(tmp_path, archive, **limits):
    path = tmp_path / "archive"
    path.write_bytes(archive)
    tree = tmp_path / "folder/tree"
    tree.parent.mkdir()
    return unpack(path, tree, machine=MACHINE, python=PYTHON, **limits), tree


def test_a_tree_comes_out_with_the_rights_that_ansible_gives_it(tmp_path):
    said, tree = unpacked(tmp_path, tree_archive("0.2.0"))
    assert said.version == "0.2.0"
    rights = {
        path.relative_to(tree).as_posix(): stat.S_IMODE(path.stat().st_mode)
        for path in tree.rglob("*")
    }
    assert rights == {
        "bin": 0o755,
        "bin/shoal-agent": 0o755,
        "lib": 0o755,
        "lib/shoal_agent": 0o755,
        "lib/shoal_agent/code.py": 0o644,
        "release.json": 0o644,
    }


def good(*more):
    files = {"bin/shoal-agent": b"x"}
    return packed(
        [
            member("0.2.0/release.json", about("0.2.0", files)),
            member("0.2.0/bin/shoal-agent", b"x"),
            *more,
        ]
    )


HOSTILE = {
    "absolute": good(member("/etc/passwd", b"x")),
    "parent": good(member("0.2.0/../../out", b"x")),
    "parent folder": good(member("0.2.0/..", type=tarfile.DIRTYPE)),
    "dot": good(member("0.2.0/./bin/a", b"x")),
    "symbolic link": good(member("0.2.0/lib", type=tarfile.SYMTYPE, linkname="/etc")),
    "hard link": good(member("0.2.0/lib", type=tarfile.LNKTYPE, linkname="0.2.0/release.json")),
    "device": good(member("0.2.0/lib", type=tarfile.CHRTYPE)),
    "pipe": good(member("0.2.0/lib", type=tarfile.FIFOTYPE)),
    "twice": good(member("0.2.0/bin/shoal-agent", b"y")),
    "file as a folder": good(member("0.2.0/bin/shoal-agent/x", b"y")),
    "folder as a file": good(member("0.2.0/bin", b"y")),
    "another tree": good(member("0.3.0/bin/a", b"y")),
    "not listed": good(member("0.2.0/lib/more.py", b"y")),
    "only a name": good(member("0.2.0", b"y")),
    "too deep": good(member("0.2.0/" + "a/" * 40 + "b", b"y")),
    "long name": good(member("0.2.0/" + "a" * 300, b"y")),
    "wrong content": packed(
        [
            member("0.2.0/release.json", about("0.2.0", {"bin/shoal-agent": b"x"})),
            member("0.2.0/bin/shoal-agent", b"z"),
        ]
    ),
    "missing file": packed(
        [member("0.2.0/release.json", about("0.2.0", {"bin/shoal-agent": b"x"}))]
    ),
    "nothing said": packed([member("0.2.0/bin/shoal-agent", b"x")]),
    "another machine": tree_archive("0.2.0", arch="x86_64"),
    "another python": tree_archive("0.2.0", python="3.9"),
    "no agent": tree_archive("0.2.0", roles=["fleet"]),
    "no archive": b"neither gzip nor tar",
    "empty": b"",
    "cut off": tree_archive("0.2.0")[:-60],
    "a name that leads out": packed([member("0.2.0/release.json", about("../../x", {}))]),
    "no json": packed([member("0.2.0/release.json", b"\xff{")]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_is_no_release_tree_is_refused_and_nothing_is_written_beside(tmp_path, name):
    with pytest.raises(BadTreeError):
        unpacked(tmp_path, HOSTILE[name])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "folder"]
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["tree"]
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


def test_an_archive_that_unpacks_to_more_than_is_allowed_ends_at_the_limit(tmp_path):
    bomb = gzip.compress(b"\0" * (64 << 20), 9)
    assert len(bomb) < 100_000
    with pytest.raises(BadTreeError):
        unpacked(tmp_path, bomb, limit_bytes=1 << 20)


def test_a_file_larger_than_the_limit_is_not_written_whole(tmp_path):
    archive = tree_archive("0.2.0", {"bin/shoal-agent": b"\0" * (8 << 20)})
    with pytest.raises(BadTreeError, match="more than"):
        unpacked(tmp_path, archive, limit_bytes=1 << 20)
    assert sum(path.stat().st_size for path in (tmp_path / "folder").rglob("*")) < 2 << 20
