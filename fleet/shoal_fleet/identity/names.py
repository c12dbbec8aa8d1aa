"""Names that the authority has given to others than nodes: no board may enrol under one of them.

A broker that `shoal-broker render` configured gives rights by name. Who got a certificate by `shoal ca issue` is
written down beside the authority.
"""

import contextlib
import os
from pathlib import Path
from typing import Final

from shoal_broker.durable import sync_directory
from shoal_fleet.errors import AuthorityError

FILE: Final = "names"
MAX_BYTES: Final = 1 << 20
CONTROLLER: Final = "shoal-controller"


def given(folder: Path) -> frozenset[str]:
    """The names that are written down in the authority's directory. Blocks for a small file."""
    with contextlib.suppress(FileNotFoundError), (folder / FILE).open("rb") as file:
        return frozenset(file.read(MAX_BYTES).decode("utf-8", "replace").splitlines())
    return frozenset()


def give(folder: Path, name: str) -> None:
    """Write a name down, before its certificate exists.

    Raises:
        AuthorityError: the disk does not take it.
    """
    try:
        if name in given(folder):
            return
        with (folder / FILE).open("ab") as file:
            file.write(name.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        sync_directory(folder)
    except OSError as exc:
        raise AuthorityError(f"{folder / FILE}: {exc.strerror}") from exc
