"""Takes a release tree out of its archive, and nothing but a release tree: sizes first, then names, then every hash.

What comes out is laid out as Ansible leaves it: folders and programs 0755, everything else 0644. Knows no signature.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import stat
import tarfile
import zlib
from pathlib import Path
from typing import Annotated, Final

import msgspec

from shoal_agent.self_update.errors import BadTreeError
from shoal_broker.durable import sync_directory

MAX_TREE_BYTES: Final = 512 << 20
MAX_MEMBERS: Final = 20_000
MAX_ABOUT_BYTES: Final = 8 << 20
ABOUT_FILE: Final = "release.json"
CONFIG_FOLDER: Final = "etc"

_NAME: Final = re.compile(r"\d[0-9A-Za-z.+_-]{0,100}")
_PIECE_BYTES: Final = 1 << 18
_MAX_DEPTH: Final = 24
_SHA256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class About(msgspec.Struct, frozen=True):
    """What a tree says of itself in release.json; `files`: the sha256 of every other file."""

    version: str
    roles: list[str]
    python: str
    arch: str
    files: dict[str, _SHA256]


class _Limited:
    """What an archive unpacks to, which ends with an error where it is too much."""

    def __init__(self, stream: gzip.GzipFile, limit_bytes: int) -> None:
        self._stream = stream
        self._left_bytes = limit_bytes

    def read(self, count: int) -> bytes:
        data = self._stream.read(min(count, _PIECE_BYTES * 4))
        self._left_bytes -= len(data)
        if self._left_bytes < 0:
            raise BadTreeError("the archive unpacks to more than a release tree may have")
        return data


def unpack(
    archive: Path, into: Path, *, machine: str, python: str, limit_bytes: int = MAX_TREE_BYTES
) -> About:
    """Write the archive's tree, flushed, to `into`, a new directory; what it says of itself.

    `machine`, `python`: what the tree must be made for, such as `aarch64` and `3.11`.

    Raises:
        BadTreeError: it is no release tree for this machine; what was written is left for the caller to remove.
        OSError: the disk does not take it.
    """
    into.mkdir(mode=0o755)
    into.chmod(0o755)
    digests: dict[str, str] = {}
    names: set[str] = set()
    try:
        with (
            gzip.open(archive, "rb") as unzipped,
            tarfile.open(fileobj=_Limited(unzipped, limit_bytes), mode="r|") as members,  # type: ignore[call-overload]
        ):
            for count, member in enumerate(members, 1):
                if count > MAX_MEMBERS:
                    raise BadTreeError(f"the archive has more than {MAX_MEMBERS} members")
                _extract(members, member, into, digests, names)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError) as exc:
        raise BadTreeError(f"the archive is damaged: {exc}") from exc
    about = _about(into)
    if names != {about.version}:
        raise BadTreeError("the archive's one folder must be named as its version")
    if digests.pop(ABOUT_FILE, None) is None or digests != about.files:
        wrong = sorted(set(digests.items()) ^ set(about.files.items()))
        raise BadTreeError(f"files are not as {ABOUT_FILE} says: {[name for name, _ in wrong[:4]]}")
    if (about.arch, about.python) != (machine, python) or "agent" not in about.roles:
        raise BadTreeError(
            f"{about.version} is for {about.arch}, Python {about.python}, {', '.join(about.roles)[:80]};"
            f" this board has {machine}, Python {python} and needs the agent"
        )
    flush_folders(into)
    return about


def flush_folders(tree: Path) -> None:
    """Make every name in the tree last.

    Raises:
        OSError: the disk does not take it.
    """
    for top, _, _ in os.walk(tree, topdown=False):
        sync_directory(Path(top))


def read_about(tree: Path) -> bytes:
    """release.json of a tree that is there.

    Raises:
        BadTreeError: there is none, or it is too large.
    """
    try:
        with (tree / ABOUT_FILE).open("rb") as file:
            data = file.read(MAX_ABOUT_BYTES + 1)
    except OSError as exc:
        raise BadTreeError(f"{tree.name} has no {ABOUT_FILE}: {exc.strerror}") from exc
    if len(data) > MAX_ABOUT_BYTES:
        raise BadTreeError(f"{ABOUT_FILE} is too large")
    return data


def _about(tree: Path) -> About:
    try:
        about = msgspec.json.decode(read_about(tree), type=About)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise BadTreeError(f"{ABOUT_FILE} cannot be read: {exc}") from exc
    if not _NAME.fullmatch(about.version):
        raise BadTreeError(f"{about.version[:80]!r} cannot be a tree's name")
    return about


def _extract(
    members: tarfile.TarFile,
    member: tarfile.TarInfo,
    into: Path,
    digests: dict[str, str],
    names: set[str],
) -> None:
    """One member; never through a link, as no link is ever made, and never over what is there."""
    top, *parts = member.name.split("/")
    if not _NAME.fullmatch(top) or len(parts) > _MAX_DEPTH:
        raise BadTreeError(f"{member.name[:80]!r} does not belong into a release tree")
    if any(part in {"", ".", ".."} or "\0" in part or len(part) > 255 for part in parts):  # noqa: PLR2004 - NAME_MAX
        raise BadTreeError(f"{member.name[:80]!r} would leave the tree, or has no proper name")
    names.add(top)
    path = into.joinpath(*parts)
    if member.isdir():
        _make_folder(path, into)
        return
    if not member.isreg() or not parts or member.issparse():
        raise BadTreeError(f"{member.name[:80]!r} is neither a file nor a folder")
    content = members.extractfile(member)
    if content is None:
        raise BadTreeError(f"{member.name[:80]!r} has no content")
    _make_folder(path.parent, into)
    digest = hashlib.sha256()
    mode = 0o755 if parts[0] == "bin" else 0o644
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as exc:
        raise BadTreeError(f"{member.name[:80]!r} is there twice") from exc
    with os.fdopen(descriptor, "wb") as file:
        while piece := content.read(_PIECE_BYTES):
            digest.update(piece)
            file.write(piece)
        file.flush()
        os.fchmod(file.fileno(), stat.S_IFREG | mode)
        os.fsync(file.fileno())
    digests["/".join(parts)] = digest.hexdigest()


def _make_folder(path: Path, into: Path) -> None:
    for folder in reversed([path, *path.parents][: len(path.relative_to(into).parts)]):
        if folder.is_dir():
            continue
        try:
            folder.mkdir()
        except (FileExistsError, NotADirectoryError) as exc:
            raise BadTreeError(f"{folder.name[:80]!r} is a file and a folder") from exc
        folder.chmod(0o755)
