"""Every certificate that is not good, at everything that listens and to everything that dials: all refused.

Each test prints how many it tried. A session says it as an alarm, with the patience that it has by
default, and never by trying again in silence.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.shoal_broker.render.rendered_mosquitto import RenderedMosquitto
from tests.support.certificates import Registry, unacceptable
from tests.support.mosquitto import Mosquitto
from tests.support.tls_listener import client_files

from shoal_agent.peers.client import PeerClient
from shoal_agent.peers.credentials import Credentials, PeerFiles
from shoal_agent.peers.errors import PeerUnreachableError
from shoal_agent.peers.peer import Peer
from shoal_agent.peers.server import PeerServer
from shoal_broker.bus_errors import BusError
from shoal_broker.link import SessionConfig
from shoal_broker.server import Broker, BrokerConfig
from shoal_broker.server.config import Tls
from shoal_broker.session import Session
from shoal_broker.tls import TlsFiles
from shoal_contract.messages import InferReply, InferRequest
from shoal_fleet.app import running
from shoal_fleet.client import FleetClient
from shoal_fleet.config import BrokerTable, FleetConfig, ListenTable
from shoal_fleet.errors import ControllerUnreachableError

NODE, OTHER = "node-1", "node-2"
ALARM_WITHIN_S = 60.0
SERVER_NAMES = "DNS:localhost,IP:127.0.0.1"
HELLO = InferRequest(bytes(8), "m", [b"x"])

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(120)]
with_mosquitto = pytest.mark.skipif(
    Mosquitto.found() is None, reason="mosquitto is not installed (apt-get install mosquitto)"
)


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    return Registry(tmp_path_factory.mktemp("registry"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    return Registry(tmp_path_factory.mktemp("stranger"))


@pytest.fixture(scope="module")
def bad_clients(registry, stranger):
    return unacceptable(registry, stranger, NODE)


@pytest.fixture(scope="module")
def bad_servers(registry, stranger):
    """For who connects to `localhost`. Who connects has no list of its own."""
    found = unacceptable(registry, stranger, "localhost")
    del found["revoked"], found["for servers only"]
    found["for clients only"] = registry.certify("localhost", purposes="clientAuth")
    found["of another name"] = registry.certify("elsewhere.example")
    return found


@pytest.fixture(scope="module")
def listed(registry, bad_clients, tmp_path_factory):
    path = tmp_path_factory.mktemp("list") / "revoked.pem"
    path.write_bytes(registry.revoked())
    return path


@pytest.fixture(scope="module")
def good(registry):
    names = (NODE, OTHER, "shoal-controller")
    return {name: registry.certify(name) for name in names} | {
        "localhost": registry.certify("localhost", names=SERVER_NAMES)
    }


@pytest.fixture
def broker_files(registry, good, listed):
    certificate, key = map(Path, good["localhost"])
    return Tls(
        cert_file=certificate, key_file=key, client_ca_file=registry.ca_file, crl_file=listed
    )


@pytest.fixture
async def embedded(broker_files):
    async with Broker.open(BrokerConfig(port=0, tls=broker_files)) as broker:
        yield broker.port


@pytest.fixture
def mosquitto(tmp_path, registry, listed):
    """As rendered, with the line that names the list."""
    broker = RenderedMosquitto(tmp_path / "etc", registry)
    config = broker.folder / "mosquitto.conf"
    named = f"# crlfile {registry.folder}/revoked.pem"
    text = config.read_text()
    assert named in text
    config.write_text(text.replace(named, f"crlfile {listed}"))
    with broker.running():
        yield broker.port


def session_config(port: int, files: TlsFiles, name: str = NODE) -> SessionConfig:
    return SessionConfig(host="localhost", port=port, client_id=name, tls=files, transport="codec")


def shows(registry: Registry, pair: tuple[str, str] | None, **given) -> TlsFiles:
    certificate, key = pair or (None, None)
    return client_files(registry, cert_file=certificate, key_file=key, **given)


async def alarm_of(config: SessionConfig) -> tuple[str, float]:
    """Which alarm a session raises, and after how many seconds."""
    began_s = time.monotonic()
    async with Session.open(config) as session, asyncio.timeout(ALARM_WITHIN_S):
        while True:
            stats = session.stats
            assert not stats.connects, "it was let in"
            for alarm in ("identity_refused", "broker_not_trusted", "tls_files_unusable"):
                if getattr(stats, alarm):
                    return alarm, time.monotonic() - began_s
            await asyncio.sleep(0.01)


async def speaks_tls_1_2(registry: Registry, pair: tuple[str, str] | None, port: int) -> bool:
    context = ssl.create_default_context(cafile=registry.ca_file)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    if pair is not None:
        context.load_cert_chain(*pair)

    def shake_hands() -> bool:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as sock,
            contextlib.suppress(ssl.SSLError, ConnectionError),
        ):
            context.wrap_socket(sock, server_hostname="localhost").close()
            return True
        return False

    return await asyncio.to_thread(shake_hands)


@contextlib.contextmanager
def speaking_tls_1_2(pair: tuple[str, str]) -> Iterator[int]:
    """Somebody who speaks nothing newer; not on asyncio, whose TLS closes without an alert."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(*pair)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                accepted, _ = listening.accept()
                with accepted, contextlib.suppress(OSError):
                    context.wrap_socket(accepted, server_side=True)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = threading.Thread(target=serve)
        serving.start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            serving.join(5)


