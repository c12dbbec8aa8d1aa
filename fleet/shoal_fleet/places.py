"""Who has a place at the broker, how far it has gone there, and who waits: since when. It sends nothing."""

from collections import Counter
from collections.abc import Mapping
from typing import Final

import structlog

from shoal_contract import blobs
from shoal_contract.messages import BlobRef
from shoal_fleet.shelf import Held, Plan
from shoal_fleet.tables import PublishedRow

log = structlog.get_logger(__name__)

NAMED: Final = 4


class Places:
    """What `shelf` decides on, and what an operator sees of it.

    Attributes:
        retained_bytes: bytes of chunks that are retained at the broker.
        states: how many needed blobs are retained, publishing, waiting, on_request, refused.
    """

    def __init__(self) -> None:
        self.retained_bytes = 0
        self.states: Counter[str] = Counter()
        # By blob and cut. What a kill forgets goes out again.
        self._gone: Counter[tuple[bytes, int]] = Counter()
        self._complete_since_s: dict[bytes, float] = {}
        self._waiting_since_s: dict[bytes, float] = {}

    @property
    def anybody_waits(self) -> bool:
        """Whether a needed blob has no place."""
        return bool(self._waiting_since_s)

    def gone(self, ref: BlobRef) -> int:
        """How many chunks of it the broker has, from the first on."""
        return self._gone[(ref.digest, ref.chunk_bytes)]

    def went(self, ref: BlobRef, count: int) -> None:
        """The broker has so many chunks of it."""
        self._gone[(ref.digest, ref.chunk_bytes)] = count

    def vacate(self, digest: bytes) -> None:
        """Its chunks were cleared."""
        self._complete_since_s.pop(digest, None)
        for key in [key for key in self._gone if key[0] == digest]:
            del self._gone[key]

    def forget(self) -> None:
        """Nobody knows what the broker has."""
        self._gone.clear()
        self._complete_since_s.clear()

    def held(
        self, there: Mapping[bytes, tuple[PublishedRow, BlobRef | None]], now_s: float
    ) -> dict[bytes, Held]:
        """The blobs that have a place: those in the table, complete or not."""
        held, self.retained_bytes = {}, 0
        for digest, (row, ref) in there.items():
            if ref is None:
                held[digest] = Held(row.chunks * blobs.LARGEST_CHUNK_BYTES)
            elif row.complete:
                since_s = self._complete_since_s.setdefault(digest, now_s)
                held[digest] = Held(ref.size_bytes, now_s - since_s)
                self.retained_bytes += ref.size_bytes
            else:
                self._complete_since_s.pop(digest, None)
                held[digest] = Held(ref.size_bytes)
                self.retained_bytes += min(self.gone(ref) * ref.chunk_bytes, ref.size_bytes)
        return held

    def waited_s(self, now_s: float) -> dict[bytes, float]:
        """For how long blobs have been without a place."""
        return {digest: now_s - since_s for digest, since_s in self._waiting_since_s.items()}

    def settle(
        self, plan: Plan, sizes: Mapping[bytes, int], refused: frozenset[bytes], now_s: float
    ) -> None:
        """This is the plan now: who begins to wait is said, and for whom."""
        before = self._waiting_since_s
        self._waiting_since_s = {digest: before.get(digest, now_s) for digest in plan.wait}
        for digest in self._waiting_since_s.keys() - before.keys():
            log.info(
                "blob waits for room",
                blob=digest.hex()[:12],
                size_bytes=sizes[digest],
                waits_for=[other.hex()[:12] for other in reversed(plan.retain)][:NAMED],
            )
        complete = self._complete_since_s.keys() & set(plan.retain)
        self.states = Counter(
            retained=len(complete),
            publishing=len(plan.retain) - len(complete),
            waiting=len(plan.wait),
            on_request=len(plan.on_request - refused),
            refused=len(plan.on_request & refused),
        )
