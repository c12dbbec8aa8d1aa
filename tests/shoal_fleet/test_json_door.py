"""The door of a real controller at a real broker, spoken to as any MQTT client would."""

import asyncio
import contextlib
import json

import pytest
from structlog.testing import capture_logs

from shoal_broker.bus_errors import OutboxFullError
from shoal_broker.session import Session, SessionConfig
from shoal_contract.messages import State
from shoal_contract.topics import Channel, Topics
from shoal_fleet import json_door_answers
from shoal_fleet.commands import GRACE_MS
from shoal_fleet.config import DoorTable

TOPICS = Topics()
HA = DoorTable(
    user="ha", ops=("ping", "fail", "slow", "unknown"), nodes="site=oslo", telemetry=True
)
RED = DoorTable(user="red", ops=("*",), nodes="")


class Client:
    """Speaks JSON; keeps what it reads by channel."""

    def __init__(self, user, session):
        self.user = user
        self.session = session
        self.said = []
        self.changed = asyncio.Event()

    async def take(self, inbound):
        self.said.append((inbound.topic, inbound))
        self.changed.set()

    async def send(self, payload, *, node="n0", **options):
        if isinstance(payload, dict):
            payload = json.dumps(payload).encode()
        topic = TOPICS.door(self.user, node, Channel.COMMANDS)
        await self.session.publish(topic, payload, durable=False, **options)

    def heard(self, channel, node="n0"):
        """Payloads of one channel of one node."""
        found = []
        for topic, inbound in self.said:
            address = TOPICS.parse(topic)
            if (address.channel, address.node) == (channel, node):
                found.append(json.loads(inbound.payload) if inbound.payload else None)
        return found

    def answers(self, node="n0"):
        return self.heard(Channel.RESULTS, node)

    async def until(self, holds):
        async with asyncio.timeout(45):
            while not holds():
                self.changed.clear()
                await self.changed.wait()

    async def until_answered(self, count, node="n0"):
        """The first `count` answers."""
        await self.until(lambda: len(self.answers(node)) >= count)
        return self.answers(node)[:count]


@contextlib.asynccontextmanager
async def client(site, user="ha"):
    config = SessionConfig(host="127.0.0.1", port=site.broker_port, client_id=user)
    channels = (Channel.RESULTS, Channel.PRESENCE, Channel.STATE, Channel.TELEMETRY)
    async with Session.open(config) as session:
        mine = Client(user, session)
        for channel in channels:
            await session.subscribe(TOPICS.every_door(channel, user=user), mine.take)
        await session.wait_connected(5)
        yield mine


@pytest.fixture
async def oslo(quiet_site):
    """A controller with two doors, node n0 in Oslo and n1 in Bergen."""
    async with quiet_site.controlled(door=(HA, RED)) as site:
        nodes = await site.nodes(2)
        await label(site, "n0", "oslo")
        await label(site, "n1", "bergen")
        site.n0, site.n1 = nodes
        yield site
        await quiet_site._nodes.aclose()


async def label(site, node, where):
    answer = await site.api.patch(f"/api/nodes/{node}/labels", json={"labels": {"site": where}})
    assert answer.status_code == 200


async def test_a_command_in_json_goes_through_its_states_to_one_result(oslo):
    async with client(oslo) as ha:
        await ha.send({"op": "ping", "args": {"n": 1}, "id": "a-1"})
        said = await ha.until_answered(4)
    assert [one["state"] for one in said] == ["sent", "accepted", "running", "succeeded"]
    assert {one["id"] for one in said} == {"a-1"}
    assert {one["op"] for one in said} == {"ping"}
    assert said[2]["progress"] == 50
    assert said[3]["result"] == {"pong": {"n": 1}}
    listed = (await oslo.api.get("/api/commands")).json()
    assert [one["id"] for one in listed] == [said[0]["command"]]


