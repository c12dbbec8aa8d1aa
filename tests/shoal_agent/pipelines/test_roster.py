"""Pipelines that come, change and go while others run: nothing is lost, and a bad one changes nothing."""

import asyncio

import msgspec
import pytest
from tests.shoal_agent.pipelines.test_device_pipeline import Device
from tests.shoal_agent.until import until
from tests.support import picture_releases
from tests.support.pipelined import pipelined

from shoal_agent.config import PipelinesTable
from shoal_agent.devices import DeviceLink
from shoal_broker.server import Broker, BrokerConfig
from shoal_contract.frames import Status
from shoal_contract.messages import PipelineState, PipelineWanted
from shoal_contract.pipelines import PipelineTable, TopicTable

CLIMATE = {"stream": "climate", "model": "climate", "topic": {"filter": "z/+", "values": ["$.t"]}}
HEAT = {"stream": "heat", "model": "heat", "topic": {"filter": "h/+", "values": ["$.t"]}}


@pytest.fixture
async def broker():
    async with Broker.open(BrokerConfig(host="127.0.0.1", port=0)) as broker:
        yield broker


def table(stream: str = "climate", topic_filter: str = "z/+", **topic) -> PipelineTable:
    values = {"filter": topic_filter, "values": ("$.t",), "wait_s": 5.0, **topic}
    return PipelineTable(stream=stream, model=stream, topic=TopicTable(**values))


def wanted(*tables: dict) -> list[PipelineWanted]:
    return [PipelineWanted(one["stream"], one) for one in tables]


async def test_a_changed_pipeline_takes_over_and_the_message_under_way_is_not_lost(
    broker, tmp_path
):
    async with pipelined(broker, tmp_path, table(), table("other", "o/+")) as made:
        first, other = made.pipelines
        made.router.hold.clear()
        await made.say("z/1", b'{"t": 1, "u": 10}')
        await until(lambda: len(made.router.asked) == 1, timeout_s=5)
        await made.roster.follow_file([table(values=("$.u",)), table("other", "o/+")])
        second = made.pipelines[0]
        assert second is not first
        # Nobody touched the one beside it.
        assert made.pipelines[1] is other
        await made.say("z/1", b'{"t": 2, "u": 20}')
        await until(lambda: len(made.router.asked) == 2, timeout_s=5)
        made.router.hold.set()
        await made.heard(2)
        assert sorted(reading.seq for reading in made.readings()) == [1, 2]
        # 1 by the old table, 20 by the new one; counters go on.
        assert [item.hex() for item in made.router.asked] == ["0000803f", "0000a041"]
        await until(lambda: second.stats.served == 2, timeout_s=5)
        assert second.stats is first.stats


async def test_no_message_falls_between_many_changes(broker, tmp_path):
    async with pipelined(broker, tmp_path, table()) as made:
        await made.until_subscribed("z/+")

        async def change() -> None:
            for number in range(30):
                await made.roster.follow_file([table(wait_s=1.0 + number)])
                await asyncio.sleep(0.002)

        changing = asyncio.create_task(change())
        for number in range(60):
            await made.say("z/1", f'{{"t": {number}}}'.encode())
        await changing
        await until(lambda: made.pipelines[0].stats.served == 60, timeout_s=10)
        await made.heard(60)
        assert sorted({reading.seq for reading in made.readings()}) == list(range(1, 61))
        assert made.session.stats.unroutable == 0
        assert len(made.router.asked) == 60


async def test_a_new_filter_is_subscribed_to_and_an_old_one_left(broker, tmp_path):
    async with pipelined(broker, tmp_path, table()) as made:
        await made.roster.follow_file([table(topic_filter="new/+")])
        await made.until_subscribed("new/+")
        await until(lambda: "z/+" not in made.session._dispatcher.subscriptions, timeout_s=5)
        await made.say("new/1", b'{"t": 1}')
        await made.heard(1)
        # And back again, before the broker has heard of anything.
        await made.roster.follow_file([table()])
        await made.roster.follow_file([table(topic_filter="new/+")])
        await made.roster.follow_file([table()])
        await made.until_subscribed("z/+")
        await made.say("z/1", b'{"t": 1}')
        await made.heard(2)


