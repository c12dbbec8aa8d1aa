"""TLS at the embedded broker: who gets in, what it says to whom it does not take, what that costs."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog.testing
from tests.shoal_broker.render.rendered_mosquitto import Authority
from tests.shoal_broker.server.test_shell import Clock, Raw, raw, until
from tests.support.embedded import tls_of
from tests.support.tls_listener import client_files
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidMessage

from shoal_broker.bus_errors import BrokerNotTrustedError, IdentityRefusedError, LinkError
from shoal_broker.codec import ConnAckPacket, ConnectPacket, DisconnectPacket, PublishPacket
from shoal_broker.errors import CertificateFileError, ConfigError
from shoal_broker.link import SessionConfig
from shoal_broker.server import Broker, BrokerConfig
from shoal_broker.server.access_rules import AccessRules, Policy
from shoal_broker.server.config import Listener, Tls
from shoal_broker.server.passwords import set_password
from shoal_broker.session import Inbound, Session
from shoal_broker.tls import TlsFiles, client_context
from shoal_broker.transports import connect_with

DEADLINE_S = 10
LARGEST = 96 << 10
OPEN = AccessRules(policy=Policy.OPEN)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """An authority that the broker does not know."""
    return Authority(tmp_path_factory.mktemp("stranger"))


@pytest.fixture(params=["aiomqtt", "codec"])
def session_config(request):
    def made(broker: Broker, tls: TlsFiles | None, **given) -> SessionConfig:
        quick = {"backoff_initial_s": 0.02, "backoff_max_s": 0.1, "connect_timeout_s": 5.0}
        known = {"host": "127.0.0.1", "client_id": "client", "transport": request.param}
        return SessionConfig(port=broker.port, tls=tls, **known | quick | given)

    return made


def open_broker(authority: Authority, clock=None, **given):
    known = {"port": 0, "tls": tls_of(authority), "access": OPEN}
    options = {} if clock is None else {"clock": clock}
    return Broker.open(BrokerConfig(**known | given), **options)


@asynccontextmanager
async def secured(broker: Broker, files: TlsFiles, port: int | None = None):
    """A client that does only what it is told to, over TLS."""
    streams = await asyncio.open_connection(
        "127.0.0.1", port or broker.port, ssl=client_context(files), server_hostname="localhost"
    )
    client = Raw(*streams)
    try:
        yield client
    finally:
        await client.close()


async def end_of(broker: Broker, talk) -> str:
    """The reason that the log has for a connection on which `talk(reader, writer)` was said."""
    with structlog.testing.capture_logs() as logs:
        reader, writer = await asyncio.open_connection("127.0.0.1", broker.port)
        await talk(reader, writer)
        await until(lambda: any(entry["event"] == "client refused" for entry in logs))
        writer.close()
    (refused,) = (entry for entry in logs if entry["event"] == "client refused")
    assert "Traceback" not in str(logs)
    return refused["reason"]


# --- the bus over it


async def test_a_session_carries_the_largest_message_both_ways(authority, session_config):
    got: list[bytes] = []

    async def take(inbound: Inbound) -> None:
        got.append(inbound.payload)

    sent = [bytes([n]) * (LARGEST - n) for n in range(16)]
    async with (
        open_broker(authority) as broker,
        Session.open(
            session_config(broker, client_files(authority)), subscriptions={"t": take}
        ) as mine,
    ):
        await mine.wait_connected(DEADLINE_S)
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(*(mine.publish("t", each, durable=False) for each in sent))
        await until(lambda: len(got) == len(sent))
        assert mine.stats.reconnects == 0
        assert broker.counters.tls_failed == 0
    assert got == sent


@pytest.mark.parametrize(
    ("name", "alert", "told"),
    [
        ("expired", "certificate expired", "is not accepted: certificate has expired"),
        ("revoked", "certificate revoked", "is not accepted: certificate revoked"),
        ("foreign", "unknown ca", "is not accepted: unable to get local issuer certificate"),
        ("none", "certificate required", "the client has no certificate"),
    ],
)
async def test_a_session_whose_certificate_is_refused_hears_why(
    authority, stranger, session_config, name, alert, told
):
    authority.issue("expired", days=-1)
    authority.issue("revoked")
    files = {
        "foreign": client_files(stranger, "client", ca_file=client_files(authority).ca_file),
        "none": client_files(authority, cert_file=None, key_file=None),
    }.get(name) or client_files(authority, name)
    given = {"crl_file": Path(authority.revoke("revoked"))} if name == "revoked" else {}
    with structlog.testing.capture_logs() as logs:
        async with open_broker(authority, tls=tls_of(authority, **given)) as broker:
            known = session_config(broker, files)
            async with asyncio.timeout(DEADLINE_S):
                with pytest.raises(IdentityRefusedError) as refused:
                    async with connect_with(known.transport)(known, None):
                        pass
            assert refused.value.alert == alert
            await until(lambda: broker.counters.tls_failed == 1)
            assert broker.counters.refused == 1
    (line,) = (entry for entry in logs if entry["event"] == "client refused")
    assert told in line["reason"]


async def test_a_session_that_does_not_trust_the_broker_says_so_and_so_does_the_broker(
    authority, stranger, session_config
):
    files = client_files(authority, ca_file=str(stranger.folder / "ca.crt"))
    with structlog.testing.capture_logs() as logs:
        async with open_broker(authority) as broker:
            known = session_config(broker, files)
            with pytest.raises(BrokerNotTrustedError):
                async with asyncio.timeout(DEADLINE_S), connect_with(known.transport)(known, None):
                    pass
            await until(lambda: broker.counters.tls_failed == 1)
    (line,) = (entry for entry in logs if entry["event"] == "client refused")
    # asyncio's TLS, that of the lean transport, closes without a word.
    told = {"aiomqtt": "the client ended TLS: unknown ca"}
    assert line["reason"] == told.get(known.transport, "the connection ended in the TLS handshake")


async def test_a_plain_session_at_the_tls_port_is_told_so(authority, session_config):
    async with open_broker(authority) as broker:
        known = session_config(broker, None)
        with pytest.raises(LinkError, match="does this port want TLS"):
            async with asyncio.timeout(DEADLINE_S), connect_with(known.transport)(known, None):
                pass


# --- what does not become a client


async def test_plain_words_at_the_tls_port_cost_one_line(authority):
    async def talk(reader, writer) -> None:
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await reader.read()

    async with open_broker(authority) as broker:
        assert await end_of(broker, talk) == "the client does not speak TLS"
        assert broker.counters.tls_failed == 1
        assert not broker.core.connections


async def test_a_client_of_tls_1_2_is_told_the_version(authority):
    context = client_context(client_files(authority))
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2

    def shake_hands(port: int) -> str:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
            try:
                context.wrap_socket(sock, server_hostname="localhost")
            except ssl.SSLError as exc:
                return str(exc.reason)
        return "accepted"

    with structlog.testing.capture_logs() as logs:
        async with open_broker(authority) as broker:
            told = await asyncio.to_thread(shake_hands, broker.port)
            await until(lambda: not broker.core.connections)
    assert told == "TLSV1_ALERT_PROTOCOL_VERSION"
    assert "the client does not speak TLS 1.3" in {entry.get("reason") for entry in logs}


async def test_a_handshake_that_never_ends_is_cut_in_time(authority):
    clock = Clock()
    with structlog.testing.capture_logs() as logs:
        async with open_broker(authority, clock) as broker, raw(broker) as silent:
            silent.writer.write(b"\x16\x03\x01\x02\x00\x01")
            await until(lambda: broker.core.connections)
            clock.now_s += 11
            broker.sweep()
            await until(lambda: not broker._links)
            assert (broker.counters.tls_failed, broker.counters.refused) == (1, 1)
    assert [e["reason"] for e in logs if e["event"] == "client refused"] == ["no CONNECT in time"]


async def test_connections_in_their_handshake_count_against_the_limit(authority, monkeypatch):
    monkeypatch.setattr("shoal_broker.server.shell.SURPLUS_CONNECTIONS", 0)
    async with (
        open_broker(authority, max_connections=2) as broker,
        raw(broker),
        raw(broker),
    ):
        await until(lambda: len(broker._links) == 2)
        third = Raw(*await asyncio.open_connection("127.0.0.1", broker.port))
        with pytest.raises((ConnectionResetError, AssertionError)):
            assert await third.next() is not None
        await third.close()


async def test_a_thousand_broken_handshakes_leave_nothing_behind(authority):
    noise = [b"", b"\x16", b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", b"\x80" * 600, bytes(50)]
    with structlog.testing.capture_logs() as logs:
        async with open_broker(authority) as broker:

            async def break_off(n: int) -> None:
                _, writer = await asyncio.open_connection("127.0.0.1", broker.port)
                writer.write(noise[n % len(noise)])
                writer.close()

            for begin in range(0, 1_000, 50):
                await asyncio.gather(*map(break_off, range(begin, begin + 50)))
            await until(lambda: broker.counters.tls_failed == 1_000)
            assert not broker._links
            assert not broker.core.connections
            async with secured(broker, client_files(authority)) as client:
                assert int((await client.connect("c")).reason_code) == 0
    refused = [e for e in logs if e["event"] == "client refused"]
    left_out = [e["count"] for e in logs if e.get("left_out") == "client refused"]
    assert len(refused) < 1_000
    assert len(refused) + sum(left_out) == 1_000


# --- who is who


async def test_the_connection_is_closed_as_tls_has_it(authority):
    async with open_broker(authority) as broker, secured(broker, client_files(authority)) as client:
        await client.connect("c")
        client.send(DisconnectPacket())
        # A truncated stream would raise.
        assert await client.next() is None


async def test_a_message_in_the_last_bytes_of_the_handshake_is_read(authority):
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_context(client_files(authority)).wrap_bio(
        incoming, outgoing, server_hostname="localhost"
    )
    async with open_broker(authority) as broker:
        reader, writer = await asyncio.open_connection("127.0.0.1", broker.port)
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                writer.write(outgoing.read())
                incoming.write(await reader.read(65_536))
        tls.write(ConnectPacket("c").write())
        writer.write(outgoing.read())
        while True:
            try:
                answer = tls.read(100)
                break
            except ssl.SSLWantReadError:
                incoming.write(await reader.read(65_536))
        assert answer[0] == 0x20
        writer.close()


async def test_passwords_are_asked_for_over_tls_without_client_certificates(authority, tmp_path):
    users = tmp_path / "users"
    set_password(users, "node-1", "right")
    tls = tls_of(authority, client_ca_file=None)
    nobody = client_files(authority, cert_file=None, key_file=None)
    async with open_broker(authority, tls=tls, password_file=users, access=AccessRules()) as broker:
        async with secured(broker, nobody) as client:
            answer = await client.connect("c", username="node-1", password=b"wrong")
            assert int(answer.reason_code) == 0x86
        async with secured(broker, nobody) as client:
            answer = await client.connect("c", username="node-1", password=b"right")
            assert int(answer.reason_code) == 0
            assert set(broker.core.router.sessions) == {"node-1"}
            assert await client.publish("shoal/n/node-1/s") < 0x80
            assert await client.publish("shoal/n/node-2/s") == 0x87


async def test_plain_on_loopback_and_tls_outside_are_one_broker(authority):
    more = (Listener(port=0, tls=tls_of(authority)),)
    config = {"tls": None, "no_auth": True, "more_listeners": more, "access": AccessRules()}
    async with (
        open_broker(authority, **config) as broker,
        raw(broker) as local,
        secured(broker, client_files(authority, "node-1"), broker.ports[1]) as node,
    ):
        await local.connect("local")
        await local.subscribe("#")
        await node.connect("anything")
        assert await node.publish("shoal/n/node-1/s", b"mine") == 0
        assert (await local.next(PublishPacket)).payload == b"mine"
        assert await node.publish("shoal/n/node-2/s") == 0x87


async def test_websocket_over_tls_asks_for_the_same_certificate(authority):
    tls = client_context(client_files(authority, "node-1"))
    async with open_broker(authority, websocket_port=0, access=AccessRules()) as broker:
        address = f"wss://localhost:{broker.websocket_port}/mqtt"
        async with asyncio.timeout(DEADLINE_S):
            async with connect(address, ssl=tls, subprotocols=["mqtt"], compression=None) as client:
                await client.send(ConnectPacket("anything").write())
                assert (await client.recv())[0] == 0x20
                assert set(broker.core.router.sessions) == {"node-1"}
            nobody = client_context(client_files(authority, cert_file=None, key_file=None))
            with pytest.raises((ssl.SSLError, OSError, EOFError, InvalidMessage)):
                async with connect(address, ssl=nobody, subprotocols=["mqtt"]):
                    pass


# --- files, and reading them again


async def test_renewed_files_hold_for_the_next_connection_once_they_are_read_again(
    authority, stranger, tmp_path
):
    shutil.copy(authority.folder / "ca.crt", tmp_path / "clients.crt")
    tls = tls_of(authority, client_ca_file=tmp_path / "clients.crt")
    ours = client_files(authority)
    theirs = client_files(stranger, ca_file=str(authority.folder / "ca.crt"))
    async with open_broker(authority, tls=tls) as broker, secured(broker, ours) as before:
        await before.connect("before")
        shutil.copy(stranger.folder / "ca.crt", tmp_path / "clients.crt")
        await broker.read_again(OPEN)
        async with secured(broker, theirs) as client:
            assert int((await client.connect("after")).reason_code) == 0
        async with secured(broker, ours) as client:
            client.send(ConnectPacket("late"))
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await client.next()
        # Who is connected stays.
        assert await before.publish("t") < 0x80


async def test_files_that_cannot_be_used_leave_the_earlier_ones_in_force(authority, tmp_path):
    shutil.copy(authority.folder / "ca.crt", tmp_path / "clients.crt")
    tls = tls_of(authority, client_ca_file=tmp_path / "clients.crt")
    async with open_broker(authority, tls=tls) as broker:
        (tmp_path / "clients.crt").write_text("not a certificate")
        with pytest.raises(CertificateFileError, match=r"client_ca_file .* holds no certificate"):
            await broker.read_again(OPEN)
        async with secured(broker, client_files(authority)) as client:
            assert int((await client.connect("c")).reason_code) == 0


async def test_a_user_who_is_no_longer_in_the_password_file_is_sent_away(tmp_path):
    users = tmp_path / "users"
    for user in ("node-1", "node-2"):
        set_password(users, user, "right")
    config = BrokerConfig(port=0, password_file=users)
    async with Broker.open(config) as broker, raw(broker) as gone, raw(broker) as stays:
        await gone.connect(username="node-1", password=b"right")
        await stays.connect(username="node-2", password=b"right")
        kept = [line for line in users.read_text().splitlines() if line.startswith("node-2:")]
        users.write_text("\n".join(kept) + "\n")
        await broker.read_again(AccessRules())
        assert int((await gone.next(DisconnectPacket)).reason_code) == 0x98
        assert await stays.publish("shoal/n/node-2/s") < 0x80
        async with raw(broker) as again:
            again.send(ConnectPacket("c", username="node-1", password=b"right"))
            assert int((await again.next(ConnAckPacket)).reason_code) == 0x86


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"cert_file": "none"}, "cert_file none cannot be read"),
        ({"key_file": "ca.crt"}, "key_file .* holds no private key"),
        ({"client_ca_file": "broker.key"}, "client_ca_file .* holds no certificate"),
        ({"crl_file": "broker.key"}, "crl_file .* holds no list of revoked certificates"),
    ],
)
async def test_a_tls_file_that_cannot_be_used_is_one_clear_error(authority, wrong, told):
    tls_of(authority)
    files = {
        name: Path(file if file == "none" else authority.folder / file)
        for name, file in wrong.items()
    }
    with pytest.raises(CertificateFileError, match=told):
        async with open_broker(authority, tls=tls_of(authority, **files)):
            pass


def test_who_lets_anybody_in_beside_a_listener_that_asks_must_say_so(tmp_path):
    tls = Tls(cert_file=tmp_path, key_file=tmp_path, client_ca_file=tmp_path)
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1:1883 lets anybody in"):
        BrokerConfig(more_listeners=(Listener(port=8883, tls=tls),))
    BrokerConfig(no_auth=True, more_listeners=(Listener(port=8883, tls=tls),))
    with pytest.raises(ConfigError, match="client certificates and no authentication"):
        BrokerConfig(tls=tls, no_auth=True)
    with pytest.raises(ConfigError, match="no listener asks for it"):
        BrokerConfig(tls=tls, password_file=tmp_path)
    with pytest.raises(ConfigError, match="reached from other machines"):
        BrokerConfig(host="0.0.0.0", tls=Tls(cert_file=tmp_path, key_file=tmp_path))
