"""Old file + delta -> new file. It needs numpy, zstandard and the standard library.

`apply_file` streams: it holds a few segments (about 1 MiB each), reads the old file in place, never
writes it, and puts the new one in place only when its sha256 is right.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import zlib
from collections.abc import Callable
from pathlib import Path

from shoal_delta.coders import Reader
from shoal_delta.container import DEFAULT_MAX_OUTPUT_BYTES, Header, Segment
from shoal_delta.decoding import check_work, decode_body, read_header, reader_of
from shoal_delta.durable import fsync_directory
from shoal_delta.errors import CorruptDeltaError, LimitError, StorageError, WrongBaseError

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""

_CHUNK_BYTES = 1 << 20


def apply(old: bytes, delta: bytes, *, max_output_bytes: int = DEFAULT_MAX_OUTPUT_BYTES) -> bytes:
    """The new file, in memory. Raises a `DeltaError`."""
    header = read_header(reader_of(delta), len(delta), max_output_bytes)
    if len(old) != header.old_size or not _is_base(header, hashlib.sha256(old).digest()):
        raise WrongBaseError("the old file is not the one this delta was made from")
    check_work(header, reader_of(delta), reader_of(old))
    out = bytearray()
    for entry, chunks in decode_body(header, reader_of(delta), reader_of(old)):
        crc32 = 0
        for chunk in chunks:
            crc32 = zlib.crc32(chunk, crc32)
            out += chunk
        _check_crc32(entry, crc32)
    _check_sha256(header, hashlib.sha256(out).digest())
    return bytes(out)


def apply_file(
    old_path: str | os.PathLike[str],
    delta_path: str | os.PathLike[str],
    new_path: str | os.PathLike[str],
    *,
    max_output_bytes: int = DEFAULT_MAX_OUTPUT_BYTES,
    progress: Progress | None = None,
) -> None:
    """Make `new_path` from `old_path` and the delta at `delta_path`.

    Writes NEW.part beside it, segment by segment, and goes on after its last good segment when one
    is there; then fsync, rename, fsync of the directory. Durable when it returns.

    Raises:
        WrongBaseError: the old file is not the delta's base; nothing was written.
        CorruptDeltaError: the delta is damaged; no NEW, no NEW.part.
        LimitError: it would make more than `max_output_bytes`, or more than is plausible, or take
            too long.
        StorageError: a file cannot be read or written, the disk is full, or another apply is at
            work on the same NEW; NEW.part stays for the next attempt.
    """
    new = Path(new_path)
    if not new.name or new.is_dir():
        raise StorageError(f"{new} is a directory: name a file")
    part = new.with_name(new.name + ".part")
    try:
        with contextlib.ExitStack() as stack:
            delta, delta_size = _open(stack, delta_path)
            old, old_size = _open(stack, old_path)
            header = read_header(delta, delta_size, max_output_bytes)
            if old_size != header.old_size or not _is_base(header, _sha256(old, old_size)):
                raise WrongBaseError(f"{os.fspath(old_path)} is not what this delta was made from")
            if new.exists() and (new.samefile(old_path) or new.samefile(delta_path)):
                raise StorageError(f"{new} is the old file or the delta: choose another name")
            check_work(header, delta, old)
            target = _open_part(stack, part, header.new_size)
            try:
                _fill(target, header, delta, old, progress)
            except (CorruptDeltaError, LimitError):
                part.unlink()
                raise
            os.fsync(target)
            part.replace(new)
            fsync_directory(new.parent)
    except OSError as exc:
        raise StorageError(f"{exc.filename or part}: {exc.strerror or exc}") from exc


def _open(stack: contextlib.ExitStack, path: str | os.PathLike[str]) -> tuple[Reader, int]:
    # Not blocking: a named pipe must be refused, not waited for.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    stack.callback(os.close, descriptor)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise StorageError(f"{os.fspath(path)} is not a file")

    def read(offset: int, size: int) -> bytes:
        pieces = []
        while size > 0:
            piece = os.pread(descriptor, size, offset)
            if not piece:
                raise CorruptDeltaError(f"{os.fspath(path)} ends before the delta expects")
            pieces.append(piece)
            offset += len(piece)
            size -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    return read, status.st_size


def _open_part(stack: contextlib.ExitStack, part: Path, new_size: int) -> int:
    """NEW.part, open and locked, with room for the whole file on its disk."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(part, flags, 0o644)
    stack.callback(os.close, descriptor)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        raise StorageError(f"{part} is not a file of our own: remove it")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        raise StorageError(f"{part}: another apply is at work on it") from exc
    # One that ended between our open and our lock has renamed the file under us.
    if not part.exists() or not os.path.samestat(part.stat(), status):
        raise StorageError(f"{part}: another apply has just finished with it")
    disk = os.fstatvfs(descriptor)
    if disk.f_bavail * disk.f_frsize + 512 * status.st_blocks < new_size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(part))
    return descriptor


def _fill(
    target: int, header: Header, delta: Reader, old: Reader, progress: Progress | None
) -> None:
    skip, digest, position = _good_segments(target, header)
    for entry, chunks in decode_body(header, delta, old, skip=skip):
        crc32 = 0
        for chunk in chunks:
            crc32 = zlib.crc32(chunk, crc32)
            digest.update(chunk)
            _pwrite(target, chunk, position)
            position += len(chunk)
            if progress is not None:
                progress(position, header.new_size)
            # The name would keep it while the next segment is made.
            del chunk
        _check_crc32(entry, crc32)
    if not _is_wanted(header, digest.digest()) and skip:
        # What was there had the right checksums and the wrong bytes: trust nothing of it.
        os.ftruncate(target, 0)
        _fill(target, header, delta, old, progress)
        return
    _check_sha256(header, digest.digest())
    os.ftruncate(target, header.new_size)


def _good_segments(target: int, header: Header) -> tuple[int, hashlib._Hash, int]:
    """How many segments are there already, the sha256 so far, and their size in bytes."""
    digest, position = hashlib.sha256(), 0
    available = os.fstat(target).st_size
    for index, entry in enumerate(header.segments):
        if position + entry.size > available:
            return index, digest, position
        attempt, crc32, end = digest.copy(), 0, position + entry.size
        for offset in range(position, end, _CHUNK_BYTES):
            chunk = os.pread(target, min(_CHUNK_BYTES, end - offset), offset)
            attempt.update(chunk)
            crc32 = zlib.crc32(chunk, crc32)
        if crc32 != entry.crc32:
            return index, digest, position
        digest, position = attempt, end
    return len(header.segments), digest, position


def _pwrite(target: int, data: bytes, position: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(target, view, position)
        view = view[written:]
        position += written


def _sha256(read: Reader, size: int) -> bytes:
    digest = hashlib.sha256()
    for offset in range(0, size, _CHUNK_BYTES):
        digest.update(read(offset, min(_CHUNK_BYTES, size - offset)))
    return digest.digest()


def _is_base(header: Header, sha256: bytes) -> bool:
    return sha256.startswith(header.old_digest)


def _is_wanted(header: Header, sha256: bytes) -> bool:
    return sha256.startswith(header.new_digest)


def _check_crc32(entry: Segment, crc32: int) -> None:
    if entry.crc32 not in {None, crc32}:
        raise CorruptDeltaError("a segment does not give what the delta promises: checksum differs")


def _check_sha256(header: Header, sha256: bytes) -> None:
    if not _is_wanted(header, sha256):
        raise CorruptDeltaError("the new file's sha256 is not the one the delta promises")