async def test_reasons_of_the_node_are_passed_on(oslo):
    async with client(oslo) as ha:
        await ha.send({"op": "unknown"})
        _, refused = await ha.until_answered(2)
        await ha.send({"op": "fail"})
        *_, failed = await ha.until_answered(6)
    assert (refused["state"], refused["reason"]) == ("refused", "there is no such operation")
    assert refused["command"] is not None
    assert (failed["state"], failed["reason"]) == ("failed", "the valve is stuck")


@pytest.mark.parametrize("named", ["id", "correlation"])
async def test_a_command_that_comes_twice_has_one_effect_and_both_times_an_answer(oslo, named):
    command = {"op": "ping", "id": "a-1"} if named == "id" else {"op": "ping"}
    options = {} if named == "id" else {"correlation": b"a-1"}
    async with client(oslo) as ha:
        await ha.send(command, **options)
        first = await ha.until_answered(4)
        await ha.send(command, **options)
        again = (await ha.until_answered(5))[-1]
    assert again == first[-1]
    assert len(oslo.n0.commands) == 1
    assert {inbound.correlation for _, inbound in ha.said if "/r" in inbound.topic} == {
        options.get("correlation")
    }


async def test_a_command_without_a_name_is_another_one_each_time(oslo):
    async with client(oslo) as ha:
        await ha.send({"op": "ping"})
        await ha.send({"op": "ping"})
        await ha.until_answered(8)
    assert len(oslo.n0.commands) == 2


async def test_an_id_that_is_given_to_another_command_is_refused(oslo):
    async with client(oslo) as ha:
        await ha.send({"op": "ping", "args": {"n": 1}, "id": "a-1"})
        await ha.until_answered(4)
        await ha.send({"op": "ping", "args": {"n": 2}, "id": "a-1"})
        refused = (await ha.until_answered(5))[-1]
    assert (refused["state"], refused["id"], refused["command"]) == ("refused", "a-1", None)
    assert "another command" in refused["reason"]
    assert len(oslo.n0.commands) == 1


@pytest.mark.parametrize(
    ("user", "node", "command", "why", "reason"),
    [
        ("mallory", "n0", {"op": "ping"}, "user", "not open to this user"),
        ("ha", "n0", {"op": "device.set"}, "op", "not among the operations"),
        ("ha", "n1", {"op": "ping"}, "node", "not among the nodes"),
        ("ha", "n7", {"op": "ping"}, "node", "not among the nodes"),
        ("red", "n7", {"op": "ping"}, "node", "not among the nodes"),
        ("ha", "n0", b"ping", "json", "not JSON"),
        ("ha", "n0", b"x" * 40_000, "size", "at most"),
        ("ha", "n0", {"op": "ping", "args": 1}, "shape", "args"),
        ("ha", "n0", {"op": "ping", "args": {"x" * 65: 1}}, "command", "length <= 64"),
        ("ha", "n0", {"op": "ping", "args": {"x": [[[[[[[[[[]]]]]]]]]]}}, "command", "depth"),
        ("ha", "n0", {"op": "ping", "args": {"x": "\ud800"}}, "json", "surrogate"),
    ],
)
async def test_what_the_door_does_not_do_is_refused_with_its_reason_and_counted(
    oslo, user, node, command, why, reason
):
    secret = b"a secret"
    if isinstance(command, bytes):
        command += secret
    else:
        command = {**command, "id": "a secret"}
    with capture_logs() as logs:
        async with client(oslo, user) as mine:
            await mine.send(command, node=node)
            (said,) = await mine.until_answered(1, node=node)
    assert (said["state"], said["command"]) == ("refused", None)
    assert reason in said["reason"]
    assert said["id"] == (None if why in ("user", "json", "size") else "a secret")
    assert oslo.controller.door.stats.refused == {why: 1}
    assert not oslo.n0.commands
    assert not oslo.n1.commands
    assert "secret" not in str(logs)
    assert [entry["why"] for entry in logs if entry["event"] == "door refused"] == [why]
    # It goes on.
    async with client(oslo, "red") as red:
        await red.send({"op": "ping"})
        await red.until(lambda: bool(oslo.n0.commands))


