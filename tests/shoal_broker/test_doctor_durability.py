"""Plant, kill, start, verify: on brokers that keep everything, nothing, or what was saved last."""

import argparse
import asyncio
import json
import signal
import stat
from contextlib import asynccontextmanager

import msgspec
import pytest
from tests.support.mosquitto import Mosquitto, free_port
from tests.support.programs import Program, running

from shoal_broker.doctor import cli as doctor
from shoal_broker.doctor import client as doctor_client
from shoal_broker.doctor import durability
from shoal_broker.doctor.client import Target, connected
from shoal_broker.render import mosquitto as rendering
from shoal_broker.render.plan import Plan

KEPT = {"session": True, "messages": True, "retained message": True}
LOST = dict.fromkeys(KEPT, False)
needs_mosquitto = pytest.mark.skipif(
    Mosquitto.found() is None, reason="mosquitto is not installed (apt-get install mosquitto)"
)


@asynccontextmanager
async def mosquitto(folder, port, settings):
    config = folder / "killed.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nuser root\n{settings}")
    with (folder / "log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            Mosquitto.found(), "-c", str(config), stdout=log, stderr=log
        )
    program = Program(process, folder / "log")
    try:
        await program.until_said(" running")
        yield program
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def embedded(folder, port, _settings):
    ready = folder / "ready"
    arguments = ("run", "--port", port)
    async with running("shoal_broker", *arguments, log=folder / "log", ready_file=ready) as broker:
        yield broker


async def killed(program):
    program.signal(signal.SIGKILL)
    assert await program.ended() == -signal.SIGKILL


def rendered_persistence(folder):
    """What `shoal-broker render mosquitto` says about persistence, and nothing of its TLS and rules."""
    plan = Plan(install_dir=folder, certs_dir=folder, data_dir=folder)
    config = rendering.render(plan).files[0].text
    return config[config.index("persistence true") : config.index("# --- log")]


def debian(folder):
    return f"persistence true\npersistence_location {folder}/\n"


async def diagnose(port, *arguments):
    parser = argparse.ArgumentParser()
    doctor.add_parser(parser.add_subparsers(required=True))
    parsed = parser.parse_args(["doctor", "--port", str(port), *map(str, arguments)])
    return await asyncio.to_thread(parsed.func, parsed)


def results(out):
    probes = {probe["probe"]: probe["ok"] for probe in json.loads(out)["probes"]}
    return {name: ok for name, ok in probes.items() if name != "restarted"}


@pytest.mark.system
@pytest.mark.parametrize(
    ("broker", "settings", "expected"),
    [
        pytest.param(embedded, lambda _: "", LOST, id="embedded"),
        pytest.param(mosquitto, lambda _: "", LOST, id="no-persistence", marks=needs_mosquitto),
        pytest.param(mosquitto, debian, LOST, id="debian", marks=needs_mosquitto),
        pytest.param(mosquitto, rendered_persistence, KEPT, id="rendered", marks=needs_mosquitto),
    ],
)
async def test_what_a_killed_broker_kept_is_counted(
    tmp_path, capsys, monkeypatch, broker, settings, expected
):
    # How long to wait for a retained message that is gone.
    monkeypatch.setattr(doctor_client, "WAIT_S", 1.0)
    port, file = free_port(), tmp_path / "planted.json"
    async with broker(tmp_path, port, settings(tmp_path)) as program:
        assert await diagnose(port, "--plant", file) == 0
        assert f"doctor --verify {file}" in capsys.readouterr().out
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        # A rendered mosquitto saves in the turn of its loop behind the change: let it have one.
        await asyncio.to_thread(ask, port)
        await killed(program)
    (tmp_path / "log").write_text("")
    async with broker(tmp_path, port, settings(tmp_path)) as program:
        code = await diagnose(port, "--verify", file, "--json")
        out = capsys.readouterr().out
        assert results(out) == expected
        assert code == (0 if expected == KEPT else 1)
        note = json.loads(out)["note"]
        assert note == (None if expected == KEPT else durability.LOST_NOTE)
        assert not file.exists()


def ask(port):
    with connected(Target("127.0.0.1", port, None, None), "asks"):
        pass


@pytest.fixture
async def port(tmp_path):
    async with embedded(tmp_path, 0, "") as program:
        del program
        yield int((tmp_path / "ready").read_text())


async def test_verify_takes_away_what_was_planted(port, tmp_path, capsys):
    file = tmp_path / "planted.json"
    assert await diagnose(port, "--plant", file) == 0
    planted = msgspec.json.decode(file.read_bytes(), type=durability.Planted)
    capsys.readouterr()
    assert await diagnose(port, "--verify", file) == 0
    assert "40 of 40 acknowledged messages survived" in capsys.readouterr().out

    def left():
        target = Target("127.0.0.1", port, None, None, prefix=planted.prefix)
        with connected(target, "node", clean=False) as away:
            assert not away.session_present
            away.subscribe(target.topic("#"))
            away.publish(target.topic("end"), b"end")
            return away.next_message().payload

    assert await asyncio.to_thread(left) == b"end"


async def test_a_file_that_is_there_is_not_overwritten(port, tmp_path, capsys):
    file = tmp_path / "planted.json"
    file.write_text("mine")
    assert await diagnose(port, "--plant", file) == 2
    assert "there already" in capsys.readouterr().out
    assert file.read_text() == "mine"


async def test_a_file_that_cannot_be_written_leaves_nothing(port, tmp_path, capsys):
    assert await diagnose(port, "--plant", tmp_path / "no" / "planted.json") == 2
    out = capsys.readouterr().out
    assert "cannot be written" in out
    assert out.count("\n") == 1

    def left():
        target = Target("127.0.0.1", port, None, None)
        with connected(target, "looks") as looks:
            looks.subscribe("shoal-doctor/#")
            looks.publish(target.topic("end"), b"end")
            return looks.next_message().payload

    assert await asyncio.to_thread(left) == b"end"


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1]", b"\xff\xfe", b'{"type": "something else"}']
)
async def test_a_foreign_file_is_told_in_one_line(tmp_path, capsys, content):
    file = tmp_path / "foreign.json"
    file.write_bytes(content)
    assert await diagnose(1, "--verify", file) == 2
    out = capsys.readouterr().out
    assert "not written by doctor --plant" in out
    assert out.count("\n") == 1


async def test_a_file_of_another_broker_is_told(port, tmp_path, capsys):
    file = tmp_path / "planted.json"
    assert await diagnose(port, "--plant", file) == 0
    other = free_port()
    assert await diagnose(other, "--verify", file) == 2
    assert f"not on 127.0.0.1:{other}" in capsys.readouterr().out
    assert file.exists()
    assert await diagnose(port, "--verify", tmp_path / "none") == 2
    assert "cannot be read" in capsys.readouterr().out


@pytest.mark.system
@needs_mosquitto
async def test_a_broker_that_was_not_killed_is_left_as_it_is(tmp_path, capsys):
    port, file = free_port(), tmp_path / "planted.json"
    async with mosquitto(tmp_path, port, ""):
        assert await diagnose(port, "--plant", file) == 0
        planted = msgspec.json.decode(file.read_bytes())
        # As if the broker had been there long before.
        file.write_bytes(
            msgspec.json.encode(planted | {"planted_unix_s": planted["planted_unix_s"] + 60})
        )
        capsys.readouterr()
        assert await diagnose(port, "--verify", file) == 1
        assert "kill it first" in capsys.readouterr().out
        file.write_bytes(msgspec.json.encode(planted))
        assert await diagnose(port, "--verify", file, "--json") == 0
        assert results(capsys.readouterr().out) == KEPT
