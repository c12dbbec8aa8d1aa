"""What the switcher remembers over power cuts: the trial that runs, and which releases failed here. Values and their file.

The file is root's, below the home of the release trees; the agent may read it and nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from shoal_agent.self_update.errors import NotNowError
from shoal_agent.updater.floors import Floors
from shoal_broker.durable import write_durably

FILE: Final = "switch.json"
MAX_FILE_BYTES: Final = 1 << 20
MAX_REFUSED: Final = 64

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]


class Trial(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A switch that has begun and not ended.

    Attributes:
        tree, previous: names of the release trees that it leads to and from.
        release: the id of the release, in hex.
        older: the tree that the link `previous` led to before; empty: none.
        models: what served before, and must serve before the new agent counts as healthy.
        token: what a healthy agent of the new tree answers with.
        starts: how often the switcher has begun to wait for it; a power cut makes it one more.
        phase: "trying" the new tree, or "returning" to the previous one.
    """

    tree: _Name
    previous: _Name
    release: str
    token: str
    older: str = ""
    models: list[str] = []
    starts: _Count = 0
    phase: Literal["trying", "returning"] = "trying"


class Standing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that is remembered.

    Attributes:
        answered: the token of the request that was dealt with last.
        reason: why that one came to nothing; empty: it did not.
        trees: the release (hex) that each tree was made of, by the tree's name.
        refused: why a release (hex) is not tried again.
        floors: the newest update metadata that was verified here.
    """

    answered: str = ""
    reason: str = ""
    trial: Trial | None = None
    trees: dict[str, str] = {}
    refused: dict[str, str] = {}
    floors: Floors = Floors()

    def refusing(self, release: str, reason: str) -> Standing:
        """The same, and this release is never tried again; of many refused ones the oldest is forgotten."""
        refused = {**self.refused, release: reason[:500]}
        for oldest in list(refused)[: max(0, len(refused) - MAX_REFUSED)]:
            del refused[oldest]
        return msgspec.structs.replace(self, refused=refused, reason=reason[:500])


def load(home: Path) -> Standing:
    """What is remembered below this home; nothing yet where there is no file.

    Raises:
        NotNowError: the file cannot be read, or a later version wrote it.
    """
    path = home / FILE
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise NotNowError(f"{path} is too large")
        return msgspec.json.decode(data, type=Standing)
    except FileNotFoundError:
        return Standing()
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise NotNowError(f"{path} cannot be read: {exc}") from exc


def save(home: Path, standing: Standing) -> None:
    """Remember it, over a power cut too.

    Raises:
        OSError: the disk does not take it.
    """
    write_durably(home / FILE, msgspec.json.encode(standing), mode=0o644)