@pytest.fixture
def report(record_property):
    """Print and record what was refused; who would not have been has failed the test before."""

    def tell(where: str, refused: list[str], slowest_s: float | None = None) -> None:
        record_property("tries", len(refused))
        record_property("bad", 0)
        if slowest_s is not None:
            record_property("worst_s", slowest_s)
        _print(where, refused, slowest_s)

    return tell


def _print(where: str, refused: list[str], slowest_s: float | None = None) -> None:
    alarm = "" if slowest_s is None else f", the slowest alarm after {slowest_s:.2f} s"
    print(f"{where}: {len(refused)} of {len(refused)} refused{alarm}: {', '.join(refused)}")


# --- what listens


async def refused_by_a_broker(registry, bad_clients, good, port) -> tuple[list[str], float]:
    refused, slowest_s = [], 0.0
    for kind, pair in {**bad_clients, "none": None}.items():
        alarm, took_s = await alarm_of(session_config(port, shows(registry, pair)))
        assert alarm == "identity_refused", kind
        refused.append(kind)
        slowest_s = max(slowest_s, took_s)
    assert not await speaks_tls_1_2(registry, good[NODE], port)
    refused.append("TLS 1.2")
    # An honest session does not show another node's certificate at all.
    mine = shows(registry, good[OTHER], named=NODE)
    alarm, took_s = await alarm_of(session_config(port, mine))
    assert alarm == "tls_files_unusable"
    await impostor_is_nobody_else(registry, good, port)
    refused.append("another node's")
    return refused, max(slowest_s, took_s)


async def impostor_is_nobody_else(registry, good, port) -> None:
    """Whoever shows the certificate of another node is that node, whatever it says."""
    heard = []

    async def hear(inbound) -> None:
        heard.append(inbound.topic)

    controller = session_config(port, shows(registry, good["shoal-controller"]), "shoal-controller")
    async with (
        Session.open(controller, subscriptions={f"shoal/n/{NODE}/t/+": hear}) as watching,
        Session.open(session_config(port, shows(registry, good[NODE]))) as victim,
        Session.open(session_config(port, shows(registry, good[OTHER]), NODE)) as impostor,
    ):
        for session in (watching, victim, impostor):
            await session.wait_connected(20)
        with pytest.raises(BusError, match="refused"):
            await impostor.publish(f"shoal/n/{NODE}/t/x", b"false", durable=False, timeout_s=10)
        await victim.publish(f"shoal/n/{NODE}/t/y", b"true", durable=False, timeout_s=10)
        async with asyncio.timeout(10):
            while not heard:  # noqa: ASYNC110 - another process has no event here
                await asyncio.sleep(0.01)
        assert heard == [f"shoal/n/{NODE}/t/y"]
        assert victim.stats.reconnects == 0


async def test_the_embedded_broker_refuses_every_one(registry, bad_clients, good, embedded, report):
    report("embedded broker", *await refused_by_a_broker(registry, bad_clients, good, embedded))


@with_mosquitto
async def test_mosquitto_as_rendered_refuses_every_one(
    registry, bad_clients, good, mosquitto, report
):
    report("Mosquitto", *await refused_by_a_broker(registry, bad_clients, good, mosquitto))


def credentials(registry, pair, listed=None) -> Credentials:
    return Credentials(PeerFiles(shows(registry, pair), None if listed is None else str(listed)))


async def nothing(request: InferRequest) -> InferReply:
    return InferReply(request.id, NODE, b"", [])


