"""`shoal-broker` as people run it."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import socket
import stat
import sys

import pytest

from shoal_broker import cli
from shoal_broker.codec import ConnectPacket, PacketReader, encode
from shoal_broker.server.passwords import Passwords

PROGRAM = [sys.executable, "-c", "from shoal_broker.cli import main; main()"]


async def start(*arguments, **options):
    return await asyncio.create_subprocess_exec(
        *PROGRAM,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        **options,
    )


async def finish(process):
    async with asyncio.timeout(10):
        output, complaints = await process.communicate()
    return process.returncode, output.decode(), complaints.decode()


async def listening(process):
    async with asyncio.timeout(10):
        line = (await process.stdout.readline()).decode()
    assert line.startswith("shoal-broker listening on 127.0.0.1:"), line
    return int(line.rpartition(":")[2])


@pytest.mark.system
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_says_when_it_is_ready_and_says_goodbye_at_a_signal(tmp_path, number):
    ready = tmp_path / "ready"
    process = await start("--port", "0", "--ready-file", str(ready), "--log-format", "json")
    port = await listening(process)
    assert ready.read_text() == f"{port}\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(encode(ConnectPacket("c")))
    packets = PacketReader()
    async with asyncio.timeout(5):
        packets.feed(await reader.read(1000))
        assert int(packets.next_packet().reason_code) == 0
        process.send_signal(number)
        packets.feed(await reader.read(1000))
        assert int(packets.next_packet().reason_code) == 0x8B
        assert await reader.read(1000) == b""
    writer.close()
    code, output, complaints = await finish(process)
    assert code == 0
    assert output == ""
    assert "Traceback" not in complaints
    assert '"event": "client connected"' in complaints
    assert not ready.exists()


@pytest.mark.system
async def test_run_may_be_said(tmp_path):
    process = await start("run", "--port", "0", "--metrics-port", "0")
    await listening(process)
    assert b"metrics on http://127.0.0.1:" in await process.stdout.readline()
    process.terminate()
    assert (await finish(process))[0] == 0


def test_a_port_in_use_is_one_line_and_exit_1(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.run(["--port", str(port)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"shoal-broker: cannot listen on 127.0.0.1:{port}: the port is in use\n"


def test_an_open_door_is_usage_and_says_what_to_do(capsys):
    assert cli.run(["run", "--host", "0.0.0.0"]) == 2
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert "--password-file" in complaint
    assert "--no-auth" in complaint


@pytest.mark.parametrize(
    "arguments", [["--port", "x"], ["--port", "99999"], ["--max-packet-bytes", "1"], ["no-command"]]
)
def test_wrong_arguments_are_usage(arguments, capsys):
    try:
        code = cli.run(arguments)
    except SystemExit as exc:
        code = exc.code
    assert code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_missing_password_file_is_exit_1(tmp_path, capsys):
    assert cli.run(["--port", "0", "--password-file", str(tmp_path / "none")]) == 1
    assert "cannot read the password file" in capsys.readouterr().err


def test_a_ready_file_that_cannot_be_written_is_exit_1(tmp_path, capsys):
    assert cli.run(["--port", "0", "--ready-file", str(tmp_path / "no" / "ready")]) == 1
    assert "cannot write" in capsys.readouterr().err


def test_passwd_reads_the_password_from_a_pipe(tmp_path, capsys, monkeypatch):
    users = tmp_path / "users"
    read_end, write_end = os.pipe()
    os.write(write_end, b"s3cret\n")
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        monkeypatch.setattr(sys, "stdin", pipe)
        assert cli.run(["passwd", str(users), "node"]) == 0
    assert capsys.readouterr().out == f"node added to {users}\n"
    assert stat.S_IMODE(users.stat().st_mode) == 0o600
    assert Passwords.read(users).verify("node", b"s3cret")


def test_an_empty_password_is_refused(tmp_path, capsys, monkeypatch):
    with open(os.devnull) as nothing:  # noqa: PTH123 - a stream is what is needed
        monkeypatch.setattr(sys, "stdin", nothing)
        assert cli.run(["passwd", str(tmp_path / "users"), "node"]) == 2
    assert not (tmp_path / "users").exists()


def test_help_has_an_example(capsys):
    for arguments in (["--help"], ["run", "--help"], ["passwd", "--help"]):
        with pytest.raises(SystemExit) as ended:
            cli.run(arguments)
        assert ended.value.code == 0
        assert "examples:" in capsys.readouterr().out


def test_a_broker_that_cannot_start_leaves_the_ready_file_of_another_alone(tmp_path, capsys):
    ready = tmp_path / "ready"
    ready.write_text("1883\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert cli.run(["--port", port, "--ready-file", str(ready)]) == 1
    assert "in use" in capsys.readouterr().err
    assert ready.read_text() == "1883\n"


def test_a_ready_file_that_cannot_be_written_is_one_line(tmp_path, capsys):
    assert cli.run(["--port", "0", "--ready-file", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_password_that_is_no_text_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8"))
    assert cli.run(["passwd", str(tmp_path / "users"), "gateway-1"]) == 2
    assert capsys.readouterr().err == "shoal-broker: the password is not UTF-8 text\n"
