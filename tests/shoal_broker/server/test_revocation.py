"""Who is revoked or banned while connected: sent away at once, and nothing else is disturbed."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog.testing
from tests.shoal_broker.server.test_shell import Clock, Raw, raw, until
from tests.shoal_broker.server.test_tls import secured
from tests.support.certificates import Registry, replace
from tests.support.tls_listener import client_files

from shoal_broker.bus_errors import IdentityRefusedError
from shoal_broker.codec import ConnAckPacket, ConnectPacket, DisconnectPacket, PublishPacket, Will
from shoal_broker.link import SessionConfig
from shoal_broker.server import Broker, BrokerConfig
from shoal_broker.server.access_rules import AccessRules, Policy
from shoal_broker.server.config import Tls
from shoal_broker.server.passwords import set_password
from shoal_broker.server.revocation import LOOK_EVERY_S, RETRY_S
from shoal_broker.session import Session
from shoal_broker.tls import TlsFiles, client_context
from shoal_broker.transports import connect_with

DEADLINE_S = 10
OPEN = AccessRules(policy=Policy.OPEN)
UNUSABLE = "list of revoked certificates unusable, the earlier one stays"


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    return Registry(tmp_path_factory.mktemp("registry"))


@pytest.fixture
def listed(tmp_path, registry):
    """The file that the broker watches."""
    path = tmp_path / "revoked.pem"
    path.write_bytes(registry.revoked())
    return path


@pytest.fixture(scope="module")
def broker_files(registry):
    return registry.certify("localhost", names="DNS:localhost,IP:127.0.0.1")


@pytest.fixture
def config(registry, listed, broker_files):
    certificate, key = map(Path, broker_files)
    tls = Tls(cert_file=certificate, key_file=key, client_ca_file=registry.ca_file, crl_file=listed)
    return BrokerConfig(port=0, tls=tls, access=OPEN)


def files(registry: Registry, name: str) -> TlsFiles:
    """A new certificate each time."""
    certificate, key = registry.certify(name)
    return client_files(registry, cert_file=certificate, key_file=key)


async def connected(client: Raw, name: str, **given) -> None:
    assert int((await client.connect(name, **given)).reason_code) == 0


async def refused_again(broker: Broker, mine: TlsFiles) -> str:
    """The alert that a new connection hears."""
    async with secured(broker, mine) as client:
        client.send(ConnectPacket("again"))
        with pytest.raises(ssl.SSLError) as refused:
            await client.next()
    return str(refused.value.reason)


async def test_a_revoked_client_is_sent_away_without_a_signal_and_its_will_goes_out(
    registry, config, listed
):
    gone_files = files(registry, "gone")
    async with (
        Broker.open(config) as broker,
        secured(broker, files(registry, "stays")) as stays,
        secured(broker, gone_files) as gone,
    ):
        await connected(stays, "stays")
        await stays.subscribe("wills")
        await connected(gone, "gone", will=Will("wills", payload=b"offline"))
        loop = asyncio.get_running_loop()
        replace(listed, registry.revoked(gone_files.cert_file))
        written_s = loop.time()
        goodbye = await gone.next(DisconnectPacket)
        assert loop.time() - written_s < LOOK_EVERY_S + 1
        assert int(goodbye.reason_code) == 0x98
        assert goodbye.reason_str == "the certificate was revoked"
        assert await gone.next() is None, "and the connection is closed"
        assert (await stays.next(PublishPacket)).payload == b"offline"
        assert await stays.publish("t") < 0x80, "others stay"
        assert "REVOKED" in await refused_again(broker, gone_files)


@pytest.mark.parametrize("transport", ["aiomqtt", "codec"])
async def test_a_session_that_was_revoked_raises_the_alarm(registry, config, listed, transport):
    mine = files(registry, "node-1")
    async with Broker.open(config) as broker:
        settings = SessionConfig(
            host="127.0.0.1",
            port=broker.port,
            client_id="node-1",
            tls=mine,
            transport=transport,
            backoff_initial_s=0.02,
        )
        async with Session.open(settings) as session:
            await session.wait_connected(DEADLINE_S)
            replace(listed, registry.revoked(mine.cert_file))
            await broker.revocations.look()
            await until(lambda: session.stats.identity_refused >= 1)
            assert "certificate revoked" in (session.last_error or "")


async def test_who_has_not_said_connect_yet_is_closed_too(registry, config, listed):
    mine = files(registry, "slow")
    async with Broker.open(config) as broker, secured(broker, mine) as client:
        await until(lambda: any(link.certificate for link in broker.links))
        replace(listed, registry.revoked(mine.cert_file))
        await broker.revocations.look()
        assert await client.next() is None
        assert broker.counters.refused == 1


async def test_a_handshake_that_began_under_the_earlier_list_is_judged_by_the_new_one(
    registry, config, listed
):
    mine = files(registry, "sly")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_context(mine).wrap_bio(incoming, outgoing, server_hostname="localhost")
    with structlog.testing.capture_logs() as logs:
        async with Broker.open(config) as broker:
            reader, writer = await asyncio.open_connection("127.0.0.1", broker.port)
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    writer.write(outgoing.read())
                    incoming.write(await reader.read(65_536))
            replace(listed, registry.revoked(mine.cert_file))
            await broker.revocations.look()
            tls.write(ConnectPacket("sly").write())
            writer.write(outgoing.read())
            await until(lambda: broker.counters.tls_failed == 1)
            assert not broker.core.router.sessions
            writer.close()
    (line,) = (entry for entry in logs if entry["event"] == "client refused")
    assert line["reason"] == "the certificate was revoked"


async def test_a_file_that_is_written_piece_by_piece_counts_once_it_is_whole(
    registry, config, listed
):
    mine = files(registry, "node-1")
    clock = Clock()
    with structlog.testing.capture_logs() as logs:
        async with Broker.open(config, clock=clock) as broker, secured(broker, mine) as client:
            await connected(client, "node-1")
            whole = registry.revoked(mine.cert_file)
            for cut in (0, 30, len(whole) // 2, len(whole) - 30):
                listed.write_bytes(whole[:cut])
                await broker.revocations.look()
                await broker.revocations.look()
            assert await client.publish("t") < 0x80, "the earlier list stays in force"
            async with secured(broker, files(registry, "node-2")) as another:
                await connected(another, "node-2")
            listed.write_bytes(whole)
            await broker.revocations.look()
            assert int((await client.next(DisconnectPacket)).reason_code) == 0x98
    told = [entry for entry in logs if entry["event"] == UNUSABLE]
    assert len(told) == 4, "each state of the file is told once"
    assert all(str(listed) in entry["error"] for entry in told)


async def test_a_list_that_vanishes_leaves_the_earlier_one_in_force(registry, config, listed):
    mine = files(registry, "node-1")
    replace(listed, registry.revoked(mine.cert_file))
    with structlog.testing.capture_logs() as logs:
        async with Broker.open(config) as broker:
            listed.unlink()
            for _ in range(3):
                await broker.revocations.look()
            assert "REVOKED" in await refused_again(broker, mine)
    assert [entry["event"] for entry in logs].count(UNUSABLE) == 1


async def test_a_revocation_holds_while_another_file_is_being_renewed(
    registry, config, listed, tmp_path
):
    certificate = tmp_path / "broker.crt"
    certificate.write_bytes(config.tls.cert_file.read_bytes())
    tls = Tls(
        cert_file=certificate,
        key_file=config.tls.key_file,
        client_ca_file=config.tls.client_ca_file,
        crl_file=listed,
    )
    mine, clock = files(registry, "node-1"), Clock()
    with structlog.testing.capture_logs() as logs:
        async with (
            Broker.open(BrokerConfig(port=0, tls=tls, access=OPEN), clock=clock) as broker,
            secured(broker, mine) as client,
        ):
            await connected(client, "node-1")
            certificate.write_text("half of it")
            replace(listed, registry.revoked(mine.cert_file))
            await broker.revocations.look()
            assert int((await client.next(DisconnectPacket)).reason_code) == 0x98
            async with secured(broker, mine) as again:
                again.send(ConnectPacket("again"))
                assert await again.next() is None, "by the number, without an alert"
            certificate.write_bytes(config.tls.cert_file.read_bytes())
            clock.now_s += RETRY_S
            await broker.revocations.look()
            assert "REVOKED" in await refused_again(broker, mine)
    assert [entry["event"] for entry in logs].count("files unusable, the earlier ones stay") == 1


async def test_a_list_that_has_ended_lets_nobody_in_sends_nobody_away_and_is_told(
    registry, config, listed
):
    clock = Clock()
    with structlog.testing.capture_logs() as logs:
        async with (
            Broker.open(config, clock=clock) as broker,
            secured(broker, files(registry, "stays")) as stays,
        ):
            await connected(stays, "stays")
            replace(listed, registry.revoked(begins_in_s=-120, ends_in_s=-60))
            for _ in range(3):
                await broker.revocations.look()
            assert await stays.publish("t") < 0x80
            late = files(registry, "late")
            # OpenSSL has no alert of its own for this.
            assert "CERTIFICATE_EXPIRED" in await refused_again(broker, late)
            settings = SessionConfig(
                host="127.0.0.1", port=broker.port, client_id="late", tls=late, transport="codec"
            )
            with pytest.raises(IdentityRefusedError, match="its list of revoked certificates has"):
                async with connect_with("codec")(settings, None):
                    pass
            replace(listed, registry.revoked())
            await broker.revocations.look()
            async with secured(broker, late) as client:
                await connected(client, "late")
    ended = "list of revoked certificates has ended, nobody can connect"
    assert [entry["event"] for entry in logs].count(ended) == 1
    reasons = {entry.get("reason") for entry in logs}
    assert "the client's certificate is not accepted: CRL has expired" in reasons


async def test_that_a_list_ends_soon_is_told_once_a_day(registry, config, listed):
    replace(listed, registry.revoked(ends_in_s=3 * 86_400))
    clock = Clock()
    today = datetime.now(UTC)
    with structlog.testing.capture_logs() as logs:
        async with Broker.open(config, clock=clock) as broker:
            watch = broker.revocations
            for passed_s in (0, 86_400, 2.5 * 86_400, 2.6 * 86_400, 3.6 * 86_400):
                clock.now_s = 1000 + passed_s
                watch._now = lambda now=today + timedelta(seconds=passed_s): now
                await watch.look()
    told = [entry["event"] for entry in logs if "list of revoked" in entry["event"]]
    assert told == [
        "list of revoked certificates ends",
        "list of revoked certificates has ended, nobody can connect",
    ]


async def test_reading_the_files_again_sends_the_revoked_away_as_well(registry, config, listed):
    mine = files(registry, "node-1")
    async with Broker.open(config) as broker, secured(broker, mine) as client:
        await connected(client, "node-1")
        replace(listed, registry.revoked(mine.cert_file))
        await broker.read_again(OPEN)
        assert int((await client.next(DisconnectPacket)).reason_code) == 0x98


async def test_a_banned_user_is_sent_away_and_refused_until_it_is_banned_no_more(tmp_path):
    users = tmp_path / "users"
    for user in ("node-1", "node-2"):
        set_password(users, user, "right")
    banned = AccessRules(banned=("node-1",))
    config = BrokerConfig(port=0, password_file=users)
    async with Broker.open(config) as broker, raw(broker) as gone, raw(broker) as stays:
        await connected(gone, "", username="node-1", password=b"right")
        await connected(stays, "", username="node-2", password=b"right")
        await broker.read_again(banned)
        goodbye = await gone.next(DisconnectPacket)
        assert (int(goodbye.reason_code), goodbye.reason_str) == (0x98, "this user is banned")
        assert await stays.publish("shoal/n/node-2/s") < 0x80
        async with raw(broker) as again:
            again.send(ConnectPacket("", username="node-1", password=b"right"))
            assert int((await again.next(ConnAckPacket)).reason_code) == 0x8A
        await broker.read_again(AccessRules())
        async with raw(broker) as again:
            await connected(again, "", username="node-1", password=b"right")


async def test_a_banned_certificate_is_an_alarm_of_its_session(registry, config):
    mine = files(registry, "node-1")
    async with Broker.open(config) as broker:
        await broker.read_again(AccessRules(policy=Policy.OPEN, banned=("node-1",)))
        settings = SessionConfig(
            host="127.0.0.1", port=broker.port, client_id="x", tls=mine, transport="codec"
        )
        async with Session.open(settings) as session:
            await until(lambda: session.stats.identity_refused == 1)