async def test_correlation_data_that_is_too_long_is_refused_and_not_sent_back(oslo):
    async with client(oslo) as ha:
        await ha.send({"op": "ping"}, correlation=b"c" * 129)
        (said,) = await ha.until_answered(1)
    assert "correlation" in said["reason"]
    assert ha.said[-1][1].correlation is None


async def test_a_retained_command_is_refused_when_it_is_met_again(quiet_site):
    async with quiet_site.controlled(door=(HA,)), client(quiet_site) as ha:
        # Nobody has the node yet: what counts is that it stays at the broker.
        await ha.send({"op": "ping"}, retain=True)
        await ha.until_answered(1)
    quiet_site.state_dir = quiet_site.folder / "another"
    async with (
        client(quiet_site) as ha,
        quiet_site.controlled(
            door=(HA,), broker=broker_table(quiet_site, client_id="another-controller")
        ) as site,
    ):
        (said,) = await ha.until_answered(1)
        assert (said["state"], said["command"]) == ("refused", None)
        assert "retain" in said["reason"]
        assert site.controller.door.stats.refused == {"retained": 1}
        # An empty message clears it, and is no command.
        await ha.send(b"", retain=True)
        await site.until(lambda: site.controller.door.stats.received == 2)
        assert sum(site.controller.door.stats.refused.values()) == 1


def broker_table(site, **changes):
    return type(site.config().broker)(port=site.broker_port, **changes)


async def test_a_command_lasts_no_longer_than_the_message_that_brought_it(oslo):
    oslo.n0.mute = True
    async with client(oslo) as ha:
        await ha.send({"op": "ping", "expires_s": 600}, expiry_s=5)
        await ha.until_answered(1)
    (command,) = (await oslo.api.get("/api/commands")).json()
    assert command["expires_ms"] - command["issued_ms"] <= 5000


async def test_a_command_that_nobody_accepts_is_said_to_expire_and_the_nodes_late_word_too(oslo):
    oslo.n0.mute = True
    async with client(oslo) as ha:
        await ha.send({"op": "ping", "expires_s": 1})
        (sent,) = await ha.until_answered(1)
        commands = oslo.controller.commands
        (command,) = (await oslo.api.get("/api/commands")).json()
        await commands.presume_expired(command["expires_ms"] + GRACE_MS + 1)
        assert (await ha.until_answered(2))[-1]["state"] == "expired"
        await oslo.n0.answer(bytes.fromhex(sent["command"]), State.SUCCEEDED, result=5)
        last = (await ha.until_answered(3))[-1]
    assert (last["state"], last["result"]) == ("succeeded", 5)


async def test_what_ended_while_the_controller_was_away_is_told_when_it_is_back(quiet_site):
    async with (
        quiet_site.controlled(door=(RED,)) as site,
        site.node("n0", mute=True) as node,
        client(site, "red") as red,
    ):
        await red.send({"op": "ping", "id": "a-1"})
        (sent,) = await red.until_answered(1)
        await site.until(lambda: bool(node.commands))
        # As if the process had ended just behind the commit.
        site.controller.commands.observer = None
        await node.answer(bytes.fromhex(sent["command"]), State.SUCCEEDED, result=5)
        await site.until_answer(
            lambda: site.api.get(f"/api/commands/{sent['command']}"),
            lambda answer: answer.json()["state"] == "succeeded",
        )
    async with client(quiet_site, "red") as red:
        async with quiet_site.controlled(door=(RED,)):
            (said,) = await red.until_answered(1)
            assert (said["id"], said["state"], said["result"]) == ("a-1", "succeeded", 5)
        async with quiet_site.controlled(door=(RED,)) as site, site.node("n0"):
            # Once is enough: the next thing that is said is the answer to a new command.
            await red.send({"op": "ping", "id": "a-2"})
            assert (await red.until_answered(2))[-1]["id"] == "a-2"


