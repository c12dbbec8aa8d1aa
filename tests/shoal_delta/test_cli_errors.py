"""What a user meets when something is wrong: one line that says what, and an exit code that says whose fault."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys

import pytest
from tests.shoal_delta.onnx_files import network

from shoal_delta import cli

MIB = 1 << 20
NOBODY = 65534


@pytest.fixture
def pair(tmp_path):
    (tmp_path / "v1").write_bytes(network(1))
    (tmp_path / "v2").write_bytes(network(2, drift=0.003))
    with pytest.raises(SystemExit):
        cli.main(["diff", str(tmp_path / "v1"), str(tmp_path / "v2"), "-o", str(tmp_path / "d")])
    return tmp_path


@pytest.fixture
def refused(capsys):
    """Runs a command that must fail with exit 1 and one line, and returns the line."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert (ended.value.code, out) == (1, ""), err
        assert err.startswith("shoal-delta: ")
        assert err.count("\n") == 1
        return err

    return run


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_no_file_is_refused_and_a_named_pipe_is_not_waited_for(pair, refused):
    os.mkfifo(pair / "pipe")
    (pair / "folder").mkdir()
    for odd in (pair / "pipe", pair / "folder"):
        for arguments in (
            ("diff", odd, pair / "v2", "-o", pair / "x"),
            ("diff", pair / "v1", odd, "-o", pair / "x"),
            ("apply", odd, pair / "d", "-o", pair / "x"),
            ("apply", pair / "v1", odd, "-o", pair / "x"),
            ("info", odd),
            ("info", pair / "d", "--old", odd),
        ):
            assert f"{odd} is not a file" in refused(*arguments)
    assert "Not a directory" in refused("bench", pair / "v1")
    assert names(pair) == ["d", "folder", "pipe", "v1", "v2"]


def test_a_result_does_not_replace_what_it_is_made_from(pair, refused):
    before = {name: (pair / name).read_bytes() for name in names(pair)}
    for name in ("v1", "v2"):
        line = refused("diff", pair / "v1", pair / "v2", "-o", pair / name)
        assert "choose another name" in line
    for name in ("v1", "d"):
        line = refused("apply", pair / "v1", pair / "d", "-o", pair / name)
        assert "choose another name" in line
    assert {name: (pair / name).read_bytes() for name in names(pair)} == before


def test_a_result_that_cannot_be_written_where_it_should_is_named(pair, refused):
    (pair / "folder").mkdir()
    for target in (pair / "folder", pair / "none" / "x"):
        assert str(target) in refused("diff", pair / "v1", pair / "v2", "-o", target)
        assert str(target) in refused("apply", pair / "v1", pair / "d", "-o", target)
    assert names(pair) == ["d", "folder", "v1", "v2"]


@contextlib.contextmanager
def nothing_may_be_read(folder):
    """As a user who has no right to: root drops its rights, anybody else takes them from the files."""
    if os.geteuid() == 0:
        folder.chmod(0o700)
        os.seteuid(NOBODY)
        try:
            yield
        finally:
            os.seteuid(0)
        return
    paths = [path for path in folder.iterdir() if path.is_file()]
    for path in paths:
        path.chmod(0)
    try:
        yield
    finally:
        for path in paths:
            path.chmod(0o600)


def test_a_file_that_may_not_be_read_is_named(pair, refused):
    with nothing_may_be_read(pair):
        for arguments in (
            ("diff", pair / "v1", pair / "v2", "-o", pair / "x"),
            ("apply", pair / "v1", pair / "d", "-o", pair / "x"),
            ("info", pair / "d"),
        ):
            line = refused(*arguments)
            assert "Permission denied" in line
            assert str(pair) in line


@contextlib.contextmanager
def files_of_at_most(size: int):
    """The kernel writes no file beyond it: as on a full disk a write takes what fits, the next one fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_is_one_line_and_the_same_command_goes_on_later(pair, refused):
    with files_of_at_most(5000):
        line = refused("apply", pair / "v1", pair / "d", "-o", pair / "made")
        assert "made.part: File too large" in line
    assert names(pair) == ["d", "made.part", "v1", "v2"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["apply", str(pair / "v1"), str(pair / "d"), "-o", str(pair / "made")])
    assert ended.value.code == 0
    assert (pair / "made").read_bytes() == (pair / "v2").read_bytes()
    with files_of_at_most(100):
        line = refused("diff", pair / "v1", pair / "v2", "-o", pair / "again")
        assert "again: File too large" in line
    assert names(pair) == ["d", "made", "v1", "v2"]


def test_an_interrupted_apply_says_that_it_goes_on_and_does(pair, capsys, monkeypatch):
    apply = ["apply", str(pair / "v1"), str(pair / "d"), "-o", str(pair / "made")]
    with monkeypatch.context() as patch:
        patch.setattr(cli._Bar, "_draw", lambda *_: signal.raise_signal(signal.SIGINT))
        with pytest.raises(SystemExit) as ended:
            cli.main(apply)
    assert ended.value.code == 130
    assert capsys.readouterr().err == (
        "shoal-delta: interrupted; made.part is kept, and the same command goes on from there\n"
    )
    assert names(pair) == ["d", "made.part", "v1", "v2"]
    with pytest.raises(SystemExit) as ended:
        cli.main(apply)
    assert ended.value.code == 0
    assert (pair / "made").read_bytes() == (pair / "v2").read_bytes()


def shell(command: str, folder) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["sh", "-c", command.replace("shoal-delta", f"{sys.executable} -m shoal_delta")],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_output_that_nobody_takes_is_no_traceback(pair):
    done = shell("shoal-delta info d > /dev/full", pair)
    assert done.returncode == 1
    assert done.stderr == "shoal-delta: standard output: No space left on device\n"
    done = shell("{ shoal-delta info d; echo $? >&2; } | true", pair)
    assert done.stderr in {"0\n", "1\n"}


def test_names_that_are_no_text_and_of_two_lines_are_said_in_one(pair, refused, capsys):
    odd = pair / os.fsdecode(b"v\xff2")
    odd.write_bytes((pair / "v2").read_bytes())
    with pytest.raises(SystemExit) as ended:
        cli.main(["diff", str(pair / "v1"), str(odd), "-o", str(odd) + ".delta"])
    assert ended.value.code == 0
    assert "\\udcff" in capsys.readouterr().out
    refused("info", pair / "two\nlines")


def test_a_size_that_is_no_number_is_wrong_usage(pair, capsys):
    for text in ("many", "-1", "1e9", ""):
        with pytest.raises(SystemExit) as ended:
            cli.main(["info", str(pair / "d"), "--max-size", text])
        assert ended.value.code == 2
        assert "--max-size" in capsys.readouterr().err


def test_a_failure_is_json_too_when_json_is_asked_for(pair, capsys):
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main(["apply", str(pair / "v2"), str(pair / "d"), "-o", str(pair / "x"), "--json"])
    out, err = capsys.readouterr()
    assert ended.value.code == 1
    assert json.loads(out)["error"] == "WrongBaseError"
    assert err.startswith("shoal-delta: ")
