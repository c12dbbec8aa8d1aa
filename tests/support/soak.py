"""`soak.py FOLDER SECONDS EVERY_S SPEED`: an engine whose three models load, swap and are evicted under load.

Prints JSON: what was asked and what came of it. FOLDER/samples.jsonl, not a list that would grow here, has the memory of
the engine's process and of its worker at every sample, with the releases that were in memory then. A process of its own, so that nothing but the engine grows in it. SPEED: how
much faster everything but the load happens, for a run of some seconds. FOLDER/MODEL/VERSION are releases of
`tiny_release`'s items; FOLDER/answers.json has the right labels.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from shoal_agent.inference import governor, memory
from shoal_agent.inference.engine import Engine
from shoal_agent.inference.errors import InferenceError
from shoal_agent.inference.memory import Memory
from shoal_agent.inference.settings import WorkerSettings

PATTERNS = {"busy": (0.02, 1.0), "bursts": (0.2, 0.5), "rare": (25.0, 1.0)}
"""By model: seconds between two requests, and the part of a minute in which there are any."""
MINUTE_S = 60.0
SWAP_EVERY_S = 20.0
TIGHT_SHARE = 0.7
DEADLINE_S = 20.0
LEAST_SWAPS = 2
PATIENCE = 6


@dataclass(slots=True)
class Tally:
    """What happened."""

    asked: int = 0
    failed: list[str] = field(default_factory=list)
    wrong: int = 0
    swaps: int = 0


class Soak:
    """One run."""

    def __init__(self, engine: Engine, folder: Path, speed: float) -> None:
        self.tally = Tally()
        self._engine = engine
        self._folder = folder
        self._speed = speed
        self._started = time.monotonic()
        self._answers = json.loads((folder / "answers.json").read_text())
        self._releases: dict[bytes, str] = {}

    async def run(self, seconds: float, every_s: float) -> None:
        """Load, swap and ask for so long."""
        for model in PATTERNS:
            await self._swap(model, 0)
        self._started = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            busy = [tasks.create_task(self._ask_for_ever(model)) for model in PATTERNS]
            busy.append(tasks.create_task(self._swap_for_ever()))
            while (passed_s := time.monotonic() - self._started) < seconds or (
                # On a busy machine little happens in some seconds.
                passed_s < PATIENCE * seconds and not self._has_seen_all()
            ):
                await asyncio.sleep(every_s)
                self._sample(passed_s)
            for task in busy:
                task.cancel()

    def _has_seen_all(self) -> bool:
        return self.tally.swaps >= LEAST_SWAPS and self._engine.stats.evictions > 0

    def read_memory(self) -> Memory:
        """Tight for most of a minute: who is idle then goes."""
        is_tight = self._minute() < TIGHT_SHARE
        return Memory(0 if is_tight else 1 << 40, 0.0)

    def _minute(self) -> float:
        return (time.monotonic() - self._started) * self._speed / MINUTE_S % 1.0

    async def _ask_for_ever(self, model: str) -> None:
        pause_s, share = PATTERNS[model]
        pause_s = pause_s if pause_s < 1 else pause_s / self._speed
        for number in count():
            if self._minute() <= share:
                await self._ask(model, number % 256)
            await asyncio.sleep(pause_s)

    async def _ask(self, model: str, number: int) -> None:
        self.tally.asked += 1
        item = bytes((number, 7, 255 - number, 1))
        try:
            served = await self._engine.classify(model, [item], deadline_s=DEADLINE_S)
        except InferenceError as exc:
            self.tally.failed.append(f"{model}: {exc}")
            return
        version = self._releases[served.release]
        self.tally.wrong += served.answers[0].label != self._answers[version][number]

    async def _swap_for_ever(self) -> None:
        models = list(PATTERNS)
        for number in count():
            await asyncio.sleep(SWAP_EVERY_S / self._speed)
            await self._swap(models[number % len(models)], (number // len(models) + 1) % 2)
            self.tally.swaps += 1

    async def _swap(self, model: str, version: int) -> None:
        release = f"{model} {version}".encode().ljust(32, b"\0")
        self._releases[release] = str(version)
        await self._engine.admit(release, self._folder / model / str(version))
        await self._engine.switch(model, release)

    def _sample(self, passed_s: float) -> None:
        gc.collect()
        worker = self._engine._dispatcher.worker
        pid = getattr(worker, "pid", None)
        if pid is None:
            return
        loaded = "+".join(sorted(release.rstrip(b"\0").decode() for release in worker.loaded))
        line = json.dumps([passed_s, _own_bytes("self"), _own_bytes(pid), loaded])
        with (self._folder / "samples.jsonl").open("a") as file:
            file.write(line + "\n")


def _own_bytes(pid: int | str) -> int:
    """Anonymous memory: pages of files come and go as the machine likes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


async def _main(folder: Path, seconds: float, every_s: float, speed: float) -> dict[str, object]:
    governor.LOOK_EVERY_S /= speed
    memory.IDLE_S /= speed
    run: Soak | None = None
    async with Engine.open(
        reserve_bytes=1,
        settings=WorkerSettings(optimised_dir=str(folder / "optimised")),
        read_memory=lambda: run.read_memory() if run is not None else Memory(1 << 40, 0.0),
    ) as engine:
        run = Soak(engine, folder, speed)
        await run.run(seconds, every_s)
        tally, stats = run.tally, engine.stats
        return {
            "asked": tally.asked,
            "failed": tally.failed[:20],
            "wrong": tally.wrong,
            "swaps": tally.swaps,
            "evictions": stats.evictions,
            "worker_restarts": stats.worker_restarts,
        }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_main(Path(sys.argv[1]), *map(float, sys.argv[2:])))))
