"""A disk that refuses at each write of an update: the old release serves on, the reason is told, and it goes on later."""

import errno

import pytest
from tests.support.crashed_agent import Fleet, agent_on, config_in
from tests.support.failing_disk import failing_disk
from tests.support.hub import Release
from tests.support.power_cuts import fast_folder

from shoal_agent import update
from shoal_fleet import digits

V1, V2 = (Release(digits.release_dir(number)) for number in (1, 2))
WORDS = {errno.ENOSPC: "No space left", errno.EROFS: "Read-only file system"}


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("error", WORDS, ids=errno.errorcode.get)
async def test_a_disk_that_refuses_from_any_write_on_stops_nothing_that_serves(error, monkeypatch):
    monkeypatch.setattr(update, "RETRY_S", 0.01)
    monkeypatch.setattr(update, "MAX_RETRY_S", 0.02)
    number, refused = 1, 1
    while refused:
        refused = await refusing_from(number, error)
        number += 1
    print(f"{number - 2} writes of an update refused in turn")
    assert number > 20


async def refusing_from(first: int, error: int) -> int:
    """How many writes were refused; 0: the update has fewer than `first`."""
    async with fast_folder() as folder:
        state = folder / "state"
        fleet = Fleet(chunk_bytes=8192)
        async with agent_on(config_in(state), fleet, (V1, V2)) as agent:
            fleet.want(V1)
            await agent.follow()
            await agent.until_followed(fleet)
            fleet.want(V2, base=V1)
            with failing_disk(state, first=first, error=error) as disk:
                await agent.follow()
                await agent.until(
                    lambda: (
                        agent.engine.serving("digits") == V2.id
                        or any(
                            WORDS[error] in state.reason
                            for report in agent.told
                            for state in report.models
                        )
                    )
                )
                refused = disk.refused
                if agent.engine.serving("digits") != V2.id:
                    assert agent.engine.serving("digits") == V1.id
                disk.is_failing = False
                await agent.until_followed(fleet)
            assert agent.engine.serving("digits") == V2.id
    return refused
