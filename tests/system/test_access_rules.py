"""Who gets what, by deliveries: mosquitto with what `shoal-broker render` wrote, and the embedded broker.

A SUBACK or PUBACK proves nothing (mosquitto grants subscriptions it never serves). So everybody
tries everything, a marker follows that everybody may read, and what came before it counts.
"""

from __future__ import annotations

import socket
import ssl
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from tests.shoal_broker.render.rendered_mosquitto import Authority, RenderedMosquitto
from tests.shoal_broker.render.tls_client import RefusedError, connected
from tests.support.embedded import embedded, tls_of
from tests.support.mosquitto import Mosquitto

from shoal_broker.render.plan import MAX_IN_FLIGHT, MAX_PACKET_BYTES
from shoal_broker.server import Broker, BrokerConfig
from shoal_broker.server.access_rules import AccessRules
from shoal_contract.access import Access, Door, Fleetwide, Role, access
from shoal_contract.messages import MAX_MESSAGE_BYTES
from shoal_contract.topics import Channel, Topics

pytestmark = pytest.mark.system

TOPICS = Topics("acme/plant-1")
A, B = "node-a", "node-b"
CONTROLLER, OPERATOR, OBSERVER = "shoal-controller", "alice", "grafana"
DOOR, OTHER_DOOR = "homeassistant", "nodered"
ROLE_OF = {
    CONTROLLER: Role.CONTROLLER,
    OPERATOR: Role.OPERATOR,
    OBSERVER: Role.OBSERVER,
    DOOR: Role.DOOR,
    OTHER_DOOR: Role.DOOR,
    A: Role.NODE,
    B: Role.NODE,
}
OF_A = {
    Channel.COMMANDS: TOPICS.commands(A),
    Channel.RESULTS: TOPICS.results(A),
    Channel.PRESENCE: TOPICS.presence(A),
    Channel.STATE: TOPICS.state(A),
    Channel.WANTED: TOPICS.wanted(A),
    Channel.TELEMETRY: TOPICS.telemetry(A, "readings"),
    Channel.INFERENCE: TOPICS.inference(A, "digits"),
    Fleetwide.GROUP_COMMANDS: TOPICS.group_commands("north"),
    Fleetwide.CHUNKS: TOPICS.chunk(bytes(32), 7),
    Fleetwide.UPDATES: TOPICS.update("timestamp"),
    Door.COMMANDS: TOPICS.door(DOOR, A, Channel.COMMANDS),
    Door.RESULTS: TOPICS.door(DOOR, A, Channel.RESULTS),
    Door.PRESENCE: TOPICS.door(DOOR, A, Channel.PRESENCE),
    Door.STATE: TOPICS.door(DOOR, A, Channel.STATE),
    Door.TELEMETRY: TOPICS.door(DOOR, A, Channel.TELEMETRY, "readings"),
}
# Everybody but the door's clients may read the first; each of those may read its own.
MARKER = TOPICS.group_commands("marker")
MARKER_OF = {user: TOPICS.door(user, "marker", Channel.RESULTS) for user in (DOOR, OTHER_DOOR)}
PAIRS = [pytest.param(name, family, id=f"{name}-{family}") for name in ROLE_OF for family in OF_A]
DENIED = 0x87


@dataclass(frozen=True)
class Seen:
    """(who, kind of topic) pairs that came through: who wrote, who read."""

    written: frozenset
    read: frozenset


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module", params=["mosquitto", "embedded"])
def broker(request, tmp_path_factory, authority):
    if request.param == "embedded":
        rules = AccessRules(
            root=TOPICS.root,
            operators=(OPERATOR,),
            observers=(OBSERVER,),
            doors=(DOOR, OTHER_DOOR),
        )
        config = BrokerConfig(
            port=0, tls=tls_of(authority), access=rules, max_packet_bytes=MAX_PACKET_BYTES
        )
        with embedded(config) as running:
            yield running
        return
    if Mosquitto.found() is None:
        pytest.skip("mosquitto is not installed (apt-get install mosquitto)")
    rendered = RenderedMosquitto(
        tmp_path_factory.mktemp("broker") / "etc", authority,
        "--root", TOPICS.root, "--operator", OPERATOR, "--observer", OBSERVER,
        "--door", DOOR, "--door", OTHER_DOOR,
    )  # fmt: skip
    with rendered.running():
        yield rendered


@pytest.fixture
def client(broker, authority):
    with ExitStack() as stack:
        yield lambda name, **options: stack.enter_context(
            connected(broker.port, authority, name, **options)
        )


