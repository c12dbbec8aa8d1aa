"""What goes through a pipeline, and the port of what follows from it."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Item:
    """What was measured, encoded as the release's [input] says; (source, boot, seq) names it for ever.

    `topic` is where it came from, if it came over the bus; `matched` is what stood there for the
    wildcards of the filter, in their order. `file`: the picture's, if it came as one. `tensor`: name, type and shape, where
    the payload is not an item but a whole input of the model.
    """

    source: str
    boot: int
    seq: int
    payload: bytes
    topic: str = ""
    matched: tuple[str, ...] = ()
    file: str = ""
    tensor: tuple[str, str, tuple[int, ...]] | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the model made of an item: `release` is the id of the one that did, `by` the node that ran it."""

    label: str
    confidence: float
    release: bytes
    by: str
    at_ms: int


class Sink(Protocol):
    """Something that follows from a verdict."""

    @property
    def name(self) -> str:
        """What its step is called in metrics."""
        ...

    async def put(self, item: Item, verdict: Verdict) -> bool:
        """Do it; False when it was not done and never will be.

        Raises:
            BusError, DeviceError: not now; the item comes again.
        """
        ...
