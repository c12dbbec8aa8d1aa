import argparse
import asyncio
import json
import socket
from contextlib import asynccontextmanager

import pytest
import structlog.testing
from tests.shoal_broker.render.rendered_mosquitto import Authority
from tests.support.mosquitto import Mosquitto
from tests.support.tls_listener import client_files, tls_listener

from shoal_broker.doctor import cli as doctor
from shoal_broker.doctor import client as doctor_client
from shoal_broker.doctor.client import Target
from shoal_broker.doctor.probes import SHARED_MESSAGES, transport
from shoal_broker.doctor.retained_sizes import retained_sizes
from shoal_broker.doctor.round_trip import NAGLE_SUSPECT_MS, round_trip
from shoal_broker.server import Broker, BrokerConfig
from shoal_broker.tls import TlsFiles

ALL = [
    "transport",
    "limits",
    "round trip",
    "retained",
    "retained sizes",
    "persistent session",
    "last will",
    "shared subscription",
    "request properties",
]


async def diagnose(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    doctor.add_parser(parser.add_subparsers(required=True))
    parsed = parser.parse_args(["doctor", *arguments])
    return await asyncio.to_thread(parsed.func, parsed)


@asynccontextmanager
async def embedded(folder):
    # The broker's own log lines would stand between those of the doctor.
    with structlog.testing.capture_logs():
        async with Broker.open(BrokerConfig(host="127.0.0.1", port=0)) as broker:
            yield broker


@pytest.fixture(params=["embedded", pytest.param("mosquitto", marks=pytest.mark.system)])
async def port(request, tmp_path):
    if request.param == "mosquitto" and Mosquitto.found() is None:
        pytest.skip("mosquitto is not installed (apt-get install mosquitto)")
    opened = Mosquitto.open(tmp_path) if request.param == "mosquitto" else embedded(tmp_path)
    async with opened as broker:
        yield broker.port


@pytest.mark.slow
async def test_a_good_broker_passes_every_probe(port, capsys):
    assert await diagnose("--port", str(port), "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert [probe["probe"] for probe in report["probes"]] == ALL
    facts = {probe["probe"]: probe["facts"] for probe in report["probes"]}
    assert 0 < facts["round trip"]["p50_ms"] < NAGLE_SUSPECT_MS
    assert sum(facts["shared subscription"]["members"]) == SHARED_MESSAGES


async def test_the_doctor_does_not_go_to_another_machine_in_the_clear_by_accident(capsys):
    assert await diagnose("--host", "192.0.2.1") == 2
    assert "--ca-file (TLS), or --plaintext" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("host", "tls", "ok"),
    [
        ("127.0.0.1", None, True),
        ("192.0.2.1", TlsFiles(ca_file="ca", cert_file="c", key_file="k"), True),
        ("192.0.2.1", TlsFiles(ca_file="ca"), True),
        ("192.0.2.1", None, False),
    ],
)
def test_the_doctor_says_whether_the_way_to_the_broker_is_encrypted(host, tls, ok):
    finding = transport(Target(host, 1, None, None, tls))
    assert finding.ok is ok
    assert finding.facts["tls"] is (tls is not None)


@pytest.mark.slow
async def test_for_people_there_is_one_line_a_probe(port, capsys):
    assert await diagnose("--port", str(port)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(ALL)
    assert all(line.startswith("ok ") for line in lines)


@pytest.mark.system
async def test_a_broker_that_breaks_promises_fails_the_probes_concerned(tmp_path, capsys):
    if Mosquitto.found() is None:
        pytest.skip("mosquitto is not installed (apt-get install mosquitto)")
    extra = (
        "allow_anonymous true\nretain_available false\nmax_packet_size 20000\n"
        "persistent_client_expiration 1h\nmax_queued_messages 1\nmax_inflight_messages 1\n"
    )
    async with Mosquitto.open(tmp_path, extra=extra) as broker:
        assert await diagnose("--port", str(broker.port), "--json") == 1
    probes = {p["probe"]: p for p in json.loads(capsys.readouterr().out)["probes"]}
    assert not probes["limits"]["ok"]
    assert "20000 bytes" in probes["limits"]["means"]
    assert "no retained messages" in probes["limits"]["means"]
    assert not probes["retained"]["ok"]
    assert not probes["retained sizes"]["ok"]
    assert probes["round trip"]["ok"]


@pytest.mark.system
@pytest.mark.parametrize("nodelay", ["true", "false"])
async def test_the_round_trip_says_whether_the_brokers_side_has_nodelay(tmp_path, capsys, nodelay):
    if Mosquitto.found() is None:
        pytest.skip("mosquitto is not installed (apt-get install mosquitto)")
    extra = f"allow_anonymous true\nset_tcp_nodelay {nodelay}"
    async with Mosquitto.open(tmp_path, extra=extra) as broker:
        target = Target("127.0.0.1", broker.port, None, None)
        found = await asyncio.to_thread(round_trip, target)
    assert found.ok is (nodelay == "true")
    assert ("no TCP_NODELAY" in found.means) is (nodelay == "false")
    # Without it on our side a delayed ACK is waited for, whatever the broker's side does.
    assert found.facts["without_nodelay_p50_ms"] > NAGLE_SUSPECT_MS


@pytest.mark.system
@pytest.mark.parametrize(
    ("packet_bytes", "kept_bytes"),
    [(80_000, 64 << 10), (60_000, 48 << 10), (40_000, 32 << 10), (20_000, 0)],
)
async def test_the_largest_retained_message_is_found(tmp_path, capsys, packet_bytes, kept_bytes):
    if Mosquitto.found() is None:
        pytest.skip("mosquitto is not installed (apt-get install mosquitto)")
    extra = f"allow_anonymous true\nmax_packet_size {packet_bytes}"
    async with Mosquitto.open(tmp_path, extra=extra) as broker:
        target = Target("127.0.0.1", broker.port, None, None)
        found = await asyncio.to_thread(retained_sizes, target)
    assert found.ok is False
    assert found.facts["kept_bytes"] == kept_bytes
    if kept_bytes:
        assert f"set chunk_bytes = {kept_bytes}" in found.means
        assert found.facts["at_once_whole"] == found.facts["at_once"]


@pytest.mark.system
async def test_fewer_retained_chunks_than_published_are_counted(tmp_path, capsys, monkeypatch):
    if Mosquitto.found() is None:
        pytest.skip("mosquitto is not installed (apt-get install mosquitto)")
    monkeypatch.setattr(doctor_client, "WAIT_S", 1.0)
    extra = "allow_anonymous true\nmax_inflight_messages 2\nmax_queued_messages 5"
    async with Mosquitto.open(tmp_path, extra=extra) as broker:
        target = Target("127.0.0.1", broker.port, None, None)
        found = await asyncio.to_thread(retained_sizes, target)
    assert found.ok is False
    assert found.facts["at_once_whole"] < found.facts["at_once"]
    assert "raise what it retains or queues" in found.means


@pytest.mark.system
async def test_wrong_credentials_are_told_in_one_line(tmp_path, capsys):
    if Mosquitto.found() is None:
        pytest.skip("mosquitto is not installed (apt-get install mosquitto)")
    secret = tmp_path / "secret"
    secret.write_text("wrong\n")
    async with Mosquitto.open(tmp_path, extra="allow_anonymous false") as broker:
        code = await diagnose(
            "--port", str(broker.port), "--username", "me", "--password-file", str(secret)
        )
    assert code == 3
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "refuses the connection" in out
    assert "wrong" not in out


async def test_a_broker_that_is_not_there_is_unreachable(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = str(taken.getsockname()[1])
        assert await diagnose("--port", port) == 3
        assert "cannot be reached" in capsys.readouterr().out
        assert await diagnose("--port", port, "--json") == 3
        assert json.loads(capsys.readouterr().out)["ok"] is False


async def test_a_server_that_speaks_no_mqtt_is_given_up(capsys, monkeypatch):
    monkeypatch.setattr(doctor_client, "WAIT_S", 0.2)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        assert await diagnose("--port", str(deaf.getsockname()[1])) == 3
    assert "is this an MQTT 5 broker" in capsys.readouterr().out


async def test_an_unreadable_password_file_is_a_usage_error(tmp_path, capsys):
    assert await diagnose("--password-file", str(tmp_path / "none")) == 2
    assert "password file" in capsys.readouterr().out


def tls_options(files) -> list[str]:
    given = {"ca": files.ca_file, "cert": files.cert_file, "key": files.key_file}
    return [word for name, path in given.items() if path for word in (f"--{name}-file", path)]


@pytest.mark.system
async def test_the_doctor_speaks_tls_and_says_which_end_refuses_which(tmp_path, capsys):
    if Mosquitto.found() is None:
        pytest.skip("mosquitto is not installed (apt-get install mosquitto)")
    authority, stranger = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    authority.issue("expired", days=-1)
    async with Mosquitto.open(tmp_path, extra=tls_listener(authority)) as broker:
        port = ["--port", str(broker.port)]
        assert await diagnose(*port, "--json", *tls_options(client_files(authority))) == 0
        assert json.loads(capsys.readouterr().out)["ok"] is True
        for files, told in (
            (client_files(authority, "expired"), "refuses our certificate: certificate expired"),
            (
                client_files(authority, cert_file=None, key_file=None),
                "refuses our certificate: certificate required",
            ),
            (client_files(stranger), "we do not accept the broker's certificate"),
        ):
            assert await diagnose(*port, *tls_options(files)) == 3
            out = capsys.readouterr().out
            assert told in out
            assert out.count("\n") == 1
        assert await diagnose(*port) == 3
        assert "does this port want TLS" in capsys.readouterr().out
    async with Mosquitto.open(tmp_path) as plain:
        files = tls_options(client_files(authority))
        assert await diagnose("--port", str(plain.port), *files) == 3
        assert "is this the broker's TLS port" in capsys.readouterr().out


async def test_files_for_tls_that_cannot_be_used_are_a_usage_error(tmp_path, capsys):
    assert await diagnose("--ca-file", str(tmp_path / "none")) == 2
    assert "ca_file" in capsys.readouterr().out
    assert await diagnose("--cert-file", "x") == 2
    assert "cert_file needs ca_file" in capsys.readouterr().out
