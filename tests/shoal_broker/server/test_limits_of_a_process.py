"""The limits of a real `shoal-broker` under load: the documented answer, and memory that stays bounded."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from tests.shoal_broker.server.test_shell import raw
from tests.support import programs

from shoal_broker.codec import (
    ConnectPacket,
    DisconnectPacket,
    PubAckPacket,
    PublishPacket,
    QoS,
)

MIB = 1 << 20
CHUNK = bytes(64 << 10)

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(180)]


class Process:
    """A broker of its own; `raw` connects to its `port`."""

    def __init__(self, port: int, pid: int) -> None:
        self.port = port
        self._status = Path(f"/proc/{pid}/status")

    def memory_bytes(self, of: str = "VmRSS") -> int:
        """VmHWM is the most that it ever was."""
        lines = dict(line.split(":", 1) for line in self._status.read_text().splitlines())
        return int(lines[of].split()[0]) << 10


@asynccontextmanager
async def broker(folder: Path, **settings):
    config = folder / "broker.toml"
    limits = "".join(f"{key} = {value}\n" for key, value in settings.items())
    config.write_text(f"[[listener]]\nport = 0\n\n[limits]\n{limits}")
    ready = folder / "port"
    async with programs.running(
        "shoal_broker", "run", "--config", config, log=folder / "log", ready_file=ready
    ) as program:
        yield Process(int(ready.read_text()), program.pid)
        assert "Traceback" not in program.log


async def publish_all(sender, topics, count: int, payload: bytes) -> Counter[int]:
    """QoS 1, 64 at a time; how many got which code."""
    codes: Counter[int] = Counter()
    for first in range(0, count, 64):
        ids = range(first + 1, min(first + 64, count) + 1)
        sender.send(
            *(
                PublishPacket(
                    topics[n % len(topics)],
                    payload,
                    qos=QoS.AT_LEAST_ONCE,
                    packet_id=n % 60_000 + 1,
                )
                for n in ids
            )
        )
        await sender.writer.drain()
        for _ in ids:
            codes[int((await sender.next(PubAckPacket)).reason_code)] += 1
    return codes


async def take_all(client, count: int) -> list[PublishPacket]:
    taken = []
    while len(taken) < count:
        message = await client.next(PublishPacket)
        if message.packet_id is not None:
            client.send(PubAckPacket(message.packet_id))
        taken.append(message)
    return taken


async def test_a_gigabyte_of_messages_for_absent_clients_takes_no_more_than_its_limit(tmp_path):
    async with AsyncExitStack() as stack:
        process = await stack.enter_async_context(
            broker(tmp_path, max_queued_bytes_total=64 * MIB, max_queued_bytes=1 << 40)
        )
        topics = [f"t/{n}" for n in range(8)]
        for n, topic in enumerate(topics):
            async with raw(process) as away:
                await away.connect(f"away-{n}", session_expiry_interval=3600)
                await away.subscribe(topic)
        sender = await stack.enter_async_context(raw(process))
        await sender.connect("sender")
        before_bytes = process.memory_bytes()
        codes = await publish_all(sender, topics, (1 << 30) // len(CHUNK), CHUNK)
        assert codes.total() * len(CHUNK) == 1 << 30
        assert set(codes) == {0, 0x97}
        # What was accepted is nearly as much as the limit, and all of it is there.
        assert 60 * MIB < codes[0] * len(CHUNK) <= 64 * MIB
        assert process.memory_bytes("VmHWM") - before_bytes < (64 + 48) * MIB
        got = 0
        for n in range(len(topics)):
            back = await stack.enter_async_context(raw(process))
            await back.connect(f"away-{n}", session_expiry_interval=3600)
            got += len(await take_all(back, codes[0] // len(topics)))
        assert got == codes[0] // len(topics) * len(topics)
        assert await sender.publish("t/0", b"again", 61_000) == 0


async def test_a_subscriber_that_never_reads_costs_its_queue_and_nobody_else_waits(tmp_path):
    async with AsyncExitStack() as stack:
        process = await stack.enter_async_context(broker(tmp_path, max_queued_bytes=16 * MIB))
        deaf = await stack.enter_async_context(raw(process, receive_buffer_bytes=4096))
        await deaf.connect("deaf")
        await deaf.subscribe("c/#")
        deaf.writer.transport.pause_reading()
        keen = await stack.enter_async_context(raw(process))
        await keen.connect("keen")
        await keen.subscribe("c/#")
        sender = await stack.enter_async_context(raw(process))
        await sender.connect("sender")
        before_bytes = process.memory_bytes()
        for _ in range(32):
            codes = await publish_all(sender, ["c/1", "c/2"], 64, CHUNK)
            # A session that ends with its connection is no reason to refuse a publisher.
            assert codes == {0: 64}
            heard = await take_all(keen, 64)
            assert all(message.payload == CHUNK for message in heard)
        assert process.memory_bytes("VmHWM") - before_bytes < (16 + 48) * MIB


async def test_thousands_of_connects_one_after_the_other_leave_nothing_behind(tmp_path):
    async with broker(tmp_path) as process:

        async def come_and_go(client: int, times: int) -> int:
            accepted = 0
            for n in range(times):
                async with raw(process) as one:
                    one.send(ConnectPacket(f"c{client}-{n}"))
                    accepted += int((await one.next()).reason_code) == 0
                    one.send(DisconnectPacket())
                    assert await one.next() is None
            return accepted

        assert await come_and_go(0, 200) == 200
        before_bytes = process.memory_bytes()
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        accepted = await asyncio.gather(*(come_and_go(client, 100) for client in range(1, 51)))
        took_s = loop.time() - begun_s
        print(f"{sum(accepted)} connects in {took_s:.1f} s: {sum(accepted) / took_s:.0f} a second")
        assert sum(accepted) == 5_000
        assert process.memory_bytes() - before_bytes < 8 * MIB


async def test_ten_thousand_retained_topics_reach_a_subscriber_in_order(tmp_path):
    async with AsyncExitStack() as stack:
        process = await stack.enter_async_context(broker(tmp_path))
        sender = await stack.enter_async_context(raw(process))
        await sender.connect("sender")
        for n in range(10_000):
            sender.send(PublishPacket(f"r/{n}", b"%d" % n * 100, retain=True))
            if n % 100 == 0:
                await sender.writer.drain()
        assert await sender.publish("done", b"") == 0x10
        before_bytes = process.memory_bytes()
        listener = await stack.enter_async_context(raw(process))
        await listener.connect("listener", receive_max=10)
        await listener.subscribe("r/#")
        heard = await take_all(listener, 10_000)
        assert [message.topic for message in heard] == [f"r/{n}" for n in range(10_000)]
        assert all(message.retain for message in heard)
        assert process.memory_bytes("VmHWM") - before_bytes < 16 * MIB
