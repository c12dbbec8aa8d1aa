"""Pipelines that read topics, over a real broker: what other programs publish, and what they are told."""

import asyncio
import json
import struct

import pytest
from tests.shoal_agent.inference import text_release as words
from tests.shoal_agent.until import until
from tests.support.pipelined import RELEASE, pipelined

from shoal_agent.inference.errors import BadInputError, NobodyServesError
from shoal_agent.inference.tensors import Tensor
from shoal_agent.pipelines.sinks import FileLine
from shoal_agent.pipelines.subscribed import Subscribed
from shoal_broker.server import Broker, BrokerConfig
from shoal_broker.session import Session, SessionConfig
from shoal_broker.store import Store
from shoal_contract import messages
from shoal_contract.pipelines import AnswerTable, FileTable, PipelineTable, PublishTable, TopicTable
from shoal_contract.release import parse_spec

CLIMATE = TopicTable(filter="zigbee2mqtt/+", values=("$.temperature", "$.humidity"), wait_s=0.0)
VERDICTS = PublishTable(topic="verdict/{1}")


@pytest.fixture
async def broker():
    async with Broker.open(BrokerConfig(host="127.0.0.1", port=0)) as broker:
        yield broker


def table(stream: str = "climate", **options) -> PipelineTable:
    return PipelineTable(stream=stream, model="climate", **{"topic": CLIMATE, **options})


async def test_what_a_sensor_publishes_as_json_becomes_a_reading_and_a_verdict_on_a_topic(
    broker, tmp_path
):
    async with pipelined(broker, tmp_path, table(publish=VERDICTS)) as made:
        await made.say("zigbee2mqtt/bath", b'{"temperature": 21.5, "humidity": 80, "link": 9}')
        heard = dict(await made.heard(2))
    reading = messages.decode_as(heard["shoal/n/n1/t/climate"], messages.Reading)
    assert (reading.device, reading.label, reading.confidence) == ("bath", "damp", 0.75)
    told = json.loads(heard["verdict/bath"])
    assert (told["source"], told["label"], told["by"]) == ("bath", "damp", "board-9")
    assert told["topic"] == "zigbee2mqtt/bath"
    assert told["release"] == RELEASE[:8].hex()


async def test_two_pipelines_read_the_same_topic(broker, tmp_path):
    async with pipelined(broker, tmp_path, table("one"), table("two")) as made:
        await made.say("zigbee2mqtt/bath", b'{"temperature": 1, "humidity": 2}')
        assert {topic for topic, _ in await made.heard(2)} == {
            "shoal/n/n1/t/one",
            "shoal/n/n1/t/two",
        }


async def test_a_label_alone_can_be_published(broker, tmp_path):
    plain = PublishTable(topic="verdict/now", format="label")
    async with pipelined(broker, tmp_path, table(publish=plain)) as made:
        await made.say("zigbee2mqtt/bath", b'{"temperature": 1, "humidity": 2}')
        assert ("verdict/now", b"damp") in await made.heard(2)


async def test_garbage_on_the_topic_is_counted_and_the_next_message_is_served(broker, tmp_path):
    async with pipelined(broker, tmp_path, table()) as made:
        await made.say("zigbee2mqtt/bath", b"no json")
        await made.say("zigbee2mqtt/bath", b'{"temperature": "warm", "humidity": 1}')
        await made.say("zigbee2mqtt/bath", b'{"temperature": 1, "humidity": 2}')
        await made.heard(1)
        assert made.pipelines[0].stats.bad_input == 2
        assert made.pipelines[0].stats.served == 1
        assert len(made.router.asked) == 1


async def test_an_item_that_the_model_refuses_is_done(broker, tmp_path):
    async with pipelined(broker, tmp_path, table()) as made:
        made.router.errors = [BadInputError("an item has 40 bytes")]
        await made.say("zigbee2mqtt/bath", b'{"temperature": 1, "humidity": 2}')
        await until(lambda: made.pipelines[0].stats.bad_input == 1, timeout_s=5)


async def test_a_message_that_nobody_serves_in_time_is_given_up_and_counted(broker, tmp_path):
    async with pipelined(broker, tmp_path, table()) as made:
        made.router.errors = [NobodyServesError("nobody")]
        await made.say("zigbee2mqtt/bath", b'{"temperature": 1, "humidity": 2}')
        await until(lambda: made.pipelines[0].stats.given_up == 1, timeout_s=5)
        await made.say("zigbee2mqtt/bath", b'{"temperature": 1, "humidity": 2}')
        await made.heard(1)


async def test_a_message_that_is_served_a_moment_later_is_not_given_up(broker, tmp_path):
    patient = TopicTable(filter="zigbee2mqtt/+", values=("$.temperature",), wait_s=30.0)
    async with pipelined(broker, tmp_path, table(topic=patient)) as made:
        made.router.errors = [NobodyServesError("nobody")]
        await made.say("zigbee2mqtt/bath", b'{"temperature": 1}')
        await made.heard(1)
        assert made.pipelines[0].stats.given_up == 0
        assert made.pipelines[0].stats.waiting == 1


async def test_what_the_broker_retained_from_earlier_is_read_only_when_asked_for(broker, tmp_path):
    keen = TopicTable(filter="zigbee2mqtt/#", values=("$.t",), retained=True)
    plain = TopicTable(filter="zigbee2mqtt/+", values=("$.t",))
    async with Session.open(
        SessionConfig(host="127.0.0.1", port=broker.port, client_id="early")
    ) as early:
        await early.wait_connected(5)
        await early.publish("zigbee2mqtt/bath", b'{"t": 1}', durable=False, retain=True)
    async with pipelined(
        broker, tmp_path, table("old", topic=keen), table("new", topic=plain)
    ) as made:
        assert [topic for topic, _ in await made.heard(1)] == ["shoal/n/n1/t/old"]
        await until(lambda: made.pipelines[0].stats.served == 1, timeout_s=5)
        assert made.pipelines[1].stats.served == 0