@asynccontextmanager
async def neighbour(registry, pair, node: str, listed=None) -> AsyncIterator[PeerServer]:
    async with PeerServer.open(
        "127.0.0.1",
        0,
        nothing,
        root="shoal",
        node=node,
        credentials=credentials(registry, pair, listed),
    ) as server:
        yield server


async def is_answered(registry, pair, at: Peer, *, calls_itself: str, listed=None) -> bool:
    async with PeerClient.open(
        root="shoal", node=calls_itself, credentials=credentials(registry, pair, listed)
    ) as client:
        try:
            await client.ask(at, HELLO, 10)
        except PeerUnreachableError:
            return False
        return True


async def test_a_neighbour_answers_none_of_them(registry, bad_clients, good, listed, report):
    refused = []
    async with neighbour(registry, good[OTHER], OTHER, listed) as server:
        at = Peer(OTHER, "127.0.0.1", server.port)
        assert await is_answered(registry, good[NODE], at, calls_itself=NODE)
        for kind, pair in bad_clients.items():
            assert not await is_answered(registry, pair, at, calls_itself=NODE), kind
            refused.append(kind)
        assert not await is_answered(registry, good[OTHER], at, calls_itself=NODE)
        refused.append("another node's")
        assert not await is_answered(registry, None, at, calls_itself=NODE)
        refused.append("none")
        assert not await speaks_tls_1_2(registry, good[NODE], server.port)
        refused.append("TLS 1.2")
        assert server.stats.requests == 1
    report("a neighbour's server", refused)


# --- what dials


async def test_a_session_trusts_no_broker_with_one_of_them(registry, bad_servers, good, report):
    refused, slowest_s = [], 0.0
    for kind, (certificate, key) in bad_servers.items():
        tls = Tls(cert_file=Path(certificate), key_file=Path(key), client_ca_file=registry.ca_file)
        async with Broker.open(BrokerConfig(port=0, tls=tls)) as broker:
            alarm, took_s = await alarm_of(session_config(broker.port, shows(registry, good[NODE])))
        assert alarm == "broker_not_trusted", kind
        refused.append(kind)
        slowest_s = max(slowest_s, took_s)
    with speaking_tls_1_2(good["localhost"]) as port:
        alarm, took_s = await alarm_of(session_config(port, shows(registry, good[NODE])))
    assert alarm == "broker_not_trusted"
    refused.append("TLS 1.2")
    report("a session", refused, max(slowest_s, took_s))


async def test_a_neighbour_with_one_of_them_is_not_asked(registry, stranger, good, report):
    bad = unacceptable(registry, stranger, OTHER)
    del bad["for servers only"]
    bad["for clients only"] = registry.certify(OTHER, purposes="clientAuth")
    bad["another node's"] = good[NODE]
    listed = registry.folder / "for-neighbours.pem"
    listed.write_bytes(registry.revoked())
    refused = []
    for kind, pair in bad.items():
        async with neighbour(registry, pair, OTHER) as server:
            at = Peer(OTHER, "127.0.0.1", server.port)
            assert not await is_answered(
                registry, good[NODE], at, calls_itself=NODE, listed=listed
            ), kind
            assert server.stats.requests == 0
        refused.append(kind)
    report("a neighbour's client", refused)


async def test_the_command_line_believes_no_controller_with_one_of_them(
    registry, bad_servers, good, tmp_path, report
):
    def is_believed(state_dir: Path, url: str) -> bool:
        with FleetClient.at(state_dir=state_dir, url=url, ca_file=registry.ca_file) as client:
            try:
                client.get("/api/status")
            except ControllerUnreachableError:
                return False
            return True

    refused = []
    async with Broker.open(BrokerConfig(port=0)) as broker:
        for number, (kind, pair) in enumerate({**bad_servers, "good": good["localhost"]}.items()):
            state = tmp_path / str(number)
            config = FleetConfig(
                broker=BrokerTable(port=broker.port),
                listen=ListenTable(port=0, cert_file=pair[0], key_file=pair[1]),
            )
            async with running(config, state) as (_, url):
                named = url.replace("127.0.0.1", "localhost")
                assert await asyncio.to_thread(is_believed, state, named) == (kind == "good"), kind
                if kind == "good":
                    port = urllib.parse.urlsplit(url).port
                    assert not await speaks_tls_1_2(registry, None, port)
            refused.append("TLS 1.2" if kind == "good" else kind)
    report("the command line and the API", refused)
