"""Batches in the memory that engine and worker share: inputs in, outputs out, one segment a batch under way.

The engine's end. What is said of them goes over the socket (`process_worker`).
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import msgspec

from shoal_agent.inference import pipe
from shoal_agent.inference.batch import Batch, Place, Ran, layout
from shoal_agent.inference.segment import Segment
from shoal_agent.inference.signature import Form
from shoal_agent.inference.tensors import Tensor

LARGE_SEGMENT_BYTES: Final = 8 * 1024 * 1024
"""What a larger one holds goes back to the kernel after each batch."""
SEGMENTS: Final = 2
"""Batches under way: while one runs, the next one already lies there."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """A batch that lies in segment `number`; its outputs come behind `end`. `form` is packed for the worker."""

    number: int
    end: int
    output_count: int
    form: bytes


class Exchange:
    """Two segments. `put` at most so many batches before their `free`."""

    def __init__(self, segments: list[Segment]) -> None:
        self.segments = segments
        self._free = list(range(len(segments)))

    @classmethod
    def create(cls) -> Self:
        """Empty ones.

        Raises:
            OSError: the kernel gives none.
        """
        return cls([Segment.create() for _ in range(SEGMENTS)])

    def put(self, batch: Batch) -> Parcel:
        """Copy the inputs there.

        Raises:
            MemoryError: there is not so much.
        """
        form = batch.form
        places, end = layout(form.shapes(batch.rows))
        number = self._free[-1]
        _fill(self.segments[number], places, end, batch.chunks)
        self._free.pop()
        return Parcel(number, end, len(form.outputs), _packed(form))

    def take(self, parcel: Parcel, value: object) -> Ran:
        """The outputs, as the worker says that it wrote them.

        Raises:
            ValueError: that cannot be.
        """
        match value:
            case [int(run_us), list(described)] if len(described) == parcel.output_count:
                pass
            case _:
                raise ValueError("not what a batch gives")
        try:
            shapes = [(dtype, tuple(shape)) for dtype, shape in described]
            places, end = layout(shapes, parcel.end)
            shared = memoryview(self.segments[parcel.number].at_least(end))
        except (TypeError, KeyError, MemoryError) as exc:
            raise ValueError("not the shape of a tensor") from exc
        outputs = [
            Tensor(dtype, shape, bytes(shared[place.offset : place.offset + place.size_bytes]))
            for (dtype, shape), place in zip(shapes, places, strict=True)
        ]
        return Ran(outputs, run_us)

    def free(self, parcel: Parcel) -> None:
        """Its segment may have the next batch."""
        segment = self.segments[parcel.number]
        if segment.size_bytes > LARGE_SEGMENT_BYTES:
            segment.give_back()
        self._free.append(parcel.number)

    def give_back(self) -> None:
        """Free the memory of those that hold no batch."""
        for number in self._free:
            self.segments[number].give_back()

    def close(self) -> None:
        """Close all."""
        for segment in self.segments:
            segment.close()


def _fill(
    segment: Segment,
    places: Sequence[Place],
    end: int,
    chunks: Sequence[Sequence[bytes | memoryview]],
) -> None:
    shared = segment.at_least(end)
    for place, rows in zip(places, chunks, strict=True):
        offset = place.offset
        for data in rows:
            shared[offset : offset + len(data)] = data
            offset += len(data)


@functools.lru_cache(maxsize=pipe.MAX_FORMS)
def _packed(form: Form) -> bytes:
    return msgspec.msgpack.encode(form)
