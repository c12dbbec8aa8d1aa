"""Histories of a board, recorded, cut off everywhere, and started again. What must hold then is `Cut.check`."""

import hashlib
import os
import random
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.crash_states import CrashState, crash_states
from tests.support.crashed_agent import Fleet, RunningAgent, agent_on, config_in
from tests.support.hub import Release
from tests.support.recorded_disk import recording

from shoal_broker.store import Store
from shoal_contract.messages import Reported

Want = Callable[[Fleet], None]


@dataclass(frozen=True, slots=True)
class History:
    """What a board goes through.

    Args:
        name: of the history.
        before: what it has followed before the recording begins.
        wants: what it follows while it is recorded, one after the other.
        order: releases as they are to serve, oldest first; b"": none. Once told, nothing older serves again.
    """

    name: str
    before: Sequence[Want]
    wants: Sequence[Want]
    order: Sequence[bytes]


@dataclass(slots=True)
class Findings:
    """What was wrong, in words; `states`: how many were started."""

    states: int = 0
    unusable: list[str] = None
    lost: list[str] = None
    condemned: list[str] = None

    def __post_init__(self) -> None:
        self.unusable, self.lost, self.condemned = [], [], []

    @property
    def bad(self) -> list[str]:
        return [*self.unusable, *self.lost, *self.condemned]

    def __str__(self) -> str:
        return (
            f"{self.states} states: {len(self.unusable)} unusable,"
            f" {len(self.lost)} told and lost or older than told, {len(self.condemned)} condemned"
        )


@asynccontextmanager
async def fast_folder() -> AsyncIterator[Path]:
    """In memory where there is such a place: nothing here needs a real fsync."""
    memory = "/dev/shm"  # noqa: S108 - a place in memory; the folder's name is made there
    folder = Path(
        tempfile.mkdtemp(dir=memory if os.path.isdir(memory) else None, prefix="cut-")  # noqa: PTH112, ASYNC240
    )
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


async def recorded(
    history: History, known: Sequence[Release], folder: Path
) -> tuple[list[CrashState], Fleet]:
    """The states in which a power cut may leave the board, and what the fleet wants at the end."""
    fleet = Fleet(chunk_bytes=8192)
    state = folder / history.name
    state.mkdir()
    config = config_in(state)
    if history.before:
        async with agent_on(config, fleet, known) as agent:
            await _follow(agent, fleet, history.before)
    with recording(state) as disk:
        async with agent_on(config, fleet, known, disk.tell) as agent:
            await _follow(agent, fleet, history.wants)
            # An end on purpose is no power cut.
            steps = list(disk.steps)
    disk.steps = steps
    return crash_states(disk), fleet


async def _follow(agent: RunningAgent, fleet: Fleet, wants: Sequence[Want]) -> None:
    for want in wants:
        want(fleet)
        await agent.follow()
        await agent.until_followed(fleet)


async def start_each(
    history: History,
    states: Sequence[CrashState],
    fleet: Fleet,
    known: Sequence[Release],
    folder: Path,
) -> Findings:
    """Start the agent on each of them, and let it follow the fleet again."""
    findings = Findings()
    for state in states:
        here = folder / f"cut-{findings.states}"
        state.write_to(here)
        findings.states += 1
        where = f"{history.name}, step {state.after_step}"
        try:
            await _start(history, state, here, fleet, known, findings, where)
        except Exception as exc:  # noqa: BLE001 - each is a finding, and the next state is another matter
            findings.unusable.append(f"{where}: {exc!r}")
        shutil.rmtree(here, ignore_errors=True)
        here.with_suffix(".toml").unlink()
    return findings


async def _start(
    history: History,
    state: CrashState,
    here: Path,
    fleet: Fleet,
    known: Sequence[Release],
    findings: Findings,
    where: str,
) -> None:
    model = known[0].spec.name
    async with agent_on(config_in(here), fleet, known) as agent:
        served = agent.engine.serving(model) or b""
        if not is_as_told(history.order, state.told, model, served):
            findings.lost.append(f"{where}: {served.hex()[:12] or 'nothing'} serves")
        await agent.follow()
        await agent.until_followed(fleet)
    if wrong := [
        path.name
        for path in (here / "blobs").iterdir()
        if hashlib.sha256(path.read_bytes()).hexdigest() != path.name
    ]:
        findings.unusable.append(f"{where}: wrong blobs {wrong}")
    async with Store.open(here / "agent.db") as store:
        refused = await store.read(lambda db: db.execute("SELECT reason FROM refused").fetchall())
    if refused:
        findings.condemned.append(f"{where}: {refused}")


def is_as_told(order: Sequence[bytes], told: Sequence[object], model: str, served: bytes) -> bool:
    """Whether nothing older serves than what the fleet had been told."""
    reported = [one for one in told if isinstance(one, Reported)]
    if not reported:
        return True
    releases = {one.model: one.release for one in reported[-1].models}
    at_least = max(at for at, one in enumerate(order) if one == releases.get(model, b""))
    if releases.get(model, b"") == b"" and not any(r.models for r in reported):
        at_least = 0
    return served in order[at_least:]


def sample(states: Sequence[CrashState], count: int, *, seed: int) -> list[CrashState]:
    """So many of them, the same ones for the same seed."""
    if len(states) <= count:
        return list(states)
    return random.Random(seed).sample(list(states), count)  # noqa: S311 - the same for the same seed
