"""Folders for work under way. What a kill leaves of them goes at the next start of the controller."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shoal_fleet.errors import StateError


@contextmanager
def scratch_folder(within: Path) -> Iterator[Path]:
    """A new folder, gone with all that is in it when the block ends.

    Raises:
        StateError: the disk does not take it.
    """
    try:
        folder = tempfile.TemporaryDirectory(dir=within, ignore_cleanup_errors=True)
    except OSError as exc:
        raise StateError(f"{within}: {exc.strerror}") from exc
    with folder as name:
        yield Path(name)
