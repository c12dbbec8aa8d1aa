"""A revoked node's connection ends, on the embedded broker and on Debian's Mosquitto."""

import asyncio
import contextlib
import sys
import time
from pathlib import Path

import pytest
from tests.shoal_broker.render.rendered_mosquitto import RenderedMosquitto
from tests.support.certificates import Registry, replace
from tests.support.mosquitto import Mosquitto
from tests.support.tls_listener import client_files

from shoal_broker.link import SessionConfig, Will
from shoal_broker.server import Broker, BrokerConfig
from shoal_broker.server.config import Tls
from shoal_broker.session import Session
from shoal_fleet.identity import disconnecting
from shoal_fleet.identity.disconnecting import Certified, DisconnectError, TakeOver, disconnect

NODE = "node-1"
DEADLINE_S = 10
HOLD_S = 1.0
QUICK = {"backoff_initial_s": 0.02, "backoff_max_s": 0.2}

with_mosquitto = [
    pytest.mark.system,
    pytest.mark.skipif(
        Mosquitto.found() is None, reason="mosquitto is not installed (apt-get install mosquitto)"
    ),
]


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    return Registry(tmp_path_factory.mktemp("registry"))


@pytest.fixture
def listed(tmp_path, registry):
    path = tmp_path / "revoked.pem"
    path.write_bytes(registry.revoked(begins_in_s=-120))
    return path


@pytest.fixture
async def embedded(registry, listed):
    certificate, key = map(Path, registry.issue("localhost", "broker"))
    tls = Tls(cert_file=certificate, key_file=key, client_ca_file=registry.ca_file, crl_file=listed)
    async with Broker.open(BrokerConfig(port=0, tls=tls)) as broker:
        yield broker


@pytest.fixture
def mosquitto(tmp_path, registry, listed):
    """As rendered, with the line that names the list."""
    broker = RenderedMosquitto(tmp_path / "etc", registry)
    config = broker.folder / "mosquitto.conf"
    text = config.read_text()
    named = f"# crlfile {registry.folder}/revoked.pem"
    assert named in text
    config.write_text(text.replace(named, f"crlfile {listed}"))
    with broker.running():
        yield broker


def settings(port: int, registry: Registry, name: str, certificate: tuple[str, str]):
    files = client_files(registry, cert_file=certificate[0], key_file=certificate[1])
    return SessionConfig(
        host="127.0.0.1", port=port, client_id=name, tls=files, transport="codec", **QUICK
    )


def minute_certificate(registry: Registry, name: str = NODE) -> Certified:
    certificate, key = registry.certify(name, begins_in_s=-5, ends_in_s=60)
    return Certified(Path(certificate).read_bytes(), Path(key).read_bytes())


async def until(true) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not true():  # noqa: ASYNC110 - another process has no event here
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def node_on(port: int, registry: Registry, certificate: tuple[str, str]):
    will = Will(f"shoal/n/{NODE}/p", b"offline")
    async with Session.open(settings(port, registry, NODE, certificate), will=will) as session:
        await session.wait_connected(DEADLINE_S)
        yield session


@contextlib.asynccontextmanager
async def controller_on(port: int, registry: Registry, heard: list[bytes]):
    async def hear(inbound) -> None:
        heard.append(inbound.payload)

    config = settings(port, registry, "shoal-controller", registry.certify("shoal-controller"))
    async with Session.open(config, subscriptions={f"shoal/n/{NODE}/p": hear}) as session:
        await session.wait_connected(DEADLINE_S)
        yield config


# --- the embedded broker


async def test_a_node_of_the_embedded_broker_is_gone_and_its_will_is_heard(
    registry, listed, embedded
):
    mine, heard = registry.certify(NODE), []
    async with (
        controller_on(embedded.port, registry, heard) as broker,
        node_on(embedded.port, registry, mine) as node,
    ):
        replace(listed, registry.revoked(mine[0]))
        times = await disconnect(NODE, broker, minute_certificate(registry), hold_s=HOLD_S)
        assert times >= 1
        await until(lambda: node.stats.identity_refused >= 1)
        assert not node.connected
        await until(lambda: b"offline" in heard)
        assert NODE not in embedded.core.router.sessions, "nothing of the session is left"