async def test_a_command_that_was_recorded_and_not_sent_leaves_when_it_comes_again(
    oslo, monkeypatch
):
    orders = oslo.controller.orders

    async def full(*_args, **_options):
        raise OutboxFullError("the outbox is full", rows=1, size_bytes=1)

    async with client(oslo) as ha:
        with monkeypatch.context() as patched:
            patched.setattr(orders, "_say", full)
            await ha.send({"op": "ping", "id": "a-1"})
            (refused,) = await ha.until_answered(1)
            assert (refused["state"], "full" in refused["reason"]) == ("refused", True)
        assert not oslo.n0.commands
        await ha.send({"op": "ping", "id": "a-1"})
        *_, last = await ha.until_answered(5)
    assert last["state"] == "succeeded"
    assert len(oslo.n0.commands) == 1


async def test_a_user_has_so_many_open_commands_and_no_more(oslo, monkeypatch):
    monkeypatch.setattr(json_door_answers, "MAX_OPEN", 2)
    oslo.n0.mute = True
    async with client(oslo) as ha, client(oslo, "red") as red:
        for number in range(3):
            await ha.send({"op": "ping", "id": str(number)})
        refused = (await ha.until_answered(3))[-1]
        assert (refused["id"], refused["state"]) == ("2", "refused")
        assert "2 commands of ha" in refused["reason"]
        # A repeat is no other command, and another user has room of their own.
        await ha.send({"op": "ping", "id": "0"})
        assert (await ha.until_answered(4))[-1]["state"] == "sent"
        await red.send({"op": "ping"})
        assert (await red.until_answered(1))[-1]["state"] == "sent"


async def test_answers_go_to_who_asked_and_to_nobody_else(oslo):
    async with client(oslo) as ha, client(oslo, "red") as red:
        await red.send({"op": "ping"})
        await red.until_answered(4)
        await ha.send({"op": "ping", "id": "mine"})
        await ha.until_answered(4)
    assert {one["id"] for one in ha.answers()} == {"mine"}


# ------------------------------------------------------------------ the mirror
async def test_readings_presence_and_state_are_mirrored_within_the_scope(oslo):
    async with client(oslo) as ha, client(oslo, "red") as red:
        await oslo.n1.read(1)
        await oslo.n0.read(1, label="3")
        await ha.until(lambda: bool(ha.heard(Channel.TELEMETRY)))
        await ha.until(lambda: bool(ha.heard(Channel.PRESENCE) and ha.heard(Channel.STATE)))
        (reading,) = ha.heard(Channel.TELEMETRY)
        assert (reading["label"], reading["seq"], reading["by"]) == ("3", 1, "n0")
        assert reading["release"] == (b"r" * 32).hex()
        assert ha.heard(Channel.PRESENCE)[-1]["online"] is True
        assert ha.heard(Channel.STATE)[-1]["hardware"]["model"] == "Raspberry Pi 4"
        assert not any(ha.heard(channel, "n1") for channel in Channel)
        # Without `telemetry = true` nothing is mirrored.
        assert not red.said
    mirrored = oslo.controller.door.mirror.stats.mirrored
    assert mirrored["telemetry"] == 1
    assert mirrored["presence"] >= 1


async def test_a_node_that_goes_is_mirrored_as_gone(oslo):
    async with client(oslo) as ha:
        async with oslo.node("n5"):
            await label(oslo, "n5", "oslo")
            await ha.until(lambda: bool(ha.heard(Channel.PRESENCE, "n5")))
        await ha.until(lambda: ha.heard(Channel.PRESENCE, "n5")[-1]["online"] is False)