@pytest.fixture(scope="module")
def seen(broker, authority):
    """Everybody writes to every topic, then everybody has tried to read each of them."""
    with ExitStack() as stack:
        clients = {
            name: stack.enter_context(connected(broker.port, authority, name)) for name in ROLE_OF
        }
        for one in clients.values():
            # Asked for in every way: each topic itself, a level too many, everything.
            one.subscribe(*OF_A.values(), TOPICS.every(Channel.COMMANDS), "#", MARKER)
        for user, marker in MARKER_OF.items():
            clients[user].subscribe(TOPICS.every_door(Channel.RESULTS), marker)
        for name, one in clients.items():
            for family, topic in OF_A.items():
                one.publish(topic, f"{name} {family}".encode())
        for marker in (MARKER, *MARKER_OF.values()):
            assert clients[CONTROLLER].publish(marker, b"end of all") == 0
        arrived = {
            name: {(m.topic, m.payload.decode()) for m in one.until(b"end of all")}
            for name, one in clients.items()
        }
    written, read = set(), set()
    for reader, messages in arrived.items():
        for topic, label in messages:
            writer, _, family = label.partition(" ")
            kind = next(k for k in OF_A if str(k) == family)
            assert topic == OF_A[kind]
            written.add((writer, kind))
            read.add((reader, kind))
    return Seen(frozenset(written), frozenset(read))


@pytest.mark.parametrize(("name", "family"), PAIRS)
def test_who_may_write_is_delivered_and_nobody_else(seen, name, family):
    allowed = Access.WRITE in access(ROLE_OF[name], name, OF_A[family], TOPICS)
    assert ((name, family) in seen.written) is allowed


@pytest.mark.parametrize(("name", "family"), PAIRS)
def test_who_may_read_gets_deliveries_and_nobody_else(seen, name, family):
    allowed = Access.READ in access(ROLE_OF[name], name, OF_A[family], TOPICS)
    assert ((name, family) in seen.read) is allowed


# --- ways around


@pytest.mark.parametrize("name", [CONTROLLER, OPERATOR, OBSERVER, DOOR])
def test_a_client_that_is_no_node_cannot_play_a_node_of_its_own_name(client, name):
    watcher = client(OPERATOR if name != OPERATOR else OBSERVER)
    watcher.subscribe("#", MARKER)
    player = client(name)
    for topic in (
        f"{TOPICS.root}/n/{name}/r",
        f"{TOPICS.root}/n/{name}/p",
        f"{TOPICS.root}/n/{name}/s",
        f"{TOPICS.root}/n/{name}/t/readings",
    ):
        assert player.publish(topic, b"invented") == DENIED
    controller = player if name == CONTROLLER else client(CONTROLLER)
    controller.publish(MARKER, b"end")
    assert watcher.until(b"end") == []


def test_the_name_is_that_of_the_certificate_whatever_is_said(client):
    watcher = client(OBSERVER)
    watcher.subscribe("#", MARKER)
    liar = client(A, client_id=B, username=CONTROLLER)
    assert liar.publish(TOPICS.wanted(B), b"mine") == DENIED
    assert liar.publish(TOPICS.state(B), b"mine") == DENIED
    assert liar.publish(TOPICS.state(A), b"true") == 0
    client(CONTROLLER).publish(MARKER, b"end")
    assert [m.payload for m in watcher.until(b"end")] == [b"true"]


def test_a_node_cannot_take_over_another_ones_session(client, broker, authority):
    with connected(broker.port, authority, B, keep_session=True) as victim:
        victim.subscribe(TOPICS.commands(B))
    controller = client(CONTROLLER)
    assert controller.publish(TOPICS.commands(B), b"for b only") == 0
    with connected(broker.port, authority, A, client_id=B, keep_session=True) as thief:
        assert not thief.session_present
        thief.subscribe(MARKER)
        controller.publish(MARKER, b"end")
        assert thief.until(b"end") == []
    with connected(broker.port, authority, B, keep_session=True) as victim:
        assert victim.session_present
        victim.subscribe(MARKER)
        controller.publish(MARKER, b"end too")
        assert [m.payload for m in victim.until(b"end too")] == [b"for b only"]
    with connected(broker.port, authority, B), connected(broker.port, authority, A):
        pass  # a clean start removes what these sessions left


def test_retained_messages_are_delivered_by_the_same_rules(client):
    controller, node = client(CONTROLLER), client(A)
    try:
        assert controller.publish(TOPICS.wanted(A), b"wanted", retain=True) < 0x80
        assert node.publish(TOPICS.state(A), b"state", retain=True) < 0x80
        late = {name: client(name) for name in (B, OBSERVER)}
        for one in late.values():
            one.subscribe("#", TOPICS.wanted(A), TOPICS.state(A), MARKER)
        controller.publish(MARKER, b"end")
        assert late[B].until(b"end") == []
        assert {m.payload for m in late[OBSERVER].until(b"end")} == {b"wanted", b"state"}
    finally:
        controller.publish(TOPICS.wanted(A), b"", retain=True)
        node.publish(TOPICS.state(A), b"", retain=True)


