"""Neighbours over mutual TLS: who is believed, who is not, and that nobody's connection ends the service."""

import asyncio
import contextlib
import errno
import ssl
from pathlib import Path

import pytest
import structlog.testing
from tests.shoal_agent.until import until
from tests.support.certificates import Registry, replace, unacceptable

from shoal_agent.config import AgentConfig, PeersTable
from shoal_agent.peers import server as server_module
from shoal_agent.peers import wire
from shoal_agent.peers.client import PeerClient
from shoal_agent.peers.complaints import BURST, EVERY_S, Complaints
from shoal_agent.peers.credentials import Credentials, PeerFiles, names_in
from shoal_agent.peers.errors import PeerUnreachableError
from shoal_agent.peers.peer import Peer
from shoal_agent.peers.permission import known_as, permitted
from shoal_agent.peers.server import PeerServer
from shoal_broker.broker_table import BrokerTable
from shoal_broker.tls import TlsFiles
from shoal_contract.messages import Answer, InferReply, InferRequest

KINDS = [
    "expired",
    "not yet valid",
    "foreign authority",
    "self-signed",
    "revoked",
    "for servers only",
    "for code",
]


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    return Registry(tmp_path_factory.mktemp("registry"))


@pytest.fixture(scope="module")
def bad(registry, tmp_path_factory):
    """For the node `client`."""
    return unacceptable(registry, Registry(tmp_path_factory.mktemp("stranger")), "client")


@pytest.fixture(scope="module")
def listed(registry, bad, tmp_path_factory):
    path = tmp_path_factory.mktemp("list") / "revoked.pem"
    path.write_bytes(registry.revoked())
    return path


@pytest.fixture(scope="module")
def issued(registry):
    return {name: registry.certify(name) for name in ("server", "client", "other")}


def credentials(registry, pair, listed: Path | None = None, **given) -> Credentials:
    files = TlsFiles(ca_file=str(registry.ca_file), cert_file=pair[0], key_file=pair[1], **given)
    return Credentials(PeerFiles(files, None if listed is None else str(listed)))


async def echo(request: InferRequest) -> InferReply:
    return InferReply(request.id, "server", b"", [Answer("yes", 1.0)])


@contextlib.asynccontextmanager
async def server_of(registry, pair, answer=echo, listed=None):
    async with PeerServer.open(
        "127.0.0.1",
        0,
        answer,
        root="shoal",
        node="server",
        credentials=credentials(registry, pair, listed),
    ) as server:
        yield server


@pytest.fixture
async def server(registry, issued, listed):
    async with server_of(registry, issued["server"], listed=listed) as server:
        yield server


def client_of(registry, pair, node="client", **given):
    return PeerClient.open(
        root="shoal", node=node, credentials=credentials(registry, pair, **given)
    )


def at(server: PeerServer, node: str = "server") -> Peer:
    return Peer(node, "127.0.0.1", server.port)


REQUEST = InferRequest(b"12345678", "m", [b"x"])


async def good(registry, issued, server) -> bool:
    async with client_of(registry, issued["client"]) as client:
        return bool((await client.ask(at(server), REQUEST, 5)).answers)


# --- who is answered


async def test_two_nodes_of_a_fleet_speak_tls_1_3_and_keep_the_connection(registry, issued, server):
    async with client_of(registry, issued["client"]) as client:
        for _ in range(3):
            assert (await client.ask(at(server), REQUEST, 5)).answers
        (link,) = client._links.values()
        assert link.writer.get_extra_info("ssl_object").version() == "TLSv1.3"
        assert server.stats.connections == 1


async def test_the_largest_request_and_reply_pass(registry, issued):
    label = "l" * 1_000

    async def answer(request: InferRequest) -> InferReply:
        assert request.items == [b"i" * 90_000]
        return InferReply(request.id, "server", b"", [Answer(label, 1.0)])

    async with (
        server_of(registry, issued["server"], answer) as server,
        client_of(registry, issued["client"]) as client,
    ):
        asked = [
            client.ask(at(server), InferRequest(bytes(8), "m", [b"i" * 90_000]), 10)
            for _ in range(8)
        ]
        assert {reply.answers[0].label for reply in await asyncio.gather(*asked)} == {label}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_certificate_that_is_not_good_is_not_answered(registry, issued, server, bad, kind):
    with structlog.testing.capture_logs() as logs:
        async with client_of(registry, bad[kind]) as client:
            with pytest.raises(PeerUnreachableError):
                await client.ask(at(server), REQUEST, 5)
        await until(lambda: server.stats.untrusted == 1)
    assert server.stats.requests == 0
    assert any(entry["event"] == "neighbour not trusted" for entry in logs)
    assert "Traceback" not in str(logs)
    assert await good(registry, issued, server)


