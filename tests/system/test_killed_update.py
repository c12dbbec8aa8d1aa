"""kill -9 of an agent at every journal write of an update: it serves v1 or v2, never nothing, and ends on v2."""

import asyncio
import shutil
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.support.hub import Hub, Release

from shoal_broker.server import Broker, BrokerConfig
from shoal_fleet import digits

KILLED_AGENT = Path(__file__).parents[1] / "support" / "killed_agent.py"
NODE = "board-1"


def write_config(folder: Path, port: int) -> Path:
    path = folder / "agent.toml"
    path.write_text(
        f'node = "{NODE}"\nstate_dir = "{folder}/state"\n'
        f'[broker]\nhost = "127.0.0.1"\nport = {port}\n[peers]\nenabled = false\n'
    )
    return path


@asynccontextmanager
async def agent(config: Path, *, kill_at: int = 0, when: str = "before"):
    """An agent process; ended politely unless it was killed."""
    log = config.with_suffix(".log").open("ab")
    process = await asyncio.create_subprocess_exec(
        sys.executable, KILLED_AGENT, str(kill_at), when, "--", "--config", config,
        stdout=log, stderr=log,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(10):
            await process.wait()
        log.close()


@pytest.mark.system
@pytest.mark.timeout(240)
async def test_killed_at_every_journal_write_of_an_update_it_ends_on_the_new_release(tmp_path):
    v1, v2 = Release(digits.release_dir(1)), Release(digits.release_dir(2))
    async with Broker.open(BrokerConfig(host="127.0.0.1", port=0)) as broker:
        config = write_config(tmp_path, broker.port)
        state, with_v1 = tmp_path / "state", tmp_path / "state-v1"
        async with Hub.open(broker.port, NODE) as hub:
            await hub.want(v1)
            async with agent(config):
                await hub.until(lambda: hub.serving() == v1.id)
            shutil.copytree(state, with_v1)
            await hub.want(v2, base=v1)

            points = 0
            for number in range(1, 40):
                killed = [
                    await killed_and_restarted(hub, config, number, when, v1, v2)
                    for when in ("before", "after")
                    if restore(with_v1, state)
                ]
                points += sum(killed)
                if not any(killed):
                    break
            print(f"killed at {points} points of the update")
            assert points >= 2 * 8, "manifest, toml, delta, build, golden, assemble, admit, switch"


def restore(source: Path, target: Path) -> bool:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return True


async def killed_and_restarted(
    hub: Hub, config: Path, number: int, when: str, v1: Release, v2: Release
) -> bool:
    """Kill at this point and start again; False when the update was over before the point came."""
    hub.reported.clear()
    async with agent(config, kill_at=number, when=when) as process:
        ended = asyncio.create_task(process.wait())
        updated = asyncio.create_task(hub.until(lambda: hub.serving() == v2.id))
        await asyncio.wait({ended, updated}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(0)
        was_killed = ended.done() and process.returncode == -signal.SIGKILL
        updated.cancel()
        await asyncio.gather(updated, return_exceptions=True)
        if not was_killed:
            process.terminate()
            assert await ended == 0
            return False
    hub.reported.clear()
    async with agent(config):
        await hub.until(lambda: bool(hub.reported))
        first = hub.serving()
        assert first in {v1.id, v2.id}, (
            f"write {number} {when}: it serves nothing after the restart"
        )
        await hub.until(lambda: hub.serving() == v2.id)
    return True
