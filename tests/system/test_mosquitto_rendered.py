"""Debian's mosquitto with what `shoal-broker render mosquitto` wrote: what survives, and bridges."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack

import pytest
from tests.shoal_broker.render.rendered_mosquitto import Authority, RenderedMosquitto
from tests.shoal_broker.render.tls_client import connected
from tests.support.mosquitto import Mosquitto

from shoal_contract.topics import Channel, Topics

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        Mosquitto.found() is None, reason="mosquitto is not installed (apt-get install mosquitto)"
    ),
]

TOPICS = Topics()
A, B, CONTROLLER = "node-a", "node-b", "shoal-controller"
MARKER = TOPICS.group_commands("marker")
WAIT_S = 8.0


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


def wait_for(condition):
    """What another process does; looked at every few milliseconds, for WAIT_S at most."""
    deadline_s = time.monotonic() + WAIT_S
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline_s
        pause.wait(0.01)


@pytest.mark.parametrize(
    "save", [[], ["--save-every-s", "1"]], ids=["at-every-change", "every-1-s"]
)
def test_what_was_saved_survives_a_kill(tmp_path, authority, save):
    broker = RenderedMosquitto(tmp_path / "etc", authority, *save)
    with broker.running():
        with connected(broker.port, authority, A, keep_session=True) as node:
            node.subscribe(TOPICS.commands(A))
        with connected(broker.port, authority, CONTROLLER) as controller:
            assert controller.publish(TOPICS.wanted(A), b"wanted-payload", retain=True) < 0x80
            assert controller.publish(TOPICS.commands(A), b"command-payload") == 0
            wait_for(
                lambda: (
                    broker.database.exists()
                    and all(
                        payload in broker.database.read_bytes()
                        for payload in (b"wanted-payload", b"command-payload")
                    )
                )
            )
            broker.kill()
    with (
        broker.running(),
        connected(broker.port, authority, A, keep_session=True) as node,
        connected(broker.port, authority, CONTROLLER) as controller,
    ):
        assert node.session_present
        node.subscribe(TOPICS.wanted(A), MARKER)
        controller.publish(MARKER, b"end")
        assert {m.payload for m in node.until(b"end")} == {b"wanted-payload", b"command-payload"}


@pytest.mark.parametrize("scope", [[], [B, A]], ids=["every-node", "named-nodes"])
def test_a_site_is_bridged_both_ways_and_nothing_goes_round(tmp_path, authority, scope):
    authority.issue("site-1", "bridge")
    named = ",".join(scope)
    upstream = RenderedMosquitto(
        tmp_path / "up", authority, "--site", f"site-1={named}" if named else "site-1"
    )
    site = RenderedMosquitto(
        tmp_path / "site", authority, "--upstream", f"localhost:{upstream.port}",
        *(["--nodes", named] if named else []),
    )  # fmt: skip
    with ExitStack() as stack:
        stack.enter_context(upstream.running())
        controller = stack.enter_context(connected(upstream.port, authority, CONTROLLER))
        controller.subscribe(*(TOPICS.every(c) for c in Channel), MARKER)
        assert controller.publish(TOPICS.wanted(A), b"wanted", retain=True) < 0x80
        stack.enter_context(site.running())
        node = stack.enter_context(connected(site.port, authority, A))
        node.subscribe(TOPICS.commands(A), MARKER)
        # The bridge is there when the state, which the site keeps until then, has come up.
        assert node.publish(TOPICS.state(A), b"state", retain=True) < 0x80
        came_up = {m.payload for m in controller.until(b"state")}
        assert came_up <= {b"wanted"}

        # Down: a command, once; and what is retained, to a node that asks for it later.
        assert controller.publish(TOPICS.commands(A), b"command") == 0
        assert controller.publish(MARKER, b"down") == 0
        assert [m.payload for m in node.until(b"down")] == [b"command"]
        node.subscribe(TOPICS.wanted(A))
        controller.publish(MARKER, b"down again")
        assert [m.payload for m in node.until(b"down again")] == [b"wanted"]

        # Up: a result, once; and nothing of what went down has come back.
        controller.until(b"down again")
        assert node.publish(TOPICS.results(A), b"result") == 0
        assert node.publish(TOPICS.telemetry(A, "readings"), b"last") == 0
        assert [m.payload for m in controller.until(b"last")] == [b"result"]
        reader = stack.enter_context(connected(upstream.port, authority, CONTROLLER))
        reader.subscribe(TOPICS.state(A), MARKER)
        reader.publish(MARKER, b"end")
        assert [m.payload for m in reader.until(b"end")] == [b"state"]


def test_a_site_speaks_for_its_own_nodes_only(tmp_path, authority):
    upstream = RenderedMosquitto(tmp_path / "up", authority, "--site", f"site-1={A}")
    with (
        upstream.running(),
        connected(upstream.port, authority, CONTROLLER) as controller,
        connected(upstream.port, authority, "site-1") as site,
    ):
        controller.subscribe(*(TOPICS.every(c) for c in Channel), MARKER)
        site.subscribe("#", MARKER)
        for topic in (
            TOPICS.state(B),
            TOPICS.wanted(A),
            TOPICS.commands(A),
            TOPICS.state("site-1"),
        ):
            assert site.publish(topic, b"invented") == 0x87
        assert site.publish(TOPICS.state(A), b"true") == 0
        controller.publish(TOPICS.commands(B), b"for b")
        controller.publish(TOPICS.commands(A), b"for a")
        controller.publish(MARKER, b"end")
        assert [m.payload for m in site.until(b"end")] == [b"for a"]
        seen = {m.payload for m in controller.until(b"end")}
        assert b"true" in seen
        assert b"invented" not in seen