async def test_a_broker_that_lets_the_node_in_again_is_an_error_that_says_so(registry, embedded):
    # Nothing was revoked.
    async with (
        controller_on(embedded.port, registry, []) as broker,
        node_on(embedded.port, registry, registry.certify(NODE)) as node,
    ):
        with pytest.raises(DisconnectError, match="lets node-1 in again"):
            await disconnect(NODE, broker, minute_certificate(registry), hold_s=1.0, within_s=1.5)
        assert node.stats.connects >= 2


async def test_a_broker_that_does_not_take_the_certificate_is_an_error(
    registry, embedded, tmp_path
):
    stranger = Registry(tmp_path / "stranger")
    broker = settings(embedded.port, registry, "c", registry.certify("shoal-controller"))
    with pytest.raises(DisconnectError, match=r"does not let us be node-1.*unknown ca"):
        await disconnect(NODE, broker, minute_certificate(stranger), hold_s=HOLD_S)


# --- the command


async def test_the_command_gets_its_arguments_without_a_shell(registry, embedded, tmp_path):
    told = tmp_path / "told; rm -rf x"
    broker = settings(embedded.port, registry, "c", registry.certify("shoal-controller"))
    code = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('reloaded')"
    await disconnect(
        NODE,
        broker,
        minute_certificate(registry),
        reload_command=[sys.executable, "-c", code, str(told)],
        hold_s=0.05,
    )
    assert told.read_text() == "reloaded"


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (["/nowhere/reload"], r"reload_command /nowhere/reload cannot be started"),
        ([sys.executable, "-c", "import sys; sys.exit('no broker')"], "ended with 1: no broker"),
        ([sys.executable, "-c", "import time; time.sleep(60)"], "took longer than"),
    ],
)
async def test_a_command_that_fails_is_told_after_the_connection_was_ended(
    registry, embedded, monkeypatch, command, why
):
    monkeypatch.setattr(disconnecting, "RELOAD_TIMEOUT_S", 0.5)
    broker = settings(embedded.port, registry, "c", registry.certify("shoal-controller"))
    async with node_on(embedded.port, registry, registry.certify(NODE)) as node:
        with pytest.raises(DisconnectError, match=why):
            await disconnect(
                NODE,
                broker,
                minute_certificate(registry),
                reload_command=command,
                hold_s=0.05,
                within_s=5,
            )
        await until(lambda: node.stats.connects + node.stats.identity_refused >= 2)


async def test_what_is_called_for_a_revoked_node_never_raises(registry, embedded, monkeypatch):
    monkeypatch.setattr(disconnecting, "HOLD_S", 0.05)
    asked = []

    async def certify(node: str) -> Certified:
        asked.append(node)
        if node == "unknown":
            raise DisconnectError("no key")
        return minute_certificate(registry, node)

    take_over = TakeOver(
        broker=settings(embedded.port, registry, "c", registry.certify("shoal-controller")),
        certify=certify,
    )
    await take_over(NODE)
    await take_over("unknown")
    assert asked == [NODE, "unknown"]
    assert embedded.counters.connections >= 1


# --- Mosquitto


class TestMosquitto:
    pytestmark = with_mosquitto

    async def test_a_node_is_gone_once_the_list_was_read_again(self, registry, listed, mosquitto):
        mine, heard = registry.certify(NODE), []
        async with (
            controller_on(mosquitto.port, registry, heard) as broker,
            node_on(mosquitto.port, registry, mine) as node,
        ):
            replace(listed, registry.revoked(mine[0]))
            began_s = time.monotonic()
            await disconnect(
                NODE,
                broker,
                minute_certificate(registry),
                reload_command=["kill", "-HUP", str(mosquitto._process.pid)],
                hold_s=HOLD_S,
            )
            await until(lambda: node.stats.identity_refused >= 1)
            print(f"gone from Mosquitto after {time.monotonic() - began_s:.1f} s")
            assert not node.connected
            assert "certificate revoked" in (node.last_error or "")
            await until(lambda: b"offline" in heard)

    async def test_a_list_that_is_not_read_again_is_an_error_that_says_so(
        self, registry, listed, mosquitto
    ):
        mine = registry.certify(NODE)
        async with (
            controller_on(mosquitto.port, registry, []) as broker,
            node_on(mosquitto.port, registry, mine),
        ):
            replace(listed, registry.revoked(mine[0]))
            with pytest.raises(DisconnectError, match="lets node-1 in again"):
                await disconnect(
                    NODE, broker, minute_certificate(registry), hold_s=1.0, within_s=1.5
                )
