"""What the agent asks of the switcher: the folder between them, written by one and distrusted by the other.

- `asked`: JSON, written last: what is asked, with a token that is new every time
- `manifest`: the release's manifest; its sha256 is the release's id
- `tree.tar.gz`: the archive that the manifest lists
- `metadata/`: the update metadata (TUF), named as in a repository
- `healthy`: the token of the trial, by an agent of the new tree that does well
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import msgspec

from shoal_agent.self_update.errors import NotNowError
from shoal_contract.release_targets import MAX_METADATA_BYTES

MODEL: Final = "shoal-agent"
"""What a release of the agent is called where releases have a model's name."""
GROUP: Final = "agents"
"""The group that releases of the agent are signed for, by keys of its own: who may sign here is root on every board."""
FOLDER: Final = "self-update"
ASKED: Final = "asked"
MANIFEST: Final = "manifest"
ARCHIVE: Final = "tree.tar.gz"
METADATA: Final = "metadata"
HEALTHY: Final = "healthy"
MAX_ARCHIVE_BYTES: Final = 256 << 20
MAX_ASKED_BYTES: Final = 64 << 10
MAX_METADATA_FILES: Final = 256
_PIECE_BYTES: Final = 1 << 18


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Switch to this release (its id, in hex); `models`: what serves now and is to serve then."""

    token: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16,64}$")]
    release: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    models: Annotated[list[str], msgspec.Meta(max_length=256)] = []


class Folder:
    """The agent's folder as root reads it: no link is followed, nothing but plain files, sizes first. Blocking."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def asked(self) -> Asked | None:
        """What is asked; None: nothing.

        Raises:
            NotNowError: what stands there is no request.
        """
        data = self.small(ASKED, MAX_ASKED_BYTES)
        try:
            return None if data is None else msgspec.json.decode(data, type=Asked)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise NotNowError(f"the request cannot be read: {exc}") from exc

    def healthy(self) -> str:
        """The token that an agent has answered with; empty: none."""
        try:
            data = self.small(HEALTHY, 128)
        except NotNowError:
            return ""
        return "" if data is None else data.decode("ascii", "replace").strip()

    def small(self, name: str, limit_bytes: int) -> bytes | None:
        """A whole small file; None: there is none.

        Raises:
            NotNowError: it is no plain file, too large, or cannot be read.
        """
        with self._opened(name, limit_bytes) as descriptor:
            if descriptor is None:
                return None
            data = b""
            while len(data) <= limit_bytes and (
                piece := os.read(descriptor, limit_bytes + 1 - len(data))
            ):
                data += piece
            if len(data) > limit_bytes:
                raise NotNowError(f"{name} is too large")
            return data

    def copy(self, name: str, target: Path, limit_bytes: int) -> None:
        """Copy a file to where the agent cannot change it any more.

        Raises:
            NotNowError: it is not there, no plain file, or too large.
            OSError: the disk does not take it.
        """
        with self._opened(name, limit_bytes) as descriptor:
            if descriptor is None:
                raise NotNowError(f"{name} is not there")
            left_bytes = limit_bytes
            with target.open("xb") as file:
                while piece := os.read(descriptor, _PIECE_BYTES):
                    left_bytes -= len(piece)
                    if left_bytes < 0:
                        raise NotNowError(f"{name} is too large")
                    file.write(piece)

    def copy_metadata(self, target: Path) -> None:
        """Copy the metadata files.

        Raises:
            NotNowError: they are too many, too large, or no plain files.
            OSError: the disk does not take it.
        """
        target.mkdir(mode=0o700)
        with self._folder(METADATA) as folder:
            names = [] if folder is None else os.listdir(folder)  # noqa: PTH208 - of a descriptor
        if len(names) > MAX_METADATA_FILES:
            raise NotNowError(f"more than {MAX_METADATA_FILES} metadata files")
        for name in names:
            if name.endswith(".json") and not name.startswith("."):
                self.copy(f"{METADATA}/{name}", target / name, MAX_METADATA_BYTES)

    @contextlib.contextmanager
    def _opened(self, name: str, limit_bytes: int) -> Iterator[int | None]:
        folder_name, _, file_name = name.rpartition("/")
        with self._folder(folder_name) as folder:
            if folder is None:
                yield None
                return
            try:
                # Not blocking: a pipe in its place would hold root up for ever.
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                descriptor = os.open(file_name, flags, dir_fd=folder)
            except FileNotFoundError:
                yield None
                return
            except OSError as exc:
                raise NotNowError(f"{name} cannot be read: {exc.strerror}") from exc
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise NotNowError(f"{name} is no plain file")
                if status.st_size > limit_bytes:
                    raise NotNowError(f"{name} is too large")
                yield descriptor
            finally:
                os.close(descriptor)

    @contextlib.contextmanager
    def _folder(self, below: str) -> Iterator[int | None]:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        with contextlib.ExitStack() as stack:
            try:
                folder = os.open(self._directory, flags)
                stack.callback(os.close, folder)
                if below:
                    folder = os.open(below, flags, dir_fd=folder)
                    stack.callback(os.close, folder)
            except OSError as exc:
                if exc.errno == errno.ENOENT:
                    yield None
                    return
                raise NotNowError(f"the request's folder cannot be read: {exc.strerror}") from exc
            yield folder
