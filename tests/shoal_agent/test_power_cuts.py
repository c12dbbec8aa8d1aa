"""Power cuts at every write of an update, in every state they may leave: the agent starts, and keeps its word."""

import shutil
import time

import pytest
from tests.support.board import Board, short_folder
from tests.support.hub import Hub, Release
from tests.support.power_cuts import (
    Findings,
    History,
    fast_folder,
    is_as_told,
    recorded,
    sample,
    start_each,
)

from shoal_broker.server import Broker, BrokerConfig
from shoal_contract import messages
from shoal_contract.messages import Pipelines, PipelineWanted
from shoal_fleet import digits

V1, V2 = (Release(digits.release_dir(number)) for number in (1, 2))
KNOWN = (V1, V2)


def pipelines(version: int) -> bytes:
    """A document that wants one pipeline, of a topic of its own."""
    topic = {
        "filter": f"meters/{version}",
        "values": ["$.v"],
        "units": ["grey level 0..16"],
        "encoding": "u5",
    }
    table = {"stream": "read", "model": "digits", "topic": topic, "publish": {"topic": "out"}}
    return messages.encode(Pipelines(version, 1, [PipelineWanted("read", table)]))


HISTORIES = (
    History("install", [], [lambda fleet: fleet.want(V1)], [b"", V1.id]),
    History(
        "delta",
        [lambda fleet: fleet.want(V1)],
        [lambda fleet: fleet.want(V2, base=V1)],
        [V1.id, V2.id],
    ),
    History(
        "whole", [lambda fleet: fleet.want(V1)], [lambda fleet: fleet.want(V2)], [V1.id, V2.id]
    ),
    History(
        "back",
        [lambda fleet: fleet.want(V1), lambda fleet: fleet.want(V2)],
        [lambda fleet: fleet.want(V1)],
        [V2.id, V1.id],
    ),
    History(
        "removed-and-wanted-again",
        [lambda fleet: fleet.want(V1), lambda fleet: fleet.want(V2)],
        [lambda fleet: fleet.want(None), lambda fleet: fleet.want(V1)],
        [V2.id, b"", V1.id],
    ),
    History(
        "configuration",
        [lambda fleet: fleet.want(V1, pipelines=pipelines(1))],
        [lambda fleet: fleet.want(V1, pipelines=pipelines(2))],
        [V1.id],
    ),
)


async def cut_everywhere(history: History, count: int | None = None) -> tuple[int, Findings]:
    async with fast_folder() as folder:
        states, fleet = await recorded(history, KNOWN, folder)
        chosen = states if count is None else sample(states, count, seed=8)
        findings = await start_each(history, chosen, fleet, KNOWN, folder)
    return len(states), findings


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_after_a_power_cut_anywhere_the_agent_starts_and_serves_what_it_has_told():
    total, started, bad = 0, 0, []
    for history in HISTORIES:
        count, findings = await cut_everywhere(history, 25)
        total, started = total + count, started + findings.states
        bad += findings.bad
    print(f"{started} of {total} crash states started, {len(bad)} of them bad")
    assert bad == []
    assert total >= 1000


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("history", HISTORIES, ids=lambda history: history.name)
async def test_in_every_crash_state_of_a_history_the_agent_starts_and_serves_what_it_has_told(
    history,
):
    began_s = time.monotonic()
    _, findings = await cut_everywhere(history)
    print(f"{history.name}: {findings} ({time.monotonic() - began_s:.0f} s)")
    assert findings.bad == []


@pytest.mark.long
@pytest.mark.system
@pytest.mark.timeout(600)
async def test_a_sample_of_crash_states_is_started_as_real_processes_with_real_models():
    history = next(one for one in HISTORIES if one.name == "delta")
    async with fast_folder() as folder:
        states, _ = await recorded(history, KNOWN, folder)
    chosen = sample(states, 20, seed=9)
    with short_folder() as folder:
        board = Board(folder)
        async with (
            Broker.open(BrokerConfig(host="127.0.0.1", port=0)) as broker,
            Hub.open(broker.port, board.node) as hub,
        ):
            await hub.want(V2, base=V1)
            for state in chosen:
                shutil.rmtree(board.state, ignore_errors=True)
                state.write_to(board.state)
                hub.reported.clear()
                async with board.agent(broker.port):
                    await hub.until(lambda: bool(hub.reported))
                    served = hub.serving() or b""
                    assert is_as_told(history.order, state.told, "digits", served)
                    await hub.until(lambda: hub.serving() == V2.id)
    print(f"{len(chosen)} of {len(states)} crash states started as processes: 0 bad")


def test_what_was_told_last_is_the_least_that_may_serve():
    def told(release: bytes) -> messages.Reported:
        return messages.Reported(
            version="1", boot=b"1234", at_ms=1, hardware=messages.Hardware("b", "o", "m", 1),
            models=[messages.ModelState("digits", release, "1", release, messages.Phase.SERVING)],
            devices=[], wanted_revision=1,
        )  # fmt: skip

    order = [b"", V1.id, V2.id]
    assert is_as_told(order, [], "digits", b"")
    assert is_as_told(order, [told(V1.id)], "digits", V2.id)
    assert not is_as_told(order, [told(V1.id)], "digits", b"")
    assert not is_as_told(order, [told(V1.id), told(V2.id)], "digits", V1.id)
