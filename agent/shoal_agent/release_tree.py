"""Which release tree this program runs from, if from any: what the board reports as its version."""

from __future__ import annotations

import re
from pathlib import Path

import shoal_agent

_ID = re.compile(rf"{re.escape(shoal_agent.__version__)}(\+[0-9A-Za-z.]{{1,64}})?")


def running_version(package: Path = Path(shoal_agent.__file__).parent) -> str:
    """The name of the release tree that holds this package, such as `0.1.0+rc.1`; else the version.

    A tree is `<name>/lib/<package>` beside `<name>/release.json`, which is not read: it is large. The name begins
    with the version, or counts for nothing.
    """
    tree = package.resolve().parents[1]
    is_tree = _ID.fullmatch(tree.name) is not None and (tree / "release.json").is_file()
    return tree.name if is_tree else shoal_agent.__version__


def running_home(package: Path = Path(shoal_agent.__file__).parent) -> Path | None:
    """The home of the release trees, such as `/opt/shoal`, when this program runs from one of them."""
    tree = package.resolve().parents[1]
    is_one = running_version(package) == tree.name and tree.parent.name == "releases"
    return tree.parent.parent if is_one else None
