"""Many clients lose their broker at the same moment: every one of them comes back and gets its messages."""

import asyncio
import json
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from tests.support.killed_programs import killed_broker
from tests.support.many_sessions import EVERYBODY
from tests.support.mosquitto import Mosquitto

from shoal_broker.session import Session, SessionConfig

pytestmark = pytest.mark.system

MANY_SESSIONS = Path(__file__).parents[1] / "support" / "many_sessions.py"
END_TIMEOUT_S = 30
CPU_CLOCK = 2  # of another process: clock_getcpuclockid(3)


class Host:
    """A process with many sessions. `back_s` says when each was connected last."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.back_s: dict[int, float] = {}
        self.changed = asyncio.Event()
        self._process = process
        self._answers: asyncio.Queue[dict] = asyncio.Queue()

    @classmethod
    @asynccontextmanager
    async def open(cls, port: int, first: int, count: int, backoff_max_s: float):
        process = await asyncio.create_subprocess_exec(
            sys.executable, MANY_SESSIONS, *map(str, (port, first, count, backoff_max_s)),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        host = cls(process)
        reading = asyncio.create_task(host._read())
        try:
            yield host
        finally:
            process.stdin.close()
            try:
                async with asyncio.timeout(END_TIMEOUT_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
            await reading

    async def count(self) -> dict:
        """What it has counted; connection attempts since the last time."""
        self._process.stdin.write(b"\n")
        return await self._answers.get()

    async def _read(self) -> None:
        while line := await self._process.stdout.readline():
            said = json.loads(line)
            if "number" in said:
                self.back_s[said["number"]] = said["at_s"]
                self.changed.set()
            else:
                self._answers.put_nowait(said)


async def all_connected(hosts: list[Host], count: int, *, timeout_s: float) -> list[float]:
    """When each session was connected, in order; fails when some are not in time."""

    async def until_all(host: Host) -> None:
        while len(host.back_s) < count // len(hosts):
            host.changed.clear()
            await host.changed.wait()

    try:
        async with asyncio.timeout(timeout_s):
            await asyncio.gather(*map(until_all, hosts))
    except TimeoutError as exc:
        here = sum(len(host.back_s) for host in hosts)
        raise AssertionError(f"{here} of {count} are connected after {timeout_s:g} s") from exc
    return sorted(at_s for host in hosts for at_s in host.back_s.values())


async def storm(
    kind: str, folder: Path, *, clients: int, hosts: int, backoff_max_s: float, timeout_s: float
) -> dict:
    """Kill the broker under all of them, start it again, and count."""
    if kind != "embedded" and Mosquitto.found() is None:
        pytest.skip("mosquitto is not installed")
    each = clients // hosts
    async with AsyncExitStack() as stack:
        broker, port = await stack.enter_async_context(killed_broker(kind, folder / "broker"))
        running = [
            await stack.enter_async_context(Host.open(port, number * each, each, backoff_max_s))
            for number in range(hosts)
        ]
        await all_connected(running, clients, timeout_s=timeout_s)
        for host in running:
            await host.count()
            host.back_s.clear()
        await broker.kill()
        await broker.start()
        began_s = time.monotonic()
        back_s = [
            at_s - began_s for at_s in await all_connected(running, clients, timeout_s=timeout_s)
        ]
        cpu_s = time.clock_gettime(~broker.program.pid << 3 | CPU_CLOCK)
        config = SessionConfig(host="127.0.0.1", port=port, client_id="caller", transport="codec")
        async with Session.open(config) as caller:
            await caller.wait_connected(timeout_s)
            await caller.publish(EVERYBODY, b"are you there?", durable=False)
        received = attempts = 0
        async with asyncio.timeout(timeout_s):
            while received < clients:
                counted = [await host.count() for host in running]
                attempts += sum(one["attempts"] for one in counted)
                received = sum(one["received"] for one in counted)
    return {
        "broker": kind,
        "clients": clients,
        "backoff_max_s": backoff_max_s,
        "half_s": round(back_s[clients // 2 - 1], 2),
        "p99_s": round(back_s[-(-clients * 99 // 100) - 1], 2),
        "all_s": round(back_s[-1], 2),
        "attempts": attempts,
        "broker_cpu_s": round(cpu_s, 2),
        "received": received,
    }


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["embedded", "mosquitto"])
async def test_300_clients_are_back_after_their_broker_was_killed(kind, tmp_path):
    figures = await storm(kind, tmp_path, clients=300, hosts=2, backoff_max_s=2, timeout_s=50)
    print(json.dumps(figures))
    assert figures["received"] == 300


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["embedded", "mosquitto"])
async def test_5000_clients_are_back_after_their_broker_was_killed(kind, tmp_path):
    figures = await storm(kind, tmp_path, clients=5000, hosts=4, backoff_max_s=60, timeout_s=300)
    print(json.dumps(figures))
    assert figures["received"] == 5000
