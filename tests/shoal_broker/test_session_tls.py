"""The session over TLS: whom it trusts, who trusts it, and what it says when one of them does not."""

import asyncio
import os
import select
import shutil
import socket
import ssl
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog.testing
from tests.shoal_broker.render.rendered_mosquitto import Authority
from tests.support.mosquitto import Mosquitto
from tests.support.tls_listener import client_files, tls_listener

from shoal_broker import aiomqtt_transport, codec_transport
from shoal_broker.bus_errors import (
    BrokerNotTrustedError,
    IdentityRefusedError,
    LinkError,
    TlsFilesError,
)
from shoal_broker.codec import (
    ConnAckPacket,
    ConnectPacket,
    PacketReader,
    PublishPacket,
    QoS,
    encode,
)
from shoal_broker.link import SessionConfig
from shoal_broker.session import Inbound, Session
from shoal_broker.tls import TlsFiles
from shoal_broker.transports import connect_with

DEADLINE_S = 10
LARGEST = 96 << 10


def with_mosquitto(test):
    return pytest.mark.system(
        pytest.mark.skipif(
            Mosquitto.found() is None,
            reason="mosquitto is not installed (apt-get install mosquitto)",
        )(test)
    )


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """An authority that the other end does not know."""
    return Authority(tmp_path_factory.mktemp("stranger"))


@pytest.fixture(params=["aiomqtt", "codec"])
def transport(request):
    return request.param


@pytest.fixture
def config(transport):
    def made(port: int, tls: TlsFiles | None, **given) -> SessionConfig:
        quick = {"backoff_initial_s": 0.02, "backoff_max_s": 0.1, "connect_timeout_s": 5.0}
        known = {"host": "127.0.0.1", "client_id": "node-1", "transport": transport}
        return SessionConfig(port=port, tls=tls, **known | quick | given)

    return made


async def until(true) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not true():  # noqa: ASYNC110 - counters have no event
            await asyncio.sleep(0.005)


async def try_to_connect(config: SessionConfig) -> None:
    async with asyncio.timeout(DEADLINE_S), connect_with(config.transport)(config, None):
        pass


def renew(files: TlsFiles, issued: tuple[str, str]) -> None:
    """As a renewing program would: each file is replaced at once."""
    for new, old in zip(issued, (files.cert_file, files.key_file), strict=True):
        shutil.copy(new, f"{old}.new")
        Path(f"{old}.new").replace(old)


def own_copy(folder: Path, authority: Authority, name: str) -> TlsFiles:
    """Files of this test alone."""
    files = client_files(authority, name)
    for path in (files.cert_file, files.key_file):
        shutil.copy(path, folder)
    return client_files(
        authority,
        name,
        cert_file=str(folder / Path(files.cert_file).name),
        key_file=str(folder / Path(files.key_file).name),
    )


@asynccontextmanager
async def mosquitto(folder: Path, extra: str = "allow_anonymous true"):
    async with Mosquitto.open(folder, extra=extra) as broker:
        yield broker.port


@asynccontextmanager
async def a_peer(talk, tls: ssl.SSLContext | None = None):
    """Somebody at the other end who does what `talk(reader, writer)` says, to each who comes."""
    talks = []

    async def accept(reader, writer) -> None:
        talks.append(asyncio.current_task())
        try:
            await talk(reader, writer)
        finally:
            writer.close()

    async with await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls) as server:
        yield server.sockets[0].getsockname()[1]
        for task in talks:
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)


def server_context(authority: Authority, **given) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("localhost", "broker"))
    for name, value in given.items():
        setattr(context, name, value)
    return context


# --- messages


@with_mosquitto
async def test_the_largest_message_goes_out_and_comes_in_whole(tmp_path, authority, config):
    got: list[bytes] = []

    async def take(inbound: Inbound) -> None:
        got.append(inbound.payload)

    sent = [bytes([n]) * (LARGEST - n) for n in range(16)]
    async with (
        mosquitto(tmp_path, tls_listener(authority)) as port,
        Session.open(config(port, client_files(authority)), subscriptions={"t": take}) as mine,
    ):
        await mine.wait_connected(DEADLINE_S)
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(*(mine.publish("t", each, durable=False) for each in sent))
        await until(lambda: len(got) == len(sent))
        assert mine.stats.reconnects == 0
    assert got == sent


