"""A wrong clock and certificates: what the alarm says, and how soon the right time helps."""

import asyncio
import calendar
import re

import pytest
import structlog.testing
from tests.support.certificates import Registry
from tests.support.tls_listener import client_files

from shoal_broker.bus_errors import BrokerNotTrustedError, IdentityRefusedError, TlsFilesError
from shoal_broker.clock_jump import JUMP_S, ClockJump
from shoal_broker.link import SessionConfig
from shoal_broker.server import Broker, BrokerConfig
from shoal_broker.server.config import Tls
from shoal_broker.session import Session
from shoal_broker.tls import client_context
from shoal_broker.tls_dates import against_the_clock
from shoal_broker.transports import connect_with

DEADLINE_S = 10


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    return Registry(tmp_path_factory.mktemp("registry"))


@pytest.fixture(params=["aiomqtt", "codec"])
def transport(request):
    return request.param


def open_broker(registry: Registry, issued: tuple[str, str] | None = None):
    certificate, key = issued or registry.issue("localhost", "broker")
    return Broker.open(
        BrokerConfig(
            port=0,
            tls=Tls(cert_file=certificate, key_file=key, client_ca_file=registry.ca_file),
        )
    )


def files(registry: Registry, issued: tuple[str, str], **given):
    return client_files(registry, cert_file=issued[0], key_file=issued[1], **given)


def settings(port: int, tls, transport: str, **given) -> SessionConfig:
    return SessionConfig(
        host="127.0.0.1", port=port, client_id="node-1", tls=tls, transport=transport, **given
    )


# --- what is said


def test_a_board_in_1970_is_told_its_clock_and_when_its_certificate_begins(registry):
    mine = files(registry, registry.certify("node-1"))
    told = against_the_clock(mine, lambda: 190.0)
    assert told is not None
    assert re.fullmatch(
        r"our clock is 1970-01-01 00:03:10 UTC, and our certificate begins"
        r" 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC: set the clock",
        told,
    )


def test_without_a_certificate_of_our_own_the_authoritys_is_looked_at(registry):
    nobody = client_files(registry, cert_file=None, key_file=None)
    assert "the authority's certificate begins" in (against_the_clock(nobody, lambda: 0.0) or "")


def test_a_certificate_that_has_ended_is_told_and_one_that_is_good_is_not(registry):
    mine = files(registry, registry.certify("node-1"))
    in_the_thirties = calendar.timegm((2038, 1, 1, 0, 0, 0))
    assert "our certificate ended" in (against_the_clock(mine, lambda: in_the_thirties) or "")
    assert against_the_clock(mine) is None


def test_a_file_that_cannot_be_read_is_told_by_others(registry, tmp_path):
    none = files(registry, (f"{tmp_path}/none", f"{tmp_path}/none"))
    assert against_the_clock(none, lambda: 0.0) is None


async def test_a_broker_whose_certificate_begins_later_is_an_alarm_with_our_clock(
    registry, transport
):
    later = registry.certify("localhost", begins_in_s=3600, names="DNS:localhost,IP:127.0.0.1")
    mine = files(registry, registry.certify("node-1"))
    async with open_broker(registry, later) as broker:
        with pytest.raises(BrokerNotTrustedError, match=r"not yet valid \(our clock is 20"):
            async with connect_with(transport)(settings(broker.port, mine, transport), None):
                pass


async def test_a_refused_certificate_that_begins_later_is_an_alarm_with_both_dates(
    registry, transport
):
    mine = files(registry, registry.certify("node-1", begins_in_s=3600))
    async with open_broker(registry) as broker:
        with pytest.raises(
            IdentityRefusedError, match=r"our clock is .* and our certificate begins .*set the"
        ):
            async with connect_with(transport)(settings(broker.port, mine, transport), None):
                pass


async def test_a_session_connects_by_itself_once_its_certificate_has_begun(registry):
    mine = files(registry, registry.certify("node-1", begins_in_s=2))
    quick = {"backoff_max_s": 0.2, "backoff_initial_s": 0.05}
    with structlog.testing.capture_logs() as logs:
        async with (
            open_broker(registry) as broker,
            Session.open(settings(broker.port, mine, "codec", **quick)) as session,
        ):
            await session.wait_connected(DEADLINE_S)
            assert session.stats.identity_refused >= 1
    alarm = next(entry for entry in logs if entry["event"] == "identity refused")
    assert "our clock is" in alarm["error"]


# --- whose certificate it is


def test_a_certificate_of_somebody_else_is_not_shown(registry):
    other = registry.certify("node-2")
    with pytest.raises(TlsFilesError, match="is the certificate of 'node-2', and we are 'node-1'"):
        client_context(files(registry, other, named="node-1"))
    client_context(files(registry, other, named="node-2"))
    client_context(files(registry, other))


# --- how long is waited


class Clocks:
    """A wall clock and a steady one; somebody sets the wall clock at `set_at_s`."""

    def __init__(self, *, set_at_s: float, by_s: float) -> None:
        self.steady_s = 1000.0
        self._set_at_s, self._by_s = self.steady_s + set_at_s, by_s

    def wall(self) -> float:
        return self.steady_s + (self._by_s if self.steady_s >= self._set_at_s else 0.0)

    async def sleep(self, delay_s: float) -> None:
        self.steady_s += delay_s


@pytest.mark.parametrize(
    ("set_at_s", "by_s", "waited_s"),
    [(12, 1.7e9, 15), (12, -86_400, 15), (0.5, 1.7e9, 0), (12, JUMP_S / 2, 45), (12, 0, 45)],
)
async def test_who_waits_wakes_when_the_wall_clock_is_set(monkeypatch, set_at_s, by_s, waited_s):
    clocks = Clocks(set_at_s=set_at_s, by_s=by_s)
    monkeypatch.setattr(asyncio, "sleep", clocks.sleep)
    jump = ClockJump(clocks.wall, lambda: clocks.steady_s)
    # The attempt that failed took a second.
    clocks.steady_s += 1
    await jump.sleep(45)
    assert clocks.steady_s - 1001 == pytest.approx(waited_s, abs=1.1 if waited_s == 15 else 0)
