"""Files that survive a power cut: written beside, flushed, renamed, and the rename flushed too."""

import contextlib
import os
import secrets
from pathlib import Path


def write_durably(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """The file has all of this content after a power cut, or what it had before.

    `mode` is the new file's, whatever an earlier one had; the umask takes from it.

    Raises:
        OSError: the disk does not take it; nothing is left behind.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make renames in this directory last.

    Raises:
        OSError: it cannot be opened or flushed.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_parts(directory: Path) -> None:
    """Remove what a kill left of files that were being written in this directory.

    Raises:
        OSError: the directory cannot be read, or a file not removed.
    """
    for part in directory.glob(".*.part"):
        part.unlink(missing_ok=True)