async def test_without_a_certificate_or_in_the_clear_nobody_is_answered(registry, issued, server):
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    nobody.load_verify_locations(str(registry.ca_file))
    for tls in (nobody, None):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", server.port, ssl=tls, server_hostname="server" if tls else None
        )
        writer.write(wire.greeting_frame(wire.Greeting("shoal", "client")))
        with contextlib.suppress(OSError):
            async with asyncio.timeout(5):
                # An alert may come, a greeting must not.
                assert b"shoal" not in await reader.read()
        writer.close()
    await until(lambda: server.stats.untrusted == 2)
    assert server.stats.requests == 0
    assert await good(registry, issued, server)


async def test_tls_1_2_is_not_spoken(registry, issued, server):
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_verify_locations(str(registry.ca_file))
    old.load_cert_chain(*issued["client"])
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection("127.0.0.1", server.port, ssl=old, server_hostname="server")
    await until(lambda: server.stats.untrusted == 1)


async def test_who_calls_itself_another_node_than_its_certificate_is_not_answered(
    registry, issued, server
):
    async with client_of(registry, issued["other"], node="client") as client:
        with pytest.raises(PeerUnreachableError):
            await client.ask(at(server), REQUEST, 5)
    await until(lambda: server.stats.untrusted == 1)
    assert server.stats.requests == 0


# --- who is asked


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "for servers only"])
async def test_a_server_whose_certificate_is_not_good_is_not_asked(
    registry, issued, bad, listed, kind
):
    heard = []

    async def answer(request: InferRequest) -> InferReply:
        heard.append(request)
        return await echo(request)

    async with (
        PeerServer.open(
            "127.0.0.1",
            0,
            answer,
            root="shoal",
            node="client",
            credentials=credentials(registry, bad[kind]),
        ) as server,
        client_of(registry, issued["other"], node="other", listed=listed) as client,
    ):
        with pytest.raises(PeerUnreachableError, match="its certificate is not accepted"):
            await client.ask(at(server, "client"), REQUEST, 5)
    assert heard == []


async def test_a_rumour_of_another_nodes_address_is_not_believed(registry, issued):
    # `other` announced itself as `server`: the certificate says who it is.
    async with (
        server_of(registry, issued["other"]) as server,
        client_of(registry, issued["client"]) as client,
    ):
        with pytest.raises(PeerUnreachableError, match="Hostname mismatch"):
            await client.ask(at(server, "server"), REQUEST, 5)


async def test_a_configured_address_takes_whoever_of_the_fleet_proves_its_name(registry, issued):
    async with client_of(registry, issued["client"]) as client:
        async with server_of(registry, issued["server"]) as server:
            assert (await client.ask(at(server, ""), REQUEST, 5)).by == "server"
        async with server_of(registry, issued["other"]) as server:
            with pytest.raises(PeerUnreachableError, match="its certificate names other"):
                await client.ask(at(server, ""), REQUEST, 5)


async def test_a_renewed_certificate_and_a_new_list_count_for_the_next_connection(
    registry, issued, tmp_path
):
    first, second = registry.certify("client"), registry.certify("client")
    mine = (f"{tmp_path}/cert.pem", f"{tmp_path}/key.pem")

    def install(pair: tuple[str, str]) -> None:
        for source, place in zip(pair, mine, strict=True):
            replace(Path(place), Path(source).read_bytes())

    install(first)
    listed = tmp_path / "revoked.pem"
    listed.write_bytes(registry.revoked())
    async with (
        server_of(registry, issued["server"], listed=listed) as server,
        client_of(registry, mine) as client,
    ):
        assert (await client.ask(at(server), REQUEST, 5)).answers
        replace(listed, registry.revoked(first[0]))
        for link in list(client._links.values()):
            link.close("test")
        await until(lambda: not client._links)
        with pytest.raises(PeerUnreachableError):
            await client.ask(at(server), REQUEST, 5)
        install(second)
        assert (await client.ask(at(server), REQUEST, 5)).answers


async def test_files_that_cannot_be_used_are_one_clear_error_on_either_side(
    registry, issued, server, tmp_path
):
    gone = (f"{tmp_path}/none", issued["client"][1])
    async with client_of(registry, gone) as client:
        with pytest.raises(PeerUnreachableError, match="we cannot say who we are: cert_file"):
            await client.ask(at(server), REQUEST, 5)
    async with client_of(registry, issued["other"], named="client") as client:
        with pytest.raises(PeerUnreachableError, match="is the certificate of 'other'"):
            await client.ask(at(server), REQUEST, 5)
    with structlog.testing.capture_logs() as logs:
        async with (
            server_of(registry, gone) as broken,
            client_of(registry, issued["client"]) as client,
        ):
            with pytest.raises(PeerUnreachableError):
                await client.ask(at(broken), REQUEST, 5)
    assert "tls files unusable" in {entry["event"] for entry in logs}


# --- nothing ends the service