async def test_a_level_that_would_make_the_topic_invalid_is_counted(broker, tmp_path):
    # A topic of the whole rest: nothing is published where the broker would end the connection.
    odd = PublishTable(topic="verdict/{1}" * 2000)
    async with pipelined(broker, tmp_path, table(publish=odd)) as made:
        await made.say("zigbee2mqtt/" + "b" * 60, b'{"temperature": 1, "humidity": 2}')
        await until(lambda: made.pipelines[0].stats.sink_failed == 1, timeout_s=5)
        assert made.session.connected


async def test_steps_are_timed(broker, tmp_path):
    async with pipelined(broker, tmp_path, table(publish=VERDICTS)) as made:
        await made.say("zigbee2mqtt/bath", b'{"temperature": 1, "humidity": 2}')
        await made.heard(2)
        await until(lambda: made.pipelines[0].stats.served == 1, timeout_s=5)
        steps = dict(made.pipelines[0].stats.steps.quantiles(0.5))
        assert set(steps) == {"read", "model", "reading", "publish", "whole"}
        assert steps["whole"] >= steps["model"]


async def test_a_file_gets_a_line_each_and_begins_anew_when_it_is_full(broker, tmp_path):
    path = tmp_path / "verdicts.jsonl"
    lines = FileTable(path=str(path), max_bytes=4096)
    async with pipelined(broker, tmp_path, table(file=lines)) as made:
        for _ in range(40):
            await made.say("zigbee2mqtt/bath", b'{"temperature": 1, "humidity": 2}')
        await until(lambda: made.pipelines[0].stats.served == 40, timeout_s=10)
    earlier = path.with_name("verdicts.jsonl.1")
    both = earlier.read_bytes().splitlines() + path.read_bytes().splitlines()
    assert {json.loads(line)["source"] for line in both} == {"bath"}
    assert path.stat().st_size <= 4096
    assert earlier.stat().st_size <= 4096


async def test_a_file_that_cannot_be_written_stops_nothing(broker, tmp_path):
    nowhere = FileTable(path=str(tmp_path / "no" / "folder"))
    async with pipelined(broker, tmp_path, table(file=nowhere)) as made:
        await made.say("zigbee2mqtt/bath", b'{"temperature": 1, "humidity": 2}')
        await made.heard(1)
        await until(lambda: made.pipelines[0].stats.served == 1, timeout_s=5)
        assert made.pipelines[0].stats.sink_failed == 1


async def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path):
    target = tmp_path / "passwd"
    target.write_bytes(b"root")
    (tmp_path / "out").symlink_to(target)
    sink = FileLine(FileTable(path=str(tmp_path / "out")))
    with pytest.raises(OSError, match="symbolic links"):
        sink._append(b"line\n")
    assert target.read_bytes() == b"root"


async def test_a_filter_that_left_the_configuration_is_unsubscribed_at_the_broker(broker, tmp_path):
    kept = table(topic=TopicTable(filter="kept/+", values=("$",), wait_s=0.0))
    gone = table("gone", topic=TopicTable(filter="old/+", values=("$",)))
    async with pipelined(broker, tmp_path, kept, gone) as made:
        assert made.session.connected
    async with pipelined(broker, tmp_path, kept) as made:
        await made.say("kept/1", b"1")
        await until(lambda: made.session.stats.handled == 1, timeout_s=5)
        await made.until_subscribed("kept/+")
        await made.say("old/1", b"1")
        await made.say("kept/1", b"1")
        await until(lambda: made.session.stats.handled == 2, timeout_s=5)
        assert made.session.stats.unroutable == 0


async def test_messages_wait_for_pipelines_that_are_not_there_yet(tmp_path):
    async with Store.open(tmp_path / "agent.db") as store:
        subscribed = await Subscribed.load(store, ["zigbee2mqtt/+"])
        waiting = asyncio.ensure_future(subscribed.subscriptions["zigbee2mqtt/+"](None))
        await asyncio.sleep(0)
        assert not waiting.done()
        waiting.cancel()


async def test_a_note_on_a_topic_is_asked_as_a_text_once_the_release_is_known(broker, tmp_path):
    words.write(tmp_path / "words", spec={"max_bytes = 200": 'max_bytes = 200\nname = "note"'})
    notes = TopicTable(filter="notes/+", values=("$.note",), encoding="text", wait_s=30.0)
    answer = AnswerTable(output="hidden", labels=("calm", "hot", "x", "y", "z", "w"))
    async with pipelined(broker, tmp_path, table(topic=notes, answer=answer)) as made:
        scores = struct.pack("<6f", 0, 9, 1, 1, 1, 1)
        made.router.outputs = {"hidden": Tensor("float32", (1, 6), scores)}
        await made.say("notes/bath", '{"note": "the pump is heiß"}'.encode())
        await until(lambda: made.pipelines[0].stats.waiting == 1, timeout_s=5)
        assert made.router.tensors == []
        made.specs["climate"] = parse_spec((tmp_path / "words/release.toml").read_bytes())
        ((_, reading),) = await made.heard(1)
        assert messages.decode_as(reading, messages.Reading).label == "hot"
    ((name, tensor),) = made.router.tensors[0].items()
    wanted = "the pump is heiß".encode()
    assert (name, tensor.dtype, tensor.shape) == ("note", "uint8", (1, len(wanted)))
    assert bytes(tensor.data) == wanted
