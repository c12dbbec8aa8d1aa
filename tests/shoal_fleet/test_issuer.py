"""The controller's signature: its key, and everything that it says on commands topics."""

import contextlib
import json

import pytest
from tests.shoal_fleet.test_cli import shoal
from tests.shoal_fleet.test_groups import ovens
from tests.shoal_fleet.test_nodes_and_commands import final, send

from shoal_broker.session import Session, SessionConfig
from shoal_contract import envelope, messages
from shoal_contract.envelope import KEY_BYTES
from shoal_contract.messages import MAX_MESSAGE_BYTES, Cancel, Command, Receipt
from shoal_contract.signatures import Verifier
from shoal_contract.topics import Channel, Topics
from shoal_fleet import orders
from shoal_fleet.config import DoorTable
from shoal_fleet.errors import StateError
from shoal_fleet.issuer import KEY_FILE, load_signer

TOPICS = Topics()
FILTERS = (TOPICS.every(Channel.COMMANDS), TOPICS.group_commands("oven"), TOPICS.group_commands("all"))  # fmt: skip


@contextlib.asynccontextmanager
async def client(site, name):
    config = SessionConfig(host="127.0.0.1", port=site.broker_port, client_id=name)
    async with Session.open(config) as session:
        await session.wait_connected(5)
        yield session


@contextlib.asynccontextmanager
async def listening(site):
    """Everything on commands topics: (topic, payload)."""
    heard = []

    async def take(inbound):
        heard.append((inbound.topic, inbound.payload))

    async with client(site, "ear") as session:
        for topic_filter in FILTERS:
            await session.subscribe(topic_filter, take)
        yield heard


def verifier(site):
    return Verifier([envelope.parse_key(site.controller.issuer.public_key)])


def opened(site, heard):
    """What was said, by topic; every signature is checked against its topic."""
    by = verifier(site)
    return [(topic, messages.decode(by.open(data, topic=topic)[0])) for topic, data in heard]


def test_the_key_is_made_at_the_first_start_and_kept(tmp_path):
    made = load_signer(tmp_path)
    path = tmp_path / KEY_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(envelope.parse_key(path.read_text().strip())) == KEY_BYTES
    assert load_signer(tmp_path).public_key == made.public_key
    assert load_signer_elsewhere(tmp_path).public_key != made.public_key