async def test_a_handshake_that_never_ends_is_cut_in_time(server, monkeypatch):
    monkeypatch.setattr(server_module, "GREETING_TIMEOUT_S", 0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"\x16\x03\x01\x02\x00\x01")
    async with asyncio.timeout(5):
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
    writer.close()
    await until(lambda: not server._open)


async def test_connections_in_their_handshake_count_against_the_limit(registry, issued, server):
    links = [
        await asyncio.open_connection("127.0.0.1", server.port)
        for _ in range(server_module.MAX_CONNECTIONS)
    ]
    await until(lambda: server.stats.connections == server_module.MAX_CONNECTIONS)
    async with client_of(registry, issued["client"]) as client:
        with pytest.raises(PeerUnreachableError):
            await client.ask(at(server), REQUEST, 5)
    assert server.stats.refused >= 1
    for _, writer in links:
        writer.close()
    await until(lambda: not server._open)
    assert await good(registry, issued, server)


@pytest.mark.parametrize(
    "error", [OSError(errno.EHOSTUNREACH, "No route to host"), ssl.SSLError("bad"), RuntimeError()]
)
async def test_a_reply_that_cannot_be_written_ends_its_connection_and_nothing_else(
    registry, issued, server, monkeypatch, error
):
    # Not every loss of a line is a ConnectionError: a reply's task ended the agent with it.
    written = asyncio.StreamWriter.drain
    broken = set()

    async def drain(writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None and task.get_name() == "peers.reply" and not broken:
            broken.add(writer)
            raise error
        await written(writer)

    monkeypatch.setattr(asyncio.StreamWriter, "drain", drain)
    async with client_of(registry, issued["client"]) as client:
        with contextlib.suppress(PeerUnreachableError):
            await client.ask(at(server), REQUEST, 1)
    assert broken
    await until(lambda: not server._open)
    assert await good(registry, issued, server)


def test_strangers_do_not_fill_the_log():
    now_s = 1000.0
    complaints = Complaints(lambda: now_s)
    with structlog.testing.capture_logs() as logs:
        for _ in range(1_000):
            complaints.warn("neighbour not trusted", address="a")
        assert len(logs) == BURST
        now_s += EVERY_S
        for _ in range(3):
            complaints.warn("neighbour not trusted", address="b")
    assert len(logs) == BURST + 1
    assert logs[-1]["left_out"] == 1_000 - BURST


# --- the configuration


def configured(tmp_path, *, broker=None, **peers) -> AgentConfig:
    return AgentConfig(
        node="client",
        state_dir=str(tmp_path),
        broker=broker or BrokerTable(host="127.0.0.1"),
        peers=PeersTable(**peers),
    )


def test_the_certificate_for_the_broker_is_who_we_are_to_neighbours(tmp_path):
    table = BrokerTable(host="b", ca_file="ca", cert_file="cert", key_file="key")
    found = known_as(configured(tmp_path, broker=table, crl_file="list"))
    files = TlsFiles(ca_file="ca", cert_file="cert", key_file="key", named="client")
    assert found == PeerFiles(files, "list")
    found = known_as(configured(tmp_path, broker=table, ca_file="boards"))
    assert found is not None
    assert found.tls.ca_file == "boards"


def test_without_one_it_is_that_of_enrolment(tmp_path):
    assert known_as(configured(tmp_path)) is None
    (tmp_path / "identity" / "current").mkdir(parents=True)
    found = known_as(configured(tmp_path))
    assert found is not None
    assert found.tls.cert_file == f"{tmp_path}/identity/current/cert.pem"


@pytest.mark.parametrize(
    ("peers", "has_identity", "allowed"),
    [
        ({}, True, (False, True)),
        ({"upstream": "hub:1"}, True, (True, True)),
        ({"upstream": "hub:1"}, False, (False, False)),
        ({"upstream": "hub:1", "plaintext": True}, False, (True, True)),
        ({"upstream": "127.0.0.1:1", "host": "127.0.0.1"}, False, (True, True)),
        ({"upstream": "hub:1", "host": "127.0.0.1"}, False, (False, True)),
        ({"enabled": False}, False, (False, False)),
        ({"enabled": False, "plaintext": True, "upstream": "hub:1"}, False, (True, False)),
    ],
)
def test_without_an_identity_neighbours_need_a_word_in_the_configuration(
    tmp_path, peers, has_identity, allowed
):
    with structlog.testing.capture_logs() as logs:
        config = configured(tmp_path, **peers)
        assert permitted(config, has_identity=has_identity) == allowed
    wanted = config.upstream is not None, config.peers.enabled
    assert bool(logs) == (allowed != wanted or (config.peers.plaintext and any(allowed)))


def test_a_certificate_without_names_for_hosts_names_its_cn():
    subject = ((("commonName", "node-1"),),)
    assert names_in({"subject": subject}) == {"node-1"}
    names = (("DNS", "node-2"), ("URI", "shoal:node:node-2"))
    assert names_in({"subject": subject, "subjectAltName": names}) == {"node-2"}
    assert names_in(None) == frozenset()
