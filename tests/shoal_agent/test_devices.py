import asyncio
from contextlib import asynccontextmanager

import pytest

from shoal_agent.devices import DeviceLink, NotNowError
from shoal_agent.errors import DeviceError
from shoal_contract import frames
from shoal_contract.frames import Frame, Kind, Op, Status


class Bridge:
    """The other end of the socket, moved by hand: `heard` is what the agent sent."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[Frame] = asyncio.Queue()
        self.connected = asyncio.Event()
        self.writer: asyncio.StreamWriter | None = None
        self.answers = True

    async def serve(self, reader, writer):
        self.writer = writer
        self.connected.set()
        cutter = frames.FrameReader()
        while data := await reader.read(4096):
            for frame in cutter.receive(data):
                if frame.kind is Kind.BEAT:
                    continue
                self.heard.put_nowait(frame)
                if frame.kind is Kind.COMMAND and self.answers:
                    status = Status.OK if frame.args[0] == 2 else Status.REFUSED
                    self.say(Frame(Kind.REPLY, frame.seq, frame.op, (int(status), 7)))
        writer.close()

    def say(self, frame: Frame) -> None:
        self.writer.write(frames.encode(frame))

    def sample(self, seq: int, *, boot: int = 1, channel: int = 1) -> None:
        self.say(Frame(Kind.EVENT, seq, Op.SAMPLE, (channel, boot, b"payload")))

    async def replies(self, count: int) -> list[tuple[int, Status]]:
        heard = [await self.heard.get() for _ in range(count)]
        return [(frame.seq, Status(frame.args[0])) for frame in heard]


@asynccontextmanager
async def linked(tmp_path):
    bridge = Bridge()
    path = tmp_path / "meter.sock"
    server = await asyncio.start_unix_server(bridge.serve, path)
    async with server, DeviceLink.open("meter", str(path)) as link:
        await bridge.connected.wait()
        yield bridge, link


async def test_a_command_returns_when_the_device_says_that_it_did(tmp_path):
    async with linked(tmp_path) as (bridge, link):
        await link.set(2, 7, 42, b"tag!")
        frame = await bridge.heard.get()
        assert (frame.op, frame.args) == (Op.SET, (2, 7, 42, b"tag!"))
        assert await link.get(2) == 7


async def test_a_refusal_names_device_and_reason(tmp_path):
    async with linked(tmp_path) as (_, link):
        with pytest.raises(DeviceError, match="meter: set was answered with: refused"):
            await link.set(3, 1)


async def test_a_command_too_long_for_a_frame_is_refused_before_it_is_sent(tmp_path):
    async with linked(tmp_path) as (bridge, link):
        with pytest.raises(DeviceError, match="at most 58 fit"):
            await link.set(2, "x" * 60)
        assert bridge.heard.empty()


async def test_a_command_in_flight_fails_when_the_bridge_goes(tmp_path):
    async with linked(tmp_path) as (bridge, link):
        bridge.answers = False
        waiting = asyncio.create_task(link.set(2, 1))
        await bridge.heard.get()
        bridge.writer.close()
        with pytest.raises(DeviceError, match="went away"):
            await waiting


async def test_without_a_bridge_a_command_fails_at_once(tmp_path):
    async with DeviceLink.open("meter", str(tmp_path / "none.sock")) as link:
        with pytest.raises(DeviceError, match="bridge is not there"):
            await link.set(2, 1)


async def test_a_sample_is_answered_when_its_handler_is_done_and_not_before(tmp_path):
    async with linked(tmp_path) as (bridge, link):
        began, may_end = asyncio.Event(), asyncio.Event()

        async def handle(_):
            began.set()
            await may_end.wait()

        link.on_sample(1, handle)
        bridge.sample(5)
        await began.wait()
        assert bridge.heard.empty()
        may_end.set()
        assert await bridge.replies(1) == [(5, Status.OK)]


async def test_a_sample_that_comes_before_it_is_known_who_reads_it_is_not_refused(tmp_path):
    taken = []

    async def handle(sample):
        taken.append(sample.seq)

    async with linked(tmp_path) as (bridge, link):
        bridge.sample(5)
        bridge.sample(6, channel=9)
        bridge.say(Frame(Kind.EVENT, 7, Op.SAMPLE, ("nonsense",)))
        assert await bridge.replies(1) == [(7, Status.BAD_ARGS)], "the two before it have no answer"
        link.on_sample(1, handle)
        link.refuse_unknown()
        bridge.sample(5)
        bridge.sample(6, channel=9)
        assert sorted(await bridge.replies(2)) == [(5, Status.OK), (6, Status.UNKNOWN_OP)]
    assert taken == [5]


async def test_a_repeat_is_answered_and_not_handled_again(tmp_path):
    async with linked(tmp_path) as (bridge, link):
        seen = []

        async def handle(sample):
            seen.append((sample.boot, sample.seq))

        link.on_sample(1, handle)
        for boot in (1, 1, 2):
            bridge.sample(5, boot=boot)
            assert await bridge.replies(1) == [(5, Status.OK)]
        assert seen == [(1, 5), (2, 5)], "another boot's sample is another sample"


async def test_a_sample_that_cannot_be_handled_now_stays_unanswered(tmp_path):
    async with linked(tmp_path) as (bridge, link):
        tries = []

        async def handle(sample):
            tries.append(sample.seq)
            if len(tries) == 1:
                raise NotNowError

        link.on_sample(1, handle)
        bridge.sample(5)
        bridge.sample(6)
        assert await bridge.replies(1) == [(6, Status.OK)]
        bridge.sample(5)
        assert await bridge.replies(1) == [(5, Status.OK)]


async def test_a_sample_nobody_reads_or_of_a_wrong_shape_is_answered_so(tmp_path):
    async with linked(tmp_path) as (bridge, link):
        link.refuse_unknown()
        bridge.sample(5, channel=9)
        bridge.say(Frame(Kind.EVENT, 6, Op.SAMPLE, (1, "boot")))
        assert await bridge.replies(2) == [(5, Status.UNKNOWN_OP), (6, Status.BAD_ARGS)]


async def test_garbage_on_the_line_is_counted_and_skipped(tmp_path):
    async with linked(tmp_path) as (bridge, link):

        async def handle(_):
            return

        link.on_sample(1, handle)
        bridge.writer.write(bytes(range(256)) * 2)
        bridge.writer.write(b"\x00")
        bridge.sample(5)
        assert await bridge.replies(1) == [(5, Status.OK)]
        assert sum(link.damaged.values()) >= 1
