"""Which release tree this program runs from, if from any: what the board reports as its version."""

from __future__ import annotations

import json
import re
from pathlib import Path

import shoal_agent

MAX_BYTES = 16 * 1024
_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+_-]{0,99}")


def running_version(package: Path = Path(shoal_agent.__file__).parent) -> str:
    """The id of the release tree that holds this package, such as `0.1.0+2a98a831becc`; else the version.

    A tree is `<id>/lib/<package>` with `<id>/release.json` that names the same id: a copied or renamed one
    counts as none.
    """
    tree = package.resolve().parents[1]
    try:
        with (tree / "release.json").open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        about = json.loads(text) if len(text) <= MAX_BYTES else None
    except (OSError, ValueError, RecursionError):
        return shoal_agent.__version__
    named = (about.get("id"), about.get("version")) if isinstance(about, dict) else ()
    if tree.name in named and _ID.fullmatch(tree.name):
        return tree.name
    return shoal_agent.__version__