def test_a_last_will_speaks_for_its_own_node_only(client, broker, authority):
    watcher = client(OBSERVER)
    watcher.subscribe(TOPICS.every(Channel.PRESENCE), MARKER)
    lie = (TOPICS.presence(A), b"a is gone")
    if isinstance(broker, Broker):
        with pytest.raises(RefusedError, match="Not authorized"):
            client(B, will=lie)
    else:
        with connected(broker.port, authority, B, will=lie) as liar:
            liar.drop()
    with connected(broker.port, authority, A, will=(TOPICS.presence(A), b"true")) as node:
        node.drop()
        assert watcher.until(b"true") == []


def test_retained_answers_of_the_door_are_its_users_alone(client):
    controller = client(CONTROLLER)
    presence = OF_A[Door.PRESENCE]
    try:
        assert controller.publish(presence, b"online", retain=True) < 0x80
        late = {user: client(user) for user in MARKER_OF}
        for user, one in late.items():
            one.subscribe("#", TOPICS.every_door(Channel.PRESENCE), presence, MARKER_OF[user])
            controller.publish(MARKER_OF[user], b"end")
        assert {m.payload for m in late[DOOR].until(b"end")} == {b"online"}
        assert late[OTHER_DOOR].until(b"end") == []
    finally:
        controller.publish(presence, b"", retain=True)


def test_controllers_share_what_nodes_report(client):
    member = client(CONTROLLER)
    member.subscribe(TOPICS.shared("hub", TOPICS.every(Channel.RESULTS)), MARKER)
    thief = client(B)
    thief.subscribe(TOPICS.shared("other", TOPICS.every(Channel.RESULTS)), MARKER)
    assert client(A).publish(TOPICS.results(A), b"done") == 0
    member.publish(MARKER, b"end")
    assert [m.payload for m in member.until(b"end")] == [b"done"]
    assert thief.until(b"end") == []


# --- the door


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_1_3_is_spoken_and_nothing_older(broker, authority, newest):
    context = ssl.create_default_context(cafile=str(authority.folder / "ca.crt"))
    context.load_cert_chain(*authority.issue(A))
    context.maximum_version = newest
    with socket.create_connection(("127.0.0.1", broker.port), timeout=5) as plain:
        if newest is ssl.TLSVersion.TLSv1_3:
            with context.wrap_socket(plain, server_hostname="localhost") as secured:
                assert secured.version() == "TLSv1.3"
        else:
            with pytest.raises(ssl.SSLError, match="version"):
                context.wrap_socket(plain, server_hostname="localhost")


def test_no_certificate_is_refused(broker, authority):
    with pytest.raises(RefusedError), connected(broker.port, authority, None):
        pass


def test_a_certificate_of_another_authority_is_refused(broker, authority, tmp_path):
    other = Authority(tmp_path / "other")
    with pytest.raises(RefusedError), connected(broker.port, authority, A, issuer=other):
        pass


@pytest.mark.parametrize("name", ["+", "#"])
def test_a_certificate_that_names_a_wildcard_reads_and_writes_nothing(
    broker, authority, client, name
):
    file = f"odd-{name.encode().hex()}"
    authority.issue(name, file)
    watcher, controller = client(OBSERVER), client(CONTROLLER)
    watcher.subscribe("#", MARKER)
    try:
        odd = client(file)
    except RefusedError:
        return
    odd.subscribe("#", TOPICS.commands(A), MARKER)
    for topic in (TOPICS.state(A), f"{TOPICS.root}/n/x/s"):
        assert odd.publish(topic, b"invented") == DENIED
    controller.publish(TOPICS.commands(A), b"command")
    controller.publish(MARKER, b"end")
    assert [m.payload for m in watcher.until(b"end")] == [b"command"]
    assert controller.publish(MARKER, b"still there") == 0


def test_the_largest_message_passes_and_a_larger_packet_ends_the_connection(client, broker):
    node, controller, other = client(A), client(CONTROLLER), client(OPERATOR)
    assert controller.connack.MaximumPacketSize == MAX_PACKET_BYTES
    if not isinstance(broker, Broker):
        assert controller.connack.ReceiveMaximum == MAX_IN_FLIGHT
    node.subscribe(TOPICS.commands(A), MARKER)
    assert controller.publish(TOPICS.commands(A), bytes(MAX_MESSAGE_BYTES)) == 0
    assert controller.publish_and_be_cut(TOPICS.commands(A), bytes(MAX_PACKET_BYTES))
    other.publish(MARKER, b"end")
    assert [len(m.payload) for m in node.until(b"end")] == [MAX_MESSAGE_BYTES]
