"""What an agent survives: a broker that forgets, kill -9, a second agent, a restart on demand, a full disk."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.support.board import NODE, Board, short_folder
from tests.support.hub import Hub, Release
from tests.support.programs import output_of
from tests.support.tcp_proxy import TcpProxy

from shoal_broker.server import Broker, BrokerConfig
from shoal_contract import messages
from shoal_contract.messages import Command, CommandUpdate, Reading, State
from shoal_fleet import digits

pytestmark = [pytest.mark.system, pytest.mark.timeout(90)]

FOREVER_MS = 1 << 50


@pytest.fixture
def board():
    with short_folder() as folder:
        yield Board(folder)


@pytest.fixture(scope="module")
def v1():
    return Release(digits.release_dir(1))


@pytest.fixture(scope="module")
def v2():
    return Release(digits.release_dir(2))


def broker_on(port: int = 0):
    return Broker.open(BrokerConfig(host="127.0.0.1", port=port))


@asynccontextmanager
async def site():
    async with broker_on() as broker, Hub.open(broker.port, NODE) as hub:
        yield broker, hub


def command(op: str, **arguments) -> Command:
    now_ms = time.time_ns() // 1_000_000
    return Command(os.urandom(8), op, arguments, now_ms, FOREVER_MS)


def states(hub: Hub, sent: Command) -> list[State]:
    return [
        update.state
        for update in hub.results
        if isinstance(update, CommandUpdate) and update.id == sent.id
    ]


async def succeeded(hub: Hub, sent: Command) -> None:
    await hub.until(lambda: State.SUCCEEDED in states(hub, sent))


def online(hub: Hub) -> bool:
    return bool(hub.presence) and hub.presence[-1].online


async def heard_everything_so_far(hub: Hub) -> None:
    """Return when what the broker has taken until now has reached the hub: it comes in order."""
    marker = Reading("marker", 0, len(hub.readings), "", 0.0, b"", "hub", 0)
    topic = hub.topics.telemetry("hub", "marker")
    await hub.session.publish(topic, messages.encode(marker), durable=False)
    await hub.until(lambda: marker in hub.readings)
    hub.readings.remove(marker)


async def test_a_broker_that_comes_back_empty_learns_everything_again(board, v1):
    async with (
        broker_on() as broker,
        TcpProxy.open(broker.port) as line,
        Hub.open(broker.port, NODE) as hub,
        board.device(rate_hz=40, limit=200),
        board.bridge(),
        board.agent(line.port, device=True),
    ):
        await hub.want(v1)
        await hub.until(lambda: len(hub.readings) > 20)
        # What the broker has acknowledged and not passed on dies with it (decision 0005): the line goes
        # first, and comes back when somebody listens again.
        await line.cut()
        await heard_everything_so_far(hub)
        broker.abort()
        before = len(board.told("answered"))
        # The loop goes on without it.
        while len(board.told("answered")) < before + 20:  # noqa: ASYNC110 - only the file tells
            await asyncio.sleep(0.02)
        hub.reported.clear()
        hub.presence.clear()
        async with broker_on(broker.port):
            await hub.session.wait_connected(5)
            await line.heal()
            await hub.until(lambda: online(hub) and hub.serving() == v1.id)
            sent = command("ping")
            await hub.command(sent)
            await succeeded(hub, sent)
            await hub.until(lambda: len({r.seq for r in hub.readings}) == 200)
    assert {r.seq for r in hub.readings} == {event["seq"] for event in board.told("sample")}


async def test_no_sample_is_lost_when_the_agent_is_killed_while_they_flow(board, v1):
    async with site() as (broker, hub), board.device(rate_hz=80, limit=400), board.bridge():
        async with board.agent(broker.port, device=True) as agent:
            await hub.want(v1)
            await hub.until(lambda: len(hub.readings) > 50)
            agent.signal(signal.SIGKILL)
            await agent.ended()
        await hub.until(lambda: not hub.presence[-1].online, timeout_s=5)
        async with board.agent(broker.port, device=True) as agent:
            count = len(hub.readings)
            await hub.until(lambda: len(hub.readings) > count + 50)
            agent.signal(signal.SIGKILL)
            await agent.ended()
        async with board.agent(broker.port, device=True) as agent:
            await hub.until(lambda: len({r.seq for r in hub.readings}) == 400)
            assert await agent.end() == 0
        assert not hub.presence[-1].online
    assert {r.seq for r in hub.readings} == {event["seq"] for event in board.told("sample")}
    labels = {scan: set() for scan in range(400)}
    for reading in hub.readings:
        labels[reading.seq].add(reading.label)
    assert all(len(given) == 1 for given in labels.values()), "a repeat says the same"


async def test_a_second_agent_on_the_same_state_dir_ends_with_one_line(board):
    async with site() as (broker, _), board.agent(broker.port) as first:
        code, out, err = await output_of("shoal_agent", "--config", board.folder / "agent.toml")
        assert code == 1
        assert (out, err) == ("", f"shoal-agent: another agent runs on state_dir {board.state}\n")
        assert first.process.returncode is None


async def test_a_restart_on_demand_answers_once_and_the_new_run_reports_itself(board, v1):
    async with site() as (broker, hub), board.agent(broker.port) as agent:
        await hub.want(v1)
        await hub.until(lambda: hub.serving() == v1.id)
        boot = hub.presence[-1].boot
        sent = command("agent.restart")
        await hub.command(sent)
        await hub.until(lambda: online(hub) and hub.presence[-1].boot != boot)
        await hub.until(lambda: hub.reported[-1].boot != boot and hub.serving() == v1.id)
        # A repeat is answered from the journal; it restarts nothing.
        new_boot = hub.presence[-1].boot
        await hub.command(sent)
        await hub.until(lambda: states(hub, sent).count(State.SUCCEEDED) == 2)
        ping = command("ping")
        await hub.command(ping)
        await succeeded(hub, ping)
        assert states(hub, sent) == [
            State.ACCEPTED,
            State.RUNNING,
            State.SUCCEEDED,
            State.SUCCEEDED,
        ]
        assert {presence.boot for presence in hub.presence} == {boot, new_boot}
        assert agent.process.returncode is None, "the same process, another program image"


LIMITED = ("sh", "-c", 'mount -t tmpfs -o size=40m,mode=700 none "$1" && shift && exec "$@"', "sh")


def own_mounts() -> tuple[str, ...] | None:
    """The command that gives a program mounts of its own, or None where there is none."""
    for flags in ("-m", "-rm"):
        if os.system(f"unshare {flags} mount -t tmpfs none /mnt 2>/dev/null") == 0:  # noqa: S605 - no input
            return ("unshare", flags)
    return None


async def test_a_full_disk_is_said_and_waited_for_and_the_old_model_serves(board, v1, v2):
    unshare = own_mounts()
    if unshare is None:
        pytest.skip("neither root nor user namespaces: no small disk can be mounted here")
    board.state.mkdir()
    prefix = (*unshare, *LIMITED, str(board.state))
    async with (
        site() as (broker, hub),
        board.device(rate_hz=20, limit=100),
        board.bridge(),
        board.agent(broker.port, device=True, prefix=prefix) as agent,
    ):
        await hub.want(v1)
        await hub.until(lambda: len(hub.readings) > 10)
        # The disk as the agent sees it.
        filler = Path(f"/proc/{agent.pid}/root{board.state}/filler")
        give_back = fill(filler)
        shown = len(board.told("set"))
        await hub.want(v2)
        waiting = command("ping")
        await hub.command(waiting)
        await agent.until_said("is full")
        assert agent.process.returncode is None
        assert "Traceback" not in agent.log
        assert hub.serving() == v1.id
        give_back()
        await succeeded(hub, waiting)
        await hub.until(lambda: hub.serving() == v2.id, timeout_s=30)
        await hub.until(lambda: len({r.seq for r in hub.readings}) == 100, timeout_s=30)
        assert len(board.told("set")) > shown
        assert agent.process.returncode is None


def fill(path: Path) -> Callable[[], None]:
    """Write until nothing more fits; what is returned gives the space back."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while file.write(b"x" * size) == size:
                    pass
            except OSError:
                continue
    return path.unlink
