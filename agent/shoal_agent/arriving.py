"""The part file of one blob and which of its chunks it holds. No network: whoever fetches feeds it.

The part file outlives a kill, and a cut into other chunks: what it holds is verified by the reference.
"""

import asyncio
import os
from pathlib import Path

import structlog

from shoal_contract import blobs
from shoal_contract.messages import BlobRef

log = structlog.get_logger()


class Arriving:
    """Collects the chunks of `ref` in the file `path`.

    Attributes:
        missing: the chunks that it does not hold.
        damaged: chunks that came and were not what the reference says.
        progressed: set whenever a chunk was taken, or could not be.
        failure: why the disk took no chunk.
    """

    def __init__(self, ref: BlobRef, path: Path) -> None:
        self.ref = ref
        self.path = path
        self.missing = set(range(blobs.chunk_count(ref)))
        self.damaged = 0
        self.failure: OSError | None = None
        self.progressed = asyncio.Event()
        self._of_another_cut = 0
        self._arrivals: dict[int, asyncio.Event] = {}
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self._recover()

    @property
    def received_bytes(self) -> int:
        """How much of the blob is here."""
        held = blobs.chunk_count(self.ref) - len(self.missing)
        return min(held * self.ref.chunk_bytes, self.ref.size_bytes)

    def take(self, index: int, chunk: bytes) -> None:
        """A chunk came: kept when it is missing and right."""
        if index not in self.missing:
            return
        if len(chunk) != blobs.chunk_bytes_of(self.ref, index):
            # The blob was cut anew, and the wanted state that says so is on its way.
            if not self._of_another_cut:
                log.info("chunks of another cut come", blob=self.ref.digest.hex()[:12])
            self._of_another_cut += 1
            return
        if not blobs.chunk_is_good(self.ref, index, chunk):
            self.damaged += 1
            log.warning("a damaged chunk came", blob=self.ref.digest.hex()[:12], index=index)
            return
        try:
            os.pwrite(self._descriptor, chunk, index * self.ref.chunk_bytes)
        except OSError as exc:
            self.failure = exc
            self.progressed.set()
            return
        self.missing.discard(index)
        self.progressed.set()
        if (arrival := self._arrivals.pop(index, None)) is not None:
            arrival.set()

    async def arrival(self, index: int) -> None:
        """Return when this chunk is here."""
        if index in self.missing:
            await self._arrivals.setdefault(index, asyncio.Event()).wait()

    def finish(self) -> None:
        """Nothing is missing: have the file on the disk as it is to be."""
        os.truncate(self._descriptor, self.ref.size_bytes)
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Leave the file as it is."""
        os.close(self._descriptor)

    def _recover(self) -> None:
        """After a restart or a new cut: what the file holds is checked like what arrives."""
        for index in sorted(self.missing):
            length = blobs.chunk_bytes_of(self.ref, index)
            chunk = os.pread(self._descriptor, length, index * self.ref.chunk_bytes)
            if not chunk:
                break
            if blobs.chunk_is_good(self.ref, index, chunk):
                self.missing.discard(index)