@with_mosquitto
async def test_the_connection_is_tls_1_3(tmp_path, authority, config, transport):
    async with mosquitto(tmp_path, tls_listener(authority)) as port:
        known = config(port, client_files(authority))
        async with connect_with(transport)(known, None) as link:
            if transport == "codec":
                found = link._transport.get_extra_info("ssl_object")
            else:
                found = link.socket
            assert found.version() == "TLSv1.3"
            assert found.getpeercert()["subject"] == ((("commonName", "localhost"),),)


async def test_what_tls_has_decrypted_at_once_is_read_though_no_socket_tells_of_it(
    authority, config, monkeypatch
):
    # One record: after its first byte no selector has anything more to tell.
    for module in (aiomqtt_transport, codec_transport):
        monkeypatch.setattr(module, "READ_AHEAD_MESSAGES", 10)
    payloads = [b"%03d" % n for n in range(200)]

    async def talk(reader, writer) -> None:
        packets = PacketReader()
        while not isinstance(packets.next_packet(), ConnectPacket):
            packets.feed(await reader.read(65_536))
        messages = (PublishPacket("t", each, qos=QoS.AT_MOST_ONCE) for each in payloads)
        record = b"".join(encode(packet) for packet in (ConnAckPacket(), *messages))
        assert len(record) < 16_384
        writer.write(record)
        await reader.read()

    async with a_peer(talk, server_context(authority)) as port:
        known = config(port, client_files(authority))
        async with asyncio.timeout(DEADLINE_S), connect_with(known.transport)(known, None) as link:
            lean = known.transport == "codec"
            await until(lambda: not link._is_reading if lean else link._client._paused)
            assert [(await link.receive()).inbound.payload for _ in payloads] == payloads


# --- the broker does not take us


@with_mosquitto
@pytest.mark.parametrize(
    ("name", "alert"),
    [
        ("expired", "certificate expired"),
        ("revoked", "certificate revoked"),
        ("foreign", "unknown ca"),
        ("none", "certificate required"),
    ],
)
async def test_a_certificate_that_the_broker_refuses_is_an_alarm_that_says_why(
    tmp_path, authority, stranger, config, name, alert
):
    authority.issue("expired", days=-1)
    authority.issue("revoked")
    files = {
        "foreign": client_files(stranger, "client", ca_file=client_files(authority).ca_file),
        "none": client_files(authority, cert_file=None, key_file=None),
    }.get(name) or client_files(authority, name)
    extra = tls_listener(authority)
    if name == "revoked":
        extra += f"\ncrlfile {authority.revoke('revoked')}"
    with structlog.testing.capture_logs() as logs:
        async with mosquitto(tmp_path, extra) as port:
            known = config(port, files)
            with pytest.raises(IdentityRefusedError) as refused:
                await try_to_connect(known)
            assert (refused.value.alert, refused.value.reason_code) == (alert, None)
            async with Session.open(known) as session:
                await until(lambda: session.stats.identity_refused >= 2)
                assert f"the broker refuses our certificate: {alert}" in session.last_error
    alarms = [entry for entry in logs if entry["event"] == "identity refused"]
    assert alarms[0]["log_level"] == "error"
    assert alarms[0]["alert"] == alert
    if files.cert_file:
        assert files.cert_file in alarms[0]["error"]


