"""A pipeline between a device moved by hand, a router that answers as told, and a real outbox without a broker."""

import asyncio
import contextlib
from contextlib import asynccontextmanager

import pytest
from tests.shoal_agent.until import until

from shoal_agent.background import Background
from shoal_agent.config import PipelinesTable
from shoal_agent.devices import DeviceLink
from shoal_agent.inference.errors import BadInputError, NobodyServesError
from shoal_agent.inference.served import Served
from shoal_agent.pipelines.assembly import Surroundings
from shoal_agent.pipelines.ledger import Ledger
from shoal_agent.pipelines.roster import Roster
from shoal_agent.pipelines.subscribed import Subscribed
from shoal_broker.bus_errors import OutboxFullError
from shoal_broker.outbox import Outbox
from shoal_broker.session import Session, SessionConfig
from shoal_broker.store import Store
from shoal_contract import frames, messages
from shoal_contract.frames import Frame, Kind, Op, Status
from shoal_contract.messages import Answer
from shoal_contract.pipelines import CommandTable, PipelineTable
from shoal_contract.topics import Topics

RELEASE = bytes(range(32))
DISPLAY = 2


class RouterSimulator:
    """Answers every item with `label`, or raises `error`."""

    def __init__(self) -> None:
        self.label = "7"
        self.error: Exception | None = None
        self.asked: list[bytes] = []

    async def classify(self, model, items, *, deadline_s):
        assert (model, deadline_s) == ("digits", 2.0)
        self.asked += items
        if self.error is not None:
            raise self.error
        return Served([Answer(self.label, 0.91234567) for _ in items], RELEASE, "board-9")


class Device:
    """The bridge's end of the socket: `replies` to samples, `sets` that it carried out."""

    def __init__(self) -> None:
        self.replies: dict[int, Status] = {}
        self.sets: list[tuple] = []
        self.connected = asyncio.Event()
        self.obeys = True
        self._writer = None

    async def serve(self, reader, writer) -> None:
        self._writer = writer
        self.connected.set()
        cutter = frames.FrameReader()
        while data := await reader.read(4096):
            for frame in cutter.receive(data):
                if frame.kind is Kind.REPLY:
                    self.replies[frame.seq] = Status(frame.args[0])
                elif frame.kind is Kind.COMMAND:
                    status = Status.OK if self.obeys else Status.REFUSED
                    self.sets.append(frame.args)
                    self._say(Frame(Kind.REPLY, frame.seq, frame.op, (int(status),)))
        writer.close()

    def sample(self, seq: int, payload: bytes = b"pixels") -> None:
        self._say(Frame(Kind.EVENT, seq, Op.SAMPLE, (1, 5, payload)))

    def _say(self, frame: Frame) -> None:
        self._writer.write(frames.encode(frame))


class Site:
    def __init__(self, pipeline, device, router, session, store) -> None:
        self.pipeline = pipeline
        self.device = device
        self.router = router
        self.session = session
        self._store = store

    async def readings(self) -> list[messages.Reading]:
        rows = await self._store.read(
            lambda db: db.execute("SELECT topic, payload FROM outbox ORDER BY id").fetchall()
        )
        assert {topic for topic, _ in rows} <= {"shoal/n/n1/t/digits"}
        return [messages.decode_as(payload, messages.Reading) for _, payload in rows]

    async def repeated(self, seq: int) -> Status:
        """The answer to a sample that the device sends until it has one, as devices do."""
        while seq not in self.device.replies:
            self.device.sample(seq)
            with contextlib.suppress(TimeoutError):
                await until(lambda: seq in self.device.replies, timeout_s=0.2)
        return self.device.replies[seq]

    async def answered(self, seq: int) -> Status:
        await until(lambda: seq in self.device.replies, timeout_s=5)
        return self.device.replies[seq]


def nothing() -> None:
    """Nobody is told."""


@asynccontextmanager
async def site(tmp_path, command: CommandTable | None):
    device, router = Device(), RouterSimulator()
    path = tmp_path / "meter.sock"
    server = await asyncio.start_unix_server(device.serve, path)
    config = PipelineTable(
        stream="digits", device="meter", channel=1, model="digits", command=command
    )
    async with (
        server,
        Store.open(tmp_path / "agent.db") as store,
        # Nobody listens there: the uplink is cut from the beginning.
        Session.open(
            SessionConfig(host="127.0.0.1", port=1, client_id="n1"),
            outbox=await Outbox.load(store),
        ) as session,
        DeviceLink.open("meter", str(path)) as link,
        Background.open() as tasks,
    ):
        around = Surroundings(
            node="n1",
            topics=Topics(),
            session=session,
            router=router,
            devices={"meter": link},
            subscribed=await Subscribed.load(store, []),
            ledger=await Ledger.load(store),
            tasks=tasks,
        )
        roster = Roster(around, PipelinesTable(), on_change=nothing)
        await roster.open([config], [])
        (pipeline,) = roster.running()
        await device.connected.wait()
        yield Site(pipeline, device, router, session, store)


