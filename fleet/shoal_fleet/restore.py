"""A controller out of a backup, on this machine or another: nobody enrols again, rollouts go on.

All is unpacked and compared with its sha256 beside the place where it will be; one rename makes it the
state directory.
"""

import asyncio
import hashlib
import json
import os
import shutil
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final

from shoal_broker.durable import sync_directory
from shoal_fleet.backup import DATABASES, FORMAT, LIST_MEMBER
from shoal_fleet.database_address import DatabaseAddress
from shoal_fleet.errors import StateError
from shoal_fleet.schema import bring_up_to_date
from shoal_fleet.transfer import copy_rows

MAX_LIST_BYTES: Final = 64 << 20
PIECE_BYTES: Final = 1 << 20
AHEAD: Final = 1000
"""Wanted states go on from so much further: what was said after the backup is not believed to be newer."""


async def restore(
    file: IO[bytes], state_dir: Path, *, database: DatabaseAddress | None = None
) -> dict[str, Any]:
    """Make `state_dir`, which is not there or empty, of a backup; returns what the backup says of itself.

    `database`: an empty PostgreSQL that gets the rows in place of the files.

    Raises:
        StateError: it is no backup, is damaged, or something is in the way.
    """
    partial = state_dir.with_name(f".{state_dir.name}.restoring")
    try:
        _make_room(state_dir, partial)
        said = await asyncio.to_thread(_unpack, file, partial)
        for name, base in DATABASES.items():
            if (partial / name).exists():
                await bring_up_to_date(DatabaseAddress.file(partial / name), base)
        await asyncio.to_thread(_take_up, partial / "fleet.db")
        if database is not None:
            for name, base in DATABASES.items():
                if (partial / name).exists():
                    await copy_rows(DatabaseAddress.file(partial / name), database, base)
                    _set_aside(partial, name)
        # An empty directory gives way.
        partial.replace(state_dir)
        sync_directory(state_dir.parent)
    except (OSError, sqlite3.Error) as exc:
        raise StateError(f"{state_dir}: cannot be restored: {exc}") from exc
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return said


def _make_room(state_dir: Path, partial: Path) -> None:
    if state_dir.exists() and (not state_dir.is_dir() or any(state_dir.iterdir())):
        raise StateError(f"{state_dir}: is not empty: a controller is restored to a new place")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700, parents=True)


def _unpack(file: IO[bytes], folder: Path) -> dict[str, Any]:
    found: dict[str, str] = {}
    said: dict[str, Any] = {}
    try:
        with tarfile.open(fileobj=file, mode="r|") as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isreg() else None
                if content is None or not _is_plain(member.name) or member.name in found or said:
                    raise StateError(f"not a backup: {member.name[:80]!r} does not belong there")
                if member.name == LIST_MEMBER:
                    if member.size > MAX_LIST_BYTES:
                        raise StateError("not a backup: its list is too large")
                    said = _read_list(content.read())
                    continue
                found[member.name] = _write(content, folder / member.name)
    except (tarfile.TarError, ValueError, EOFError) as exc:
        raise StateError(f"not a backup, or not all of one: {exc}") from exc
    if not said:
        raise StateError("not all of a backup: its list is missing")
    if said.get("format") != FORMAT:
        raise StateError("not a backup that this version of Shoal can read")
    if said.get("files") != found:
        listed = said.get("files") or {}
        wrong = sorted(name for name in {*listed, *found} if listed.get(name) != found.get(name))
        raise StateError(f"the backup is damaged: {wrong[0]} is not what its list says")
    return said


def _read_list(data: bytes) -> dict[str, Any]:
    found = json.loads(data)
    if not isinstance(found, dict):
        raise StateError("not a backup: its list is none")
    return found


def _is_plain(name: str) -> bool:
    path = PurePosixPath(name)
    return (
        bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name
    )


def _write(content: IO[bytes], path: Path) -> str:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        while piece := content.read(PIECE_BYTES):
            digest.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _take_up(path: Path) -> None:
    """What happened after the backup is not known: who is there, what the broker retains, what was said last."""
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("UPDATE nodes SET online = 0")
        file.execute(
            "UPDATE nodes SET wanted_revision = wanted_revision + ?, published_revision = 0"
            " WHERE wanted_revision > 0",
            (AHEAD,),
        )
        file.execute("UPDATE published SET complete = 0")


def _set_aside(folder: Path, name: str) -> None:
    """The rows are in the other database now."""
    for path in folder.glob(f"{name}*"):
        path.unlink()