@with_mosquitto
async def test_a_refusal_is_read_even_when_the_reset_comes_before_our_connect(
    tmp_path, authority, config, transport, monkeypatch
):
    # The broker is done with us while this process does nothing between handshake and CONNECT.
    owner = codec_transport.CodecLink if transport == "codec" else aiomqtt_transport._Client
    greet = owner.greet
    resets = []

    async def late(self, *arguments) -> None:
        if transport == "codec":
            number = self._transport.get_extra_info("socket").fileno()
        else:
            number = arguments[0].fileno()
        poller = select.poll()
        poller.register(number, 0)
        resets.append(poller.poll(5_000))
        await greet(self, *arguments)

    monkeypatch.setattr(owner, "greet", late)
    nobody = client_files(authority, cert_file=None, key_file=None)
    async with mosquitto(tmp_path, tls_listener(authority)) as port:
        with pytest.raises(IdentityRefusedError, match="certificate required"):
            await try_to_connect(config(port, nobody))
    assert resets[0][0][1] & select.POLLERR


@with_mosquitto
async def test_a_renewed_certificate_is_picked_up_without_a_restart(tmp_path, authority, config):
    authority.issue("lapsed", days=-1)
    files = own_copy(tmp_path, authority, "lapsed")
    async with (
        mosquitto(tmp_path, tls_listener(authority)) as port,
        Session.open(config(port, files)) as session,
    ):
        await until(lambda: session.stats.identity_refused >= 1)
        renew(files, authority.issue("client"))
        await session.wait_connected(DEADLINE_S)
        assert session.last_error is None


@with_mosquitto
async def test_a_renewal_that_goes_wrong_is_an_alarm_until_it_is_put_right(
    tmp_path, authority, config
):
    authority.issue("lapsed", days=-1)
    files = own_copy(tmp_path, authority, "lapsed")
    with structlog.testing.capture_logs() as logs:
        async with (
            mosquitto(tmp_path, tls_listener(authority)) as port,
            Session.open(config(port, files)) as session,
        ):
            await until(lambda: session.stats.identity_refused >= 1)
            shutil.copy(authority.issue("client")[0], files.cert_file)
            await until(lambda: session.stats.tls_files_unusable >= 1)
            assert f"key_file {files.key_file} does not belong to" in session.last_error
            shutil.move(files.key_file, f"{files.key_file}.gone")
            await until(lambda: "cannot be read" in str(session.last_error))
            renew(files, authority.issue("client"))
            await session.wait_connected(DEADLINE_S)
    assert {"tls files unusable", "connected"} <= {entry["event"] for entry in logs}


# --- we do not take the broker


@with_mosquitto
@pytest.mark.parametrize(
    ("broker", "reason"),
    [
        ("foreign", "unable to get local issuer certificate"),
        ("expired", "certificate has expired"),
        ("misnamed", "Hostname mismatch"),
    ],
)
async def test_a_broker_that_we_do_not_trust_is_an_alarm_of_its_own(
    tmp_path, authority, stranger, config, broker, reason
):
    authority.issue("localhost", "broker-expired", days=-1)
    extra = {
        "foreign": tls_listener(stranger, trusting=authority),
        "expired": tls_listener(authority, certificate="broker-expired"),
        "misnamed": tls_listener(authority),
    }[broker]
    files = client_files(
        authority, server_name="elsewhere.example" if broker == "misnamed" else None
    )
    with structlog.testing.capture_logs() as logs:
        async with mosquitto(tmp_path, extra) as port:
            known = config(port, files)
            with pytest.raises(BrokerNotTrustedError) as refused:
                await try_to_connect(known)
            assert reason in refused.value.reason
            async with Session.open(known) as session:
                await until(lambda: session.stats.broker_not_trusted >= 2)
                assert reason in session.last_error
                assert session.stats.identity_refused == 0
    alarms = [entry for entry in logs if entry["event"] == "broker not trusted"]
    assert alarms[0]["log_level"] == "error"


@with_mosquitto
async def test_server_name_is_the_name_that_is_verified(tmp_path, authority, config):
    async with mosquitto(tmp_path, tls_listener(authority)) as port:
        await try_to_connect(config(port, client_files(authority, server_name="localhost")))
        await try_to_connect(config(port, client_files(authority), host="localhost"))


@pytest.mark.parametrize("name", [".", "a..b", ".localhost"])
async def test_a_server_name_that_is_none_is_an_alarm_and_no_traceback(authority, config, name):
    async def talk(reader, writer) -> None:
        await reader.read()

    async with a_peer(talk, server_context(authority)) as port:
        with pytest.raises((TlsFilesError, BrokerNotTrustedError)):
            await try_to_connect(config(port, client_files(authority, server_name=name)))