async def test_a_pipeline_that_is_gone_reads_nothing_more(broker, tmp_path):
    async with pipelined(broker, tmp_path, table(), table("other")) as made:
        await made.roster.follow_file([table("other")])
        await made.say("z/1", b'{"t": 1}')
        await made.heard(1)
        assert [pipeline.config.stream for pipeline in made.pipelines] == ["other"]
        assert len(made.router.asked) == 1


async def test_what_the_fleet_wants_runs_beside_what_the_board_has(broker, tmp_path):
    async with pipelined(broker, tmp_path, table("other", "o/+")) as made:
        await made.roster.follow_fleet(wanted(CLIMATE))
        await made.until_subscribed("o/+", "z/+")
        await made.say("z/1", b'{"t": 1}')
        await made.heard(1)
        assert made.roster.states() == [
            PipelineState("climate", from_fleet=True, running=True),
            PipelineState("other", from_fleet=False, running=True),
        ]
        await made.roster.follow_fleet([])
        assert [state.stream for state in made.roster.states()] == ["other"]


async def test_a_bad_pipeline_of_the_fleet_leaves_the_old_one_running_and_says_why(
    broker, tmp_path
):
    async with pipelined(broker, tmp_path) as made:
        await made.roster.follow_fleet(wanted(CLIMATE, HEAT))
        (old, heat) = made.pipelines
        bad = CLIMATE | {"topic": {"filter": "z/#/x", "values": ["$.t"]}}
        changed = HEAT | {"deadline_s": 3.0}
        await made.roster.follow_fleet(wanted(bad, changed))
        assert made.pipelines[0] is old
        assert made.pipelines[1] is not heat
        assert "'#' stands alone" in made.reason("climate")
        await made.roster.follow_fleet(wanted(bad | {"model": "m", "colour": 1}, changed))
        assert made.reason("climate") == "unknown key `colour`"
        assert made.pipelines[0] is old
        await made.until_subscribed("z/+", "h/+")
        await made.say("z/1", b'{"t": 1}')
        await made.heard(1)
        await made.roster.follow_fleet(wanted(CLIMATE, changed))
        assert made.reason("climate") == ""
        assert made.pipelines[0] is old


async def test_a_table_that_does_not_fit_the_release_that_serves_leaves_the_old_one(
    broker, tmp_path
):
    spec = picture_releases.items("[2]", "f32")
    parts = {"stream": "parts", "model": "parts", "topic": {"filter": "z/+", "values": ["$"]}}
    async with pipelined(broker, tmp_path, specs={"parts": spec}) as made:
        await made.roster.follow_fleet(wanted(parts))
        (old,) = made.pipelines
        kelvin = parts | {"topic": {"filter": "z/+", "values": ["$"], "units": ["K"]}}
        await made.roster.follow_fleet(wanted(kelvin))
        assert made.pipelines == [old]
        assert made.reason("parts").startswith("$: 'K' is not '0..255'")


async def test_a_first_pipeline_that_does_not_fit_waits_for_a_release_that_it_does(
    broker, tmp_path
):
    parts = {"stream": "parts", "model": "parts", "topic": {"filter": "z/+", "values": ["$"]}}
    specs = {"parts": picture_releases.items("[2]", "u8")}
    async with pipelined(broker, tmp_path, specs=specs) as made:
        await made.roster.follow_fleet(wanted(parts))
        await made.until_subscribed("z/+")
        await made.say("z/1", b"1")
        await until(lambda: "encoding 'f32'" in made.reason("parts"), timeout_s=5)
        assert made.router.asked == []
        made.specs["parts"] = picture_releases.items("[2]", "f32", version="1.1.0")
        await made.heard(1)
        assert made.reason("parts") == ""
        assert made.told >= 3


async def test_values_are_converted_into_the_units_of_the_release(broker, tmp_path):
    specs = {"parts": picture_releases.items("[1]", "f32")}
    specs["parts"] = _with_units(specs["parts"], "degC")
    topic = {"filter": "z/+", "values": ["$"], "units": ["°F"], "convert": True}
    async with pipelined(broker, tmp_path, specs=specs) as made:
        await made.roster.follow_fleet(
            wanted({"stream": "parts", "model": "parts", "topic": topic})
        )
        await made.until_subscribed("z/+")
        await made.say("z/1", b"212")
        await made.heard(1)
        assert made.router.asked[0].hex() == "0000c842"  # 100.0