async def test_presence_and_state_are_retained_and_taken_away_with_the_scope(oslo):
    mirror = oslo.controller.door.mirror
    await oslo.until(lambda: mirror.stats.mirrored.get("state", 0) >= 1 and not mirror._retained)
    async with client(oslo) as late:
        await late.until(lambda: bool(late.heard(Channel.PRESENCE) and late.heard(Channel.STATE)))
        assert all(inbound.retain for _, inbound in late.said)
        await label(oslo, "n0", "bergen")
        await late.until(lambda: late.heard(Channel.PRESENCE)[-1] is None)
        await late.until(lambda: late.heard(Channel.STATE)[-1] is None)
        await label(oslo, "n0", "oslo")
        await late.until(lambda: late.heard(Channel.PRESENCE)[-1] is not None)
        await late.until(lambda: late.heard(Channel.STATE)[-1] is not None)


@pytest.mark.parametrize(
    "tables", [(), (DoorTable(user="ha", nodes="site=bergen", telemetry=True),)]
)
async def test_what_a_user_may_no_longer_see_is_taken_away_at_the_next_start(quiet_site, tables):
    async with quiet_site.controlled(door=(HA,)) as site, site.node("n0"):
        await label(site, "n0", "oslo")
        mirror = site.controller.door.mirror
        await site.until(lambda: len(mirror.stats.mirrored) == 2 and not mirror._retained)
    async with quiet_site.controlled(door=tables) as site:
        mirror = site.controller.door.mirror
        await site.until(lambda: not mirror._mirrored and not mirror._retained)
        await site.until(lambda: site.controller.session.stats.outbox_waiting == 0)
        async with client(site) as ha, client(site, "red") as other:
            # Retained messages would have come before this.
            await other.session.publish(
                TOPICS.door("ha", "n9", Channel.RESULTS), b"{}", durable=False
            )
            await ha.until(lambda: bool(ha.said))
            assert [topic for topic, _ in ha.said] == [TOPICS.door("ha", "n9", Channel.RESULTS)]
    async with quiet_site.controlled(door=tables) as site:
        assert not site.controller.door.mirror._mirrored


async def test_readings_that_nobody_takes_are_dropped_and_counted(oslo, monkeypatch):
    monkeypatch.setattr("shoal_fleet.json_door_mirror.MAX_WAITING", 2)
    mirror = oslo.controller.door.mirror
    holding = asyncio.Event()
    publish = oslo.controller.session.publish

    async def slow(*args, **options):
        await holding.wait()
        await publish(*args, **options)

    await oslo.until(lambda: not mirror._retained)
    monkeypatch.setattr(mirror._session, "publish", slow)
    async with client(oslo) as ha:
        for seq in range(6):
            await oslo.n0.read(seq)
        await oslo.until(lambda: oslo.controller.readings.stats.stored == 6)
        holding.set()
        await ha.until(lambda: len(ha.heard(Channel.TELEMETRY)) == 3)
    assert mirror.stats.dropped == 3


# ------------------------------------------------------------------ off, and figures
async def test_without_a_table_nothing_is_subscribed_and_nothing_mirrored(site):
    (node,) = await site.nodes(1)
    async with client(site) as ha:
        await ha.send({"op": "ping"})
        await node.read(1)
        await site.until(lambda: site.controller.readings.stats.stored == 1)
        assert site.controller.door.subscriptions == {}
        assert site.controller.commands.observer is None
    assert not ha.said
    assert not node.commands
    assert site.controller.door.stats.received == 0


async def test_the_figures_are_in_the_metrics(oslo):
    async with client(oslo) as ha:
        await ha.send(b"nonsense")
        await ha.send({"op": "ping"})
        await ha.until_answered(5)
        await oslo.n0.read(1)
        await ha.until(lambda: bool(ha.heard(Channel.TELEMETRY)))
    metrics = (await oslo.api.get("/metrics")).text
    assert "shoal_door_messages_total 2.0" in metrics
    assert 'shoal_door_refused_total{reason="json"} 1.0' in metrics
    assert 'shoal_door_mirrored_total{channel="telemetry"} 1.0' in metrics
