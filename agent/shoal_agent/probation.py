"""Watches a release after the switch, and remembers over restarts what was being tried when the agent ended.

A release on probation must not fail its requests, not break, not be much slower than the one before, and the agent must
not keep ending with it. It says what is to go back; going back is `update`. Time comes in as an argument.
"""

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import structlog

from shoal_agent.errors import UnusableReleaseError
from shoal_agent.inference.latency_gate import is_too_slow
from shoal_agent.inference.served import ModelFacts
from shoal_broker.store import Store
from shoal_contract.release import GateTable

log = structlog.get_logger()

COMPONENT: Final = "probation"
VERSION: Final = 1
DDL: Final = """
CREATE TABLE probation (
    model TEXT PRIMARY KEY,
    release BLOB NOT NULL,
    starts INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE attempts (
    release BLOB PRIMARY KEY,
    count INTEGER NOT NULL
) WITHOUT ROWID;
"""

MAX_ATTEMPTS: Final = 5
"""A release with which the agent ended so often, in its trial or on probation, is refused."""
_LEAST_FAILURES: Final = 3
_SLOW_LOOKS: Final = 3


@dataclass(slots=True)
class _Watched:
    release: bytes
    gate: GateTable
    until_s: float
    before_row_us: int = 0
    slow_looks: int = 0


@dataclass(frozen=True, slots=True)
class GoBack:
    """This release of the model is to give way to the one before, for this reason."""

    model: str
    release: bytes
    reason: str


class Probation:
    """What is on probation here. Build it with `await Probation.load(store)`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._watched: dict[str, _Watched] = {}

    @classmethod
    async def load(cls, store: Store) -> "Probation":
        """Make the tables if they are not there.

        Raises:
            StoreError: the file cannot be used, or a newer version wrote it.
        """
        await store.create(COMPONENT, version=VERSION, ddl=DDL)
        return cls(store)

    # ------------------------------------------------------------------ the trial
    async def attempt(self, release: bytes) -> None:
        """Its trial is about to begin. Call `attempt_over` whatever comes of it.

        Raises:
            UnusableReleaseError: the agent ended in each of the trials before.
            StoreError: it cannot be kept.
        """

        def run(db: sqlite3.Connection) -> int:
            db.execute(
                "INSERT INTO attempts VALUES (?, 1)"
                " ON CONFLICT (release) DO UPDATE SET count = count + 1",
                (release,),
            )
            row = db.execute("SELECT count FROM attempts WHERE release = ?", (release,)).fetchone()
            return int(row[0])

        if await self._store.write(run) > MAX_ATTEMPTS:
            await self.attempt_over(release)
            raise UnusableReleaseError(f"the agent ended in {MAX_ATTEMPTS} trials of it")

    async def attempt_over(self, release: bytes) -> None:
        """The trial ended, and the agent did not."""
        await self._store.write(
            lambda db: db.execute("DELETE FROM attempts WHERE release = ?", (release,))
        )

    # ------------------------------------------------------------------ after the switch
    async def begin(
        self,
        model: str,
        release: bytes,
        gate: GateTable,
        before: ModelFacts | None,
        *,
        now_s: float,
    ) -> None:
        """`release` is about to serve in place of another, which stood as `before`.

        Raises:
            StoreError: it cannot be kept.
        """
        self._watched.pop(model, None)
        if gate.probation_s <= 0:
            await self._forget(model)
            return
        await self._store.write(
            lambda db: db.execute(
                "INSERT OR REPLACE INTO probation VALUES (?, ?, 0)", (model, release)
            )
        )
        before_us = 0 if before is None else before.row_us
        self._watched[model] = _Watched(release, gate, now_s + gate.probation_s, before_us)

    async def started(self, serving: Mapping[str, bytes]) -> list[GoBack]:
        """The agent has started and `serving` is what serves: those with which it has ended too often.

        Raises:
            StoreError: it cannot be kept.
        """

        def run(db: sqlite3.Connection) -> list[tuple[str, bytes, int]]:
            for model, release in db.execute("SELECT model, release FROM probation").fetchall():
                if serving.get(model) != release:
                    db.execute("DELETE FROM probation WHERE model = ?", (model,))
            db.execute("UPDATE probation SET starts = starts + 1")
            return db.execute("SELECT * FROM probation").fetchall()

        return [
            GoBack(model, release, f"the agent ended {starts - 1} times while it was on probation")
            for model, release, starts in await self._store.write(run)
            if starts > MAX_ATTEMPTS
        ]

    async def ended_on_purpose(self) -> None:
        """The agent stops because it was told to: this start does not count.

        Raises:
            StoreError: it cannot be kept.
        """
        await self._store.write(
            lambda db: db.execute("UPDATE probation SET starts = max(0, starts - 1)")
        )

    async def goes_on(self, model: str, release: bytes, gate: GateTable, *, now_s: float) -> None:
        """It serves again after a start: where it was on probation, that begins anew."""
        rows = await self._store.read(
            lambda db: db.execute(
                "SELECT 1 FROM probation WHERE model = ? AND release = ?", (model, release)
            ).fetchall()
        )
        if rows:
            self._watched[model] = _Watched(release, gate, now_s + gate.probation_s)

    async def look(self, facts: Mapping[str, ModelFacts], *, now_s: float) -> list[GoBack]:
        """Those that are to go back. What has done well for long enough is watched no more.

        Args:
            facts: of what serves, by model.
            now_s: of the clock of `begin`.

        Raises:
            StoreError: it cannot be kept.
        """
        bad = []
        for model, watched in list(self._watched.items()):
            found = facts.get(model)
            reason = None if found is None else _fault(watched, found)
            if reason is not None:
                bad.append(GoBack(model, watched.release, reason))
            elif now_s >= watched.until_s:
                await self._forget(model)
                log.info("probation passed", model=model, release=watched.release.hex()[:12])
        return bad

    async def end(self, model: str) -> None:
        """It serves no more.

        Raises:
            StoreError: that cannot be kept.
        """
        await self._forget(model)

    async def _forget(self, model: str) -> None:
        await self._store.write(
            lambda db: db.execute("DELETE FROM probation WHERE model = ?", (model,))
        )
        self._watched.pop(model, None)


def _fault(watched: _Watched, facts: ModelFacts) -> str | None:
    """What is wrong with it; None: nothing."""
    if facts.broken is not None:
        return f"on probation: it does not run any more: {facts.broken}"
    total = facts.answered + facts.failed
    if facts.failed >= _LEAST_FAILURES and facts.failed > watched.gate.error_share * total:
        return f"on probation: {facts.failed} of {total} requests failed"
    factor = watched.gate.latency_factor
    is_slow = watched.before_row_us > 0 and is_too_slow(facts.row_us, watched.before_row_us, factor)
    watched.slow_looks = watched.slow_looks + 1 if is_slow and facts.answered else 0
    if watched.slow_looks >= _SLOW_LOOKS:
        return (
            f"on probation: a row takes {facts.row_us} us, with the release before"
            f" {watched.before_row_us} us; its release allows {factor:g} times"
        )
    return None
