"""Commits what was recorded, batch after batch, and knows what is on the disk. Knows no MQTT.

While one batch is being written the next one gathers. A batch that cannot be written is tried again
together with what came after it, until it can: nothing that was acknowledged is lost meanwhile, and
nothing new is accepted (`Recorder.accepting`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from shoal_broker.bus_errors import StoreError
from shoal_broker.server.durable.batch import Batch
from shoal_broker.server.durable.recorder import Recorder
from shoal_broker.store import Store

FIRST_LINGER_S = 0.002
LONGEST_LINGER_S = 0.01
"""How long a batch waits for clients that are connected to acknowledge a message: then it need not be written.

That is as long as the last commit took: waiting in vain costs no more than what it may save.
"""

RETRY_S = 1.0
CLOCK_INTERVAL_S = 300.0
CLOCK_JUMP_S = 60.0
"""A wall clock that was put by more than this is written down at once: it would look like time away."""
MAX_UNCOMMITTED_BYTES = 16 << 20
"""With more than this in memory and not on the disk, publishers are not read."""

CLOSING_ATTEMPTS = 3

log = structlog.get_logger("shoal_broker")


class Committer:
    """Batches are counted: whoever is to be answered knows by its number which one to wait for."""

    def __init__(
        self,
        store: Store,
        recorder: Recorder,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self.recorder = recorder
        self._gathering = 1
        """The batch that changes go into now."""
        self.on_progress: Callable[[], None] = lambda: None
        """Called when something was written."""
        self._store = store
        self._clock = clock
        self._wall_clock = wall_clock
        self._loop = asyncio.get_running_loop()
        self._wanted = asyncio.Event()
        self._stopping = False
        self._ended = asyncio.Event()
        self._writing = False
        self._written = 0
        self.commits = 0
        self.commit_s = 0.0
        """That all of them took, waiting for the disk included."""
        self._writing_bytes = 0
        self._linger: asyncio.TimerHandle | None = None
        self._linger_s = FIRST_LINGER_S
        self._clock_kept_at_s: float
        self._wall_kept_s: float
        self._keep_clock()

    @property
    def unsafe(self) -> int:
        """The batch that what is promised now has to wait for; 0: everything is on the disk."""
        if self.recorder.pending.promises:
            return self._gathering
        return self._gathering - 1 if self._writing else 0

    @property
    def oldest_unsafe(self) -> int:
        """The first batch that was promised and is not on the disk; 0: none. One that vanished is no such."""
        if self._writing:
            return self._written + 1
        return self._gathering if self.recorder.pending.promises else 0

    @property
    def too_much(self) -> bool:
        """Whether clients should not be read now; when nothing can be written they are told so instead."""
        uncommitted_bytes = self._writing_bytes + self.recorder.pending.size_bytes
        return uncommitted_bytes > MAX_UNCOMMITTED_BYTES and self.recorder.accepting

    def changed(self) -> None:
        """Write what is recorded, soon; called once an iteration of the event loop."""
        pending = self.recorder.pending
        if self._writing or not pending.promises or self._wanted.is_set():
            return
        if not pending.may_vanish:
            self._write_now()
        elif self._linger is None:
            self._wait_for(pending.next_row)

    def sweep(self) -> None:
        """Write what nobody waits for; called once a second."""
        passed_s = self._clock() - self._clock_kept_at_s
        jumped_s = abs(self._wall_clock() - self._wall_kept_s - passed_s)
        if passed_s >= CLOCK_INTERVAL_S or jumped_s >= CLOCK_JUMP_S:
            self._keep_clock()
        if not self._writing and not self.recorder.pending.empty:
            self._write_now()

    async def run(self) -> None:
        """Write whatever is wanted, until `stop`. Cancelled, it leaves what is not written."""
        try:
            while not self._stopping:
                await self._wanted.wait()
                self._wanted.clear()
                if not self.recorder.pending.empty:
                    await self._write(self._take())
            self._keep_clock()
            await self._write(self._take())
        finally:
            self._ended.set()

    async def stop(self) -> None:
        """Return once everything is written; says in the log when that cannot be done."""
        self._stopping = True
        self._write_now()
        await self._ended.wait()

    def _wait_for(self, row: int) -> None:
        self._linger = self._loop.call_later(self._linger_s, self._waited_for, row)

    def _waited_for(self, row: int) -> None:
        """Write if a message from before `row` is still not acknowledged; else give the others their time."""
        self._linger = None
        pending = self.recorder.pending
        if self._writing or not pending.promises:
            return
        if pending.may_vanish and pending.oldest_row >= row:
            self._wait_for(pending.next_row)
        else:
            self._write_now()

    def _write_now(self) -> None:
        self._cancel_linger()
        self._wanted.set()

    def _cancel_linger(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None

    def _take(self) -> Batch:
        self._cancel_linger()
        self._writing = True
        self._writing_bytes = self.recorder.pending.size_bytes
        self._gathering += 1
        return self.recorder.pending.take()

    async def _write(self, batch: Batch) -> None:
        attempts_left = CLOSING_ATTEMPTS
        while True:
            began_s = self._loop.time()
            try:
                await self._store.write(batch.write)
            except StoreError as exc:
                self._failed(exc)
            else:
                took_s = self._loop.time() - began_s
                self.commits += 1
                self.commit_s += took_s
                self._linger_s = min(took_s, LONGEST_LINGER_S)
                self._done()
                return
            attempts_left -= self._stopping
            if not attempts_left:
                log.error("durable state is not complete", file=str(self._store.path))
                return
            await asyncio.sleep(RETRY_S)
            bytes_before = self._writing_bytes
            batch.absorb(self._take())
            self._writing_bytes += bytes_before

    def _failed(self, exc: StoreError) -> None:
        if self.recorder.accepting:
            log.error("cannot write durable state", error=str(exc), retry_s=RETRY_S)
        self.recorder.accepting = False
        self.on_progress()

    def _done(self) -> None:
        if not self.recorder.accepting:
            log.warning("durable state is written again", file=str(self._store.path))
        self.recorder.accepting = True
        self._writing = False
        self._writing_bytes = 0
        self._written = self._gathering - 1
        self.on_progress()

    def _keep_clock(self) -> None:
        now_s, wall_s = self._clock(), self._wall_clock()
        self._clock_kept_at_s, self._wall_kept_s = now_s, wall_s
        pending = self.recorder.pending
        pending.keep_clock(pending.timeline.stored(now_s) or 0, round(wall_s * 1000))
