"""An agent of the first version at this controller, and one that is newer than it: golden bytes on a real broker."""

from typing import Any

import msgspec

from shoal_broker.session import Session, SessionConfig
from shoal_contract import cbor, envelope, messages
from shoal_contract.messages import Phase
from shoal_contract.topics import Topics
from shoal_fleet import digits

# As `messages.encode` of the first version wrote them.
FIRST = {
    "presence": "8405f544626f6f7401",
    "reported": "8a0665302e302e3944626f6f74058964506920346644656269616e676161726368363404f6f6f6f680"
    "8188666469676974735820" + "11" * 32 + "65312e302e305820" + "11" * 32 + "04600040"
    "81656d6574657200646e6f646580",
    "reading": "8a09656d6574657201182a6137fb3fe00000000000005820" + "11" * 32 + "626e311904d200",
}


class FirstCommand(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """What the first version knew of a command."""

    id: bytes
    op: str
    args: dict[str, Any]
    issued_ms: int
    expires_ms: int
    priority: int = 4


class FirstWanted(msgspec.Struct, array_like=True, frozen=True, tag=7):
    revision: int
    issued_ms: int
    models: list[Any]


def newer(message: str) -> bytes:
    """The same with two fields more at the end."""
    # With every field of today first: what is new comes behind.
    today = messages.encode(messages.decode(bytes.fromhex(message)))
    fields = cbor.decode(today, max_bytes=4096)
    return cbor.encode([*fields, "a field of tomorrow", {"and": 1}])


def read(payload: bytes, kind: type[Any]) -> Any:
    """As an agent without signatures reads it."""
    content = envelope.unpack(payload).payload if envelope.is_signed(payload) else payload
    fields = cbor.decode(content, max_bytes=1 << 17)
    return msgspec.convert(fields, kind, strict=True, builtin_types=(bytes,))


async def talks(site, encoded):
    """Say presence, state and a reading; get a command and a wanted state, and answer the command."""
    topics, heard = Topics(), {}
    config = SessionConfig(host="127.0.0.1", port=site.broker_port, client_id="old")
    async with Session.open(config) as session:

        async def command(inbound):
            heard["command"] = inbound.payload

        async def wanted(inbound):
            heard["wanted"] = inbound.payload

        await session.subscribe(topics.commands("old"), command)
        await session.subscribe(topics.wanted("old"), wanted)
        await session.wait_connected(5)
        await session.publish(
            topics.presence("old"), encoded("presence"), retain=True, durable=False
        )
        await session.publish(topics.state("old"), encoded("reported"), retain=True, durable=False)
        await session.publish(topics.telemetry("old", "digits"), encoded("reading"), durable=False)
        await site.until(lambda: site._is_known("old"))
        node = site.controller.registry.nodes["old"]
        assert node.reported.version == "0.0.9"
        state = node.model("digits")
        assert (state.version, state.phase) == ("1.0.0", Phase.SERVING)
        await site.add_release(digits.release_dir(1))
        await site.api.put("/api/nodes/old/models/digits", json={"release": "digits@1.0.0"})
        sent = (await site.api.post("/api/commands", json={"node": "old", "op": "ping"})).json()
        await site.until(lambda: {"command", "wanted"} <= heard.keys())
        asked = read(heard["command"], FirstCommand)
        assert (asked.op, asked.id.hex()) == ("ping", sent["id"])
        told = read(heard["wanted"], FirstWanted)
        assert [model[0] for model in told.models] == ["digits"]
        answer = cbor.encode([3, asked.id, 3, asked.issued_ms + 1, "", None, 0])
        await session.publish(topics.results("old"), answer, durable=False)

        async def command_now():
            return (await site.api.get(f"/api/commands/{sent['id']}")).json()

        found = await site.until_answer(command_now, lambda found: found["state"] == "succeeded")
        assert found["node"] == "old"
        await site.until(lambda: site.controller.readings.stats.stored == 1)
        assert not site.controller.inbox.malformed


async def test_an_agent_of_the_first_version_is_commanded_and_told_what_to_run(site):
    await talks(site, lambda name: bytes.fromhex(FIRST[name]))


async def test_an_agent_that_says_more_than_this_controller_knows_is_understood_as_far_as_it_is(
    site,
):
    await talks(site, lambda name: newer(FIRST[name]))


async def test_a_kind_of_tomorrow_is_counted_and_ignored(site):
    topics = Topics()
    config = SessionConfig(host="127.0.0.1", port=site.broker_port, client_id="old")
    async with Session.open(config) as session:
        await session.wait_connected(5)
        await session.publish(
            topics.results("old"), cbor.encode([999, "what is this"]), durable=False
        )
        await site.until(lambda: site.controller.inbox.unknown_kinds == 1)
        await session.publish(
            topics.presence("old"), bytes.fromhex(FIRST["presence"]), durable=False
        )
        await site.until(lambda: "old" in site.controller.registry.nodes)