@pytest.fixture
async def commanding(tmp_path):
    async with site(tmp_path, CommandTable(channel=DISPLAY)) as made:
        yield made


async def test_a_sample_becomes_a_reading_a_command_and_then_an_answer(commanding):
    commanding.device.sample(7)
    assert await commanding.answered(7) is Status.OK
    (reading,) = await commanding.readings()
    assert (reading.device, reading.boot, reading.seq) == ("meter", 5, 7)
    assert (reading.label, reading.confidence, reading.by) == ("7", 0.9123, "board-9")
    assert reading.release == RELEASE[:8]
    assert commanding.device.sets == [(DISPLAY, 7, 7, RELEASE[:4])]
    assert commanding.pipeline.stats.served == 1


async def test_with_nobody_to_serve_it_a_sample_stays_unanswered_and_is_served_when_it_comes_again(
    commanding,
):
    commanding.router.error = NobodyServesError("nobody serves 'digits'")
    commanding.device.sample(7)
    await until(lambda: commanding.pipeline.stats.waiting == 1)
    assert await commanding.readings() == []
    assert commanding.device.sets == []
    commanding.router.error = None
    commanding.device.sample(8)
    assert await commanding.answered(8) is Status.OK
    assert 7 not in commanding.device.replies
    commanding.device.sample(7)
    assert await commanding.answered(7) is Status.OK
    assert [reading.seq for reading in await commanding.readings()] == [8, 7]


async def test_a_sample_that_can_never_fit_is_answered_so_that_the_device_goes_on(commanding):
    commanding.router.error = BadInputError("an item has 40 bytes")
    commanding.device.sample(7, b"short")
    assert await commanding.answered(7) is Status.OK
    assert await commanding.readings() == []
    assert commanding.device.sets == []
    assert commanding.pipeline.stats.bad_input == 1


async def test_a_device_that_does_not_obey_is_asked_again_with_the_sample(commanding):
    commanding.device.obeys = False
    commanding.device.sample(7)
    await until(lambda: commanding.pipeline.stats.sink_failed == 1)
    assert commanding.device.replies == {}
    commanding.device.obeys = True
    assert await commanding.repeated(7) is Status.OK
    # The reading went out twice; (device, boot, seq) tells the hub that it is one.
    assert {reading.seq for reading in await commanding.readings()} == {7}
    assert commanding.pipeline.stats.served == 1


async def test_without_room_on_the_disk_nothing_is_answered(commanding, monkeypatch):
    async def full(*_args, **_options) -> None:
        raise OutboxFullError("the outbox is full", rows=1, size_bytes=1)

    monkeypatch.setattr(commanding.session, "publish", full)
    commanding.device.sample(7)
    await until(lambda: commanding.router.asked == [b"pixels"])
    monkeypatch.undo()
    commanding.device.sample(8)
    assert await commanding.answered(8) is Status.OK
    assert 7 not in commanding.device.replies
    # The device was commanded both times: its loop does not wait for the disk.
    assert [args[2] for args in commanding.device.sets] == [7, 8]


async def test_a_label_that_spells_no_number_is_a_reading_and_no_command(commanding):
    commanding.router.label = "cat"
    commanding.device.sample(7)
    assert await commanding.answered(7) is Status.OK
    assert [reading.label for reading in await commanding.readings()] == ["cat"]
    assert commanding.device.sets == []
    assert commanding.pipeline.stats.sink_failed == 1


async def test_a_label_can_be_shown_as_text(tmp_path):
    async with site(tmp_path, CommandTable(channel=DISPLAY, value="text")) as made:
        made.router.label = "cat"
        made.device.sample(7)
        assert await made.answered(7) is Status.OK
        assert made.device.sets == [(DISPLAY, "cat", 7, RELEASE[:4])]


async def test_a_label_that_fits_no_frame_does_not_stop_the_device(tmp_path):
    async with site(tmp_path, CommandTable(channel=DISPLAY, value="text")) as made:
        made.router.label = "a label of more than a frame " * 3
        made.device.sample(7)
        assert await made.answered(7) is Status.OK
        assert len(await made.readings()) == 1
        assert made.device.sets == []
        assert made.pipeline.stats.sink_failed == 1


async def test_a_pipeline_without_a_command_only_reads(tmp_path):
    async with site(tmp_path, None) as made:
        made.device.sample(7)
        assert await made.answered(7) is Status.OK
        assert len(await made.readings()) == 1
        assert made.device.sets == []