def load_signer_elsewhere(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    return load_signer(elsewhere)


def test_a_key_that_others_may_read_is_refused(tmp_path):
    load_signer(tmp_path)
    (tmp_path / KEY_FILE).chmod(0o640)
    with pytest.raises(StateError, match="chmod 600"):
        load_signer(tmp_path)


@pytest.mark.parametrize("content", [b"", b"secret words", b"\xff" * 300, b"AAAA\n"])
def test_a_file_that_is_no_key_is_one_line_that_does_not_quote_it(tmp_path, content):
    path = tmp_path / KEY_FILE
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(StateError) as caught:
        load_signer(tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert path.read_bytes() == content


async def test_a_command_a_request_to_cancel_and_a_receipt_are_signed(site):
    (node,) = await site.nodes(1)
    async with listening(site) as heard:
        command = (await send(site, op="slow"))["id"]
        await site.until(lambda: bool(node.running))
        answer = await site.api.post(f"/api/commands/{command}/cancel")
        assert answer.json()["answer"] == "cancelled"
        await node.read(1)
        await site.until(lambda: len(heard) == 3)
    said = opened(site, heard)
    assert {topic for topic, _ in said} == {TOPICS.commands("n0")}
    assert [type(message) for _, message in said] == [Command, Cancel, Receipt]


async def test_a_group_s_command_is_signed_for_its_topic_and_again_for_each_member_s(
    site, monkeypatch
):
    monkeypatch.setattr(orders, "GROUP_GRACE_S", 0.2)
    _, second, _ = await ovens(site)
    second.mute = True
    async with listening(site) as heard:
        body = {"group": "oven", "op": "ping"}
        command = (await site.api.post("/api/commands", json=body)).json()["id"]
        group, own = TOPICS.group_commands("oven"), TOPICS.commands("n1")
        await site.until(lambda: {group, own} <= {topic for topic, _ in heard})
    said = opened(site, heard)
    assert [topic for topic, _ in said].count(group) == 1
    assert {message.id.hex() for _, message in said} == {command}


async def test_what_a_restart_finds_unsent_is_signed_too(quiet_site, monkeypatch):
    async with quiet_site.controlled() as site, site.node("n0"):
        """The node is known."""

    async def lost(*_arguments, **_options):
        """A crash between the record and the outbox."""

    async with quiet_site.controlled() as site:
        with monkeypatch.context() as patched:
            patched.setattr(site.controller.orders, "_say", lost)
            command = (await send(site))["id"]
    async with listening(quiet_site) as heard, quiet_site.controlled() as site:
        await site.until(lambda: bool(heard))
        ((topic, message),) = opened(site, heard)
    assert (topic, message.id.hex()) == (TOPICS.commands("n0"), command)


async def test_a_node_that_takes_signed_commands_only_does_what_the_json_door_was_asked(quiet_site):
    door = DoorTable(user="ha", ops=("ping",), nodes="")
    topic = TOPICS.door("ha", "n0", Channel.COMMANDS)
    async with (
        quiet_site.controlled(door=(door,)) as site,
        site.node("n0", trusts=verifier(site)) as node,
        listening(site) as heard,
        client(site, "ha") as session,
    ):
        await session.publish(topic, json.dumps({"op": "ping"}).encode(), durable=False)
        await site.until(lambda: len(node.done) == 1 and bool(heard))
        assert opened(site, heard)[0][1].op == "ping"


async def test_a_node_that_takes_signed_commands_only_refuses_what_anybody_else_says(site):
    async with site.node("n0", trusts=verifier(site)) as node:
        async with client(site, "stranger") as stranger:
            forged = messages.encode(Command(bytes(8), "ping", {}, 0, 1 << 50))
            await stranger.publish(TOPICS.commands("n0"), forged, durable=False)
        command = (await send(site))["id"]
        assert (await final(site, command))["state"] == "succeeded"
        assert [done.hex() for done in node.done] == [command]
        assert node.refused == 1


async def test_a_controller_that_is_told_not_to_sign_does_not(quiet_site):
    async with quiet_site.controlled(sign_commands=False) as site, site.node("n0"):
        async with listening(site) as heard:
            assert (await final(site, (await send(site))["id"]))["state"] == "succeeded"
            await site.until(lambda: bool(heard))
        assert isinstance(messages.decode(heard[0][1]), Command)
        assert (await site.api.get("/api/status")).json()["command_key"] is None
        assert not (site.state_dir / KEY_FILE).exists()


async def test_a_command_that_is_too_large_when_signed_is_refused_before_it_is_recorded(site):
    await site.nodes(1)
    node = {"node": "n0", "op": "ping"}
    sizes = {}
    for size in (MAX_MESSAGE_BYTES - 200, MAX_MESSAGE_BYTES - 80):
        answer = await site.api.post("/api/commands", json={**node, "args": {"text": "x" * size}})
        sizes[size] = answer.status_code
    assert list(sizes.values()) == [201, 400]
    assert len((await site.api.get("/api/commands")).json()) == 1


async def test_the_public_key_is_printed_and_in_the_status(site):
    key = site.controller.issuer.public_key
    assert await shoal(site, "key", "show") == (0, f"{key}\n", "")
    _, out, _ = await shoal(site, "key", "show", "--json")
    key_id = envelope.key_id(envelope.parse_key(key)).hex()
    assert json.loads(out) == {"command_key": key, "key_id": key_id}
    assert (await site.api.get("/api/status")).json()["command_key"] == key


async def test_there_is_no_key_before_the_first_start(quiet_site):
    code, _, error = await shoal(quiet_site, "key", "show")
    assert (code, "shoal serve" in error) == (1, True)


async def test_print_gives_a_signed_envelope_that_any_client_may_publish(site):
    async with site.node("n0", trusts=verifier(site)) as node:
        _, out, _ = await shoal(site, "send", "n0", "ping", "--print")
        topic, digits = out.split()
        async with client(site, "anybody") as anybody:
            await anybody.publish(topic, bytes.fromhex(digits), durable=False)
        await site.until(lambda: len(node.done) == 1)
    assert node.refused == 0