async def test_the_boards_own_pipeline_goes_before_the_fleets_of_the_same_name(broker, tmp_path):
    async with pipelined(broker, tmp_path, table()) as made:
        await made.roster.follow_fleet(wanted(CLIMATE | {"deadline_s": 9.0}))
        own, fleets = made.roster.states()
        assert (own.from_fleet, own.running, own.reason) == (False, True, "")
        assert (fleets.from_fleet, fleets.running) == (True, False)
        assert "goes first" in fleets.reason
        await made.roster.follow_file([])
        assert made.roster.states() == [PipelineState("climate", from_fleet=True, running=True)]
        assert made.pipelines[0].config.deadline_s == 9.0


async def test_a_board_may_take_no_pipelines_of_the_fleet(broker, tmp_path):
    shut = PipelinesTable(from_fleet=False)
    async with pipelined(broker, tmp_path, allowed=shut, fleets=wanted(CLIMATE)) as made:
        assert made.pipelines == []
        assert made.reason("climate") == "[pipelines] from_fleet is false on this board"
        await made.until_subscribed()


@pytest.mark.parametrize(
    "more",
    [
        {"file": {"path": "{folder}/state/agent.db"}},
        {"file": {"path": "{folder}/open/../state/agent.db"}},
        {"file": {"path": "{folder}/open/link/agent.db"}},
        {"topic": None, "images": {"path": "/etc"}},
        {
            "topic": None,
            "camera": {"url": "rtsp://h/", "username": "u", "password_file": "/etc/shadow"},
        },
    ],
)
async def test_a_pipeline_of_the_fleet_keeps_to_the_folders_of_the_board(broker, tmp_path, more):
    (tmp_path / "open").mkdir()
    (tmp_path / "open/link").symlink_to(tmp_path)
    allowed = PipelinesTable(folders=(str(tmp_path / "open"),))
    filled = eval(repr(more).replace("{folder}", str(tmp_path)))  # noqa: S307 - our own values
    made_of = {key: value for key, value in (CLIMATE | filled).items() if value is not None}
    async with pipelined(broker, tmp_path, allowed=allowed) as made:
        await made.roster.follow_fleet(wanted(made_of))
        assert made.pipelines == []
        assert "is in none of [pipelines] folders" in made.reason("climate")
        inside = CLIMATE | {"file": {"path": str(tmp_path / "open/verdicts.jsonl")}}
        await made.roster.follow_fleet(wanted(inside))
        assert len(made.pipelines) == 1


async def test_a_device_of_another_board_or_a_channel_that_is_read_already_is_refused(
    broker, tmp_path
):
    device = Device()
    server = await asyncio.start_unix_server(device.serve, tmp_path / "meter.sock")
    async with server, DeviceLink.open("meter", str(tmp_path / "meter.sock")) as link:
        own = PipelineTable(stream="own", model="digits", device="meter", channel=1)
        devices = {"meter": link}
        async with pipelined(broker, tmp_path, own, devices=devices) as made:
            fleets = {"stream": "fleets", "model": "digits", "device": "meter", "channel": 1}
            await made.roster.follow_fleet(wanted(fleets))
            assert made.reason("fleets") == "pipeline 'own' reads channel 1 of 'meter'"
            await made.roster.follow_fleet(wanted(fleets | {"device": "valve"}))
            assert "'valve' is not a [[device]]" in made.reason("fleets")
            # A changed one takes the channel over; what is unanswered comes again.
            await device.connected.wait()
            made.router.hold.clear()
            device.sample(7)
            await until(lambda: made.router.asked == [b"pixels"], timeout_s=5)
            await made.roster.follow_file(
                [PipelineTable(stream="own", model="other", device="meter", channel=1)]
            )
            device.sample(8)
            made.router.hold.set()
            await until(lambda: device.replies == {7: Status.OK, 8: Status.OK}, timeout_s=5)
            await made.roster.follow_file([])
            device.sample(9)
            await until(lambda: device.replies.get(9) is Status.UNKNOWN_OP, timeout_s=5)


def _with_units(spec, units: str):
    return msgspec.structs.replace(spec, input=msgspec.structs.replace(spec.input, units=units))
