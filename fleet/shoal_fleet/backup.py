"""A controller in one file, taken while it runs: databases, blobs, keys, the authority. A tar, mode 0600.

The databases come first: whatever they name is on the disk when they name it. They are SQLite, also
where the controller's is a PostgreSQL. The last member lists the sha256 of all others.
"""

import asyncio
import hashlib
import io
import json
import os
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Final

from shoal_broker.durable import sync_directory
from shoal_fleet.access import URL_FILE
from shoal_fleet.clock import now_ms
from shoal_fleet.database_address import DatabaseAddress
from shoal_fleet.errors import StateError
from shoal_fleet.tables import FleetBase, ReadingsBase
from shoal_fleet.transfer import copy_rows

FORMAT: Final = 1
LIST_MEMBER: Final = "backup.json"
DATABASES: Final = {"fleet.db": FleetBase, "readings.db": ReadingsBase}
OUTBOX: Final = "outbox.db"
BLOBS: Final = "blobs"
CA: Final = "ca"

_LEFT_OUT: Final = {"scratch", "quantize-env", URL_FILE, LIST_MEMBER}
"""What is made anew. Environments to build releases in are large and no part of the controller."""


async def write_backup(
    file: IO[bytes],
    state_dir: Path,
    *,
    database: DatabaseAddress | None = None,
    blobs_dir: Path | None = None,
    ca_dir: Path | None = None,
) -> dict[str, Any]:
    """Write all of a controller to `file`; returns what the last member says.

    Args:
        file: anything that can be written, a pipe too.
        state_dir: the controller's.
        database: a PostgreSQL; None: the files in the state directory.
        blobs_dir: where blobs are, if not there.
        ca_dir: where the authority is, if not there.

    Raises:
        StateError: something cannot be read, or the file not written.
    """
    digests: dict[str, str] = {}
    try:
        with tempfile.TemporaryDirectory(prefix=".backup-", dir=state_dir) as folder:
            copies = await _copied(Path(folder), state_dir, database)
            with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as tar:
                for name, path in copies.items():
                    digests[name] = await asyncio.to_thread(_add, tar, name, path)
                for name, path in _files(state_dir, blobs_dir, ca_dir):
                    if name not in copies and not name.startswith(f"{Path(folder).name}/"):
                        digests[name] = await asyncio.to_thread(_add, tar, name, path)
                said = {
                    "format": FORMAT,
                    "shoal": version("shoal"),
                    "made_ms": now_ms(),
                    "files": digests,
                }
                content = json.dumps(said, indent=1).encode()
                tar.addfile(_member(LIST_MEMBER, len(content)), io.BytesIO(content))
    except (OSError, sqlite3.Error, tarfile.TarError) as exc:
        raise StateError(f"the backup cannot be written: {exc}") from exc
    return said


async def backup_to(path: Path, state_dir: Path, **where: Any) -> dict[str, Any]:
    """The same into a new file, which is whole or not there.

    Raises:
        StateError: as above, or the file is there.
    """
    partial = path.with_name(f".{path.name}.part")
    try:
        # Its name is taken first: no other file is written over.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except OSError as exc:
        raise StateError(f"{path}: cannot be made: {exc.strerror}") from exc
    is_whole = False
    try:
        descriptor = os.open(partial, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            said = await write_backup(file, state_dir, **where)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_directory(path.parent)
        is_whole = True
    except OSError as exc:
        raise StateError(f"{path}: cannot be written: {exc.strerror}") from exc
    finally:
        for gone in (partial, *(() if is_whole else (path,))):
            gone.unlink(missing_ok=True)
    return said


async def _copied(
    folder: Path, state_dir: Path, database: DatabaseAddress | None
) -> dict[str, Path]:
    """Copies of the databases as one commit left each, the fleet's first."""
    copies = {}
    for name in (*DATABASES, OUTBOX):
        copy = folder / name
        if database is not None and name in DATABASES:
            await copy_rows(database, DatabaseAddress.file(copy), DATABASES[name])
        elif (state_dir / name).exists():
            await asyncio.to_thread(_copy_sqlite, state_dir / name, copy)
        else:
            continue
        copies[name] = copy
    if "fleet.db" not in copies:
        raise StateError(f"{state_dir}: there is no controller here (no fleet.db)")
    return copies


def _copy_sqlite(source: Path, target: Path) -> None:
    with (
        closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as one,
        closing(sqlite3.connect(target)) as other,
    ):
        one.backup(other)
        # One file, without a log beside it.
        other.execute("PRAGMA journal_mode = DELETE")


def _files(
    state_dir: Path, blobs_dir: Path | None, ca_dir: Path | None
) -> Iterator[tuple[str, Path]]:
    roots = {"": state_dir}
    if blobs_dir is not None:
        roots[BLOBS] = blobs_dir
    if ca_dir is not None:
        roots[CA] = ca_dir
    for below, root in roots.items():
        for path in sorted(root.rglob("*")):
            relative = path.relative_to(root)
            first = relative.parts[0]
            if not below and (first in _LEFT_OUT or first.partition(".db")[1]):
                continue
            if path.is_symlink() or not path.is_file() or relative.name.endswith(".part"):
                continue
            yield (Path(below) / relative).as_posix(), path


def _add(tar: tarfile.TarFile, name: str, path: Path) -> str:
    """A file that grows meanwhile is taken as long as it was."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        tar.addfile(_member(name, size), _Hashed(file, digest))
    return digest.hexdigest()


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o600
    return member


class _Hashed:
    """A file that is hashed while it is read."""

    def __init__(self, file: IO[bytes], digest: Any) -> None:
        self._file = file
        self._digest = digest

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        data = self._file.read(size)
        self._digest.update(data)
        return data
