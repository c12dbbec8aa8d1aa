"""Content-addressed files of the controller: release files and deltas, durable before they are named."""

import asyncio
import hashlib
from collections.abc import Iterable
from pathlib import Path

from shoal_broker.durable import remove_parts, write_durably
from shoal_contract import blobs
from shoal_contract.messages import CHUNK_BYTES, MAX_CHUNKS, BlobRef
from shoal_fleet.database import Database
from shoal_fleet.errors import StateError
from shoal_fleet.tables import BlobRow
from shoal_fleet.upsert import insert_into


class BlobStore:
    """The directory of blobs and the table that says how each is cut.

    Attributes:
        chunk_bytes: what new blobs are cut to.

    Raises:
        StateError: the directory cannot be used.
    """

    def __init__(self, directory: Path, database: Database) -> None:
        self.chunk_bytes = CHUNK_BYTES
        self._directory = directory
        self._database = database
        self._refs: dict[bytes, BlobRef] = {}
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            remove_parts(directory)
        except OSError as exc:
            raise StateError(f"{directory}: {exc.strerror}") from exc

    def path(self, digest: bytes) -> Path:
        """Where the blob's file stands, or would stand."""
        return self._directory / digest.hex()

    async def add(self, content: bytes) -> BlobRef:
        """Store a blob; returns when it is on the disk and in the table.

        Raises:
            StateError: the disk does not take it.
        """
        ref = await asyncio.to_thread(self._store, content, self.chunk_bytes)
        async with self._database.write() as session:
            await session.execute(
                insert_into(session, BlobRow)
                .values(
                    digest=ref.digest,
                    size_bytes=ref.size_bytes,
                    chunk_bytes=ref.chunk_bytes,
                    chunk_digests=ref.chunk_digests,
                )
                .on_conflict_do_nothing()
            )
        # One that was here already keeps its cut.
        return await self.ref(ref.digest) or ref

    def can_cut(self, size_bytes: int) -> bool:
        """Whether a blob of this size has few enough chunks."""
        return size_bytes <= MAX_CHUNKS * self.chunk_bytes

    async def ref(self, digest: bytes) -> BlobRef | None:
        """How a blob is named and cut; None when it is not here."""
        if digest in self._refs:
            return self._refs[digest]
        async with self._database.read() as session:
            row = await session.get(BlobRow, digest)
        if row is None:
            return None
        ref = BlobRef(row.digest, row.size_bytes, row.chunk_bytes, row.chunk_digests)
        self._refs[digest] = ref
        return ref

    async def chunk(self, ref: BlobRef, index: int) -> bytes:
        """One chunk of a blob.

        Raises:
            StateError: the file is gone or was changed.
        """
        return await asyncio.to_thread(self._read_chunk, ref, index)

    async def cut_anew(self, digest: bytes, chunk_bytes: int) -> BlobRef:
        """How the blob would be cut into smaller chunks; nothing is changed yet.

        Raises:
            StateError: the file is gone or was changed.
        """
        return await asyncio.to_thread(self._cut_anew, digest, chunk_bytes)

    def replace(self, refs: Iterable[BlobRef]) -> None:
        """The table has these cuts now."""
        self._refs.update((ref.digest, ref) for ref in refs)

    def _cut_anew(self, digest: bytes, chunk_bytes: int) -> BlobRef:
        path = self.path(digest)
        whole, listed, size_bytes = hashlib.sha256(), bytearray(), 0
        try:
            with path.open("rb") as file:
                while chunk := file.read(chunk_bytes):
                    whole.update(chunk)
                    listed += blobs.chunk_digest(chunk)
                    size_bytes += len(chunk)
        except OSError as exc:
            raise StateError(f"{path}: {exc.strerror}") from exc
        if whole.digest() != digest:
            raise StateError(f"{path}: its content is no longer what its name says")
        return BlobRef(digest, size_bytes, chunk_bytes, bytes(listed))

    def _read_chunk(self, ref: BlobRef, index: int) -> bytes:
        path = self.path(ref.digest)
        try:
            with path.open("rb") as file:
                file.seek(index * ref.chunk_bytes)
                chunk = file.read(ref.chunk_bytes)
        except OSError as exc:
            raise StateError(f"{path}: {exc.strerror}") from exc
        if not blobs.chunk_is_good(ref, index, chunk):
            raise StateError(f"{path}: its content is no longer what its name says")
        return chunk

    def _store(self, content: bytes, chunk_bytes: int) -> BlobRef:
        ref = blobs.describe(content, chunk_bytes=chunk_bytes)
        path = self.path(ref.digest)
        try:
            if path.is_file() and hashlib.sha256(path.read_bytes()).digest() == ref.digest:
                return ref
            write_durably(path, content)
        except OSError as exc:
            raise StateError(f"{path}: {exc.strerror}") from exc
        return ref