# --- the other end does not speak TLS, or not to the end


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak TLS"),
        (encode(ConnAckPacket()) * 8, "does not speak TLS"),
        (b"\x16\x03\x03\xff\xff" + bytes(100), "TLS"),
        (b"", "closed the connection in the TLS handshake"),
    ],
)
async def test_garbage_instead_of_tls_is_one_clear_error(authority, config, words, told):
    async def talk(reader, writer) -> None:
        await reader.read(1)
        writer.write(words)
        await writer.drain()

    async with a_peer(talk) as port:
        with pytest.raises(LinkError, match=told):
            await try_to_connect(config(port, client_files(authority)))


async def test_a_broker_without_tls_1_3_is_told_so(authority, config):
    old = server_context(authority, maximum_version=ssl.TLSVersion.TLSv1_2)

    def serve(listener: socket.socket) -> None:
        # Not asyncio's: it would close without having sent its alert.
        caller, _ = listener.accept()
        with caller, pytest.raises(ssl.SSLError):
            old.wrap_socket(caller, server_side=True)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        served = asyncio.create_task(asyncio.to_thread(serve, listener))
        with pytest.raises(LinkError, match=r"does not speak TLS 1\.3"):
            await try_to_connect(config(listener.getsockname()[1], client_files(authority)))
        await served


async def test_a_peer_that_stalls_in_the_handshake_is_left_in_time(authority, config):
    heard = asyncio.Event()

    async def talk(reader, writer) -> None:
        await reader.read(1)
        heard.set()
        await asyncio.Event().wait()

    async with a_peer(talk) as port:
        known = config(port, client_files(authority), connect_timeout_s=1.0)
        with pytest.raises(LinkError, match=r"no end of the TLS handshake within 1 s"):
            await try_to_connect(known)
    assert heard.is_set()


async def test_leaving_does_not_wait_for_a_handshake_that_never_ends(authority, config):
    heard = asyncio.Event()

    async def talk(reader, writer) -> None:
        await reader.read(1)
        heard.set()
        await asyncio.Event().wait()

    async with a_peer(talk) as port:
        known = config(port, client_files(authority), connect_timeout_s=60)
        async with asyncio.timeout(DEADLINE_S), Session.open(known):
            await heard.wait()


@with_mosquitto
async def test_a_connection_that_is_given_up_at_any_moment_leaves_nothing_open(
    tmp_path, authority, config
):
    def open_files() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    async def connect(port: int) -> None:
        known = config(port, client_files(authority))
        async with connect_with(known.transport)(known, None):
            await asyncio.Event().wait()

    async with mosquitto(tmp_path, tls_listener(authority)) as port:
        # The pool of threads that reads the files opens none later.
        await asyncio.to_thread(os.getpid)
        before = open_files()
        for turns in range(60):
            task = asyncio.create_task(connect(port))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await until(lambda: open_files() <= before)


@pytest.mark.slow
async def test_a_broker_that_says_nothing_after_the_handshake_is_left_in_time(authority, config):
    async def talk(reader, writer) -> None:
        await asyncio.Event().wait()

    async with a_peer(talk, server_context(authority)) as port:
        known = config(port, client_files(authority), connect_timeout_s=2.0)
        with pytest.raises(LinkError, match=r"no CONNACK within 2 s"):
            await try_to_connect(known)


@with_mosquitto
async def test_tls_on_a_plain_port_is_told_so(tmp_path, authority, config):
    async with mosquitto(tmp_path) as port:
        with pytest.raises(LinkError, match="is this the broker's TLS port"):
            await try_to_connect(config(port, client_files(authority)))


@with_mosquitto
async def test_a_plain_client_at_a_tls_port_is_told_so(tmp_path, authority, config):
    async with mosquitto(tmp_path, tls_listener(authority)) as port:
        with pytest.raises(LinkError, match="does this port want TLS"):
            await try_to_connect(config(port, None))
