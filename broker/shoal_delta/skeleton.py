"""The graph around the tensors: copied where it is the same, said as text where it is not.

It is cut where an initializer's field begins or ends, so that one that moved is found by its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from shoal_delta.arithmetic import as_bytes
from shoal_delta.coders import Span
from shoal_delta.onnx_wire import Message, Model, Tensor
from shoal_delta.operations import Kind, Operation
from shoal_delta.plan import changed_runs, common_prefix, common_suffix

# A change that makes fewer runs than this is said run by run; with more the piece is text, whole.
_MAX_RUNS = 4
_MIN_FRONT_BYTES = 512
_NOTHING: Span = (0, 0)


@dataclass(slots=True)
class Skeleton:
    """Plans what stands between tensors; `matches` are the old ones of new ones, by offset."""

    files: tuple[bytes, bytes]
    models: tuple[Model, Model]
    matches: Mapping[int, Tensor]
    _by_name: dict[str, Message] = field(init=False)
    _by_content: dict[bytes, Message] = field(init=False)

    def __post_init__(self) -> None:
        self._by_name = {message.name: message for message in self.models[0].messages}
        self._by_content = {
            self.files[0][message.start : message.end]: message
            for message in self.models[0].messages
            if message.end - message.start <= _MIN_FRONT_BYTES
        }

    def operations(self, piece: Span) -> list[Operation]:
        """What makes the new file's `piece`."""
        operations: list[Operation] = []
        for start, end, message in self._cuts(piece):
            operations += self._made(self._base(start, end, message), (start, end - start))
        return operations

    def _cuts(self, piece: Span) -> Iterator[tuple[int, int, Message | None]]:
        """The piece cut where initializers begin: (start, end, the initializer, None: graph)."""
        position, stop = piece[0], sum(piece)
        for message in self.models[1].messages:
            if message.end <= position:
                continue
            if message.start >= stop:
                break
            if position < message.start:
                yield position, message.start, None
            start, position = max(position, message.start), min(message.end, stop)
            yield start, position, message
        if position < stop:
            yield position, stop, None

    def _base(self, start: int, end: int, message: Message | None) -> Span:
        if message is None:
            first, last = self.models[0].messages[0], self.models[0].messages[-1]
            size = len(self.files[0])
            return (last.end, size - last.end) if end == len(self.files[1]) else (0, first.start)
        is_whole = (start, end) == (message.start, message.end)
        if is_whole:
            same = self._by_content.get(self.files[1][start:end])
            same = same or self._by_name.get(message.name)
            return (same.start, same.end - same.start) if same is not None else _NOTHING
        tensor = self.models[1].by_name.get(message.name)
        match = self.matches.get(tensor.offset) if tensor is not None else None
        old = self._by_name.get(match.name) if match is not None else None
        if match is None or old is None:
            return _NOTHING
        # A tensor's head, up to its values, or what follows them.
        if start == message.start:
            return old.start, match.offset - old.start
        return match.offset + match.size, old.end - match.offset - match.size

    def _made(self, base: Span, piece: Span) -> list[Operation]:
        source, before = base[0], self.files[0][base[0] : sum(base)]
        after = self.files[1][piece[0] : sum(piece)]
        if len(before) == len(after):
            runs = changed_runs(as_bytes(before), as_bytes(after), source, Kind.LITERAL)
            if sum(run.kind is Kind.LITERAL and run.size > 0 for run in runs) < _MAX_RUNS:
                return runs
        front = common_prefix(before, after)
        front = front if front >= _MIN_FRONT_BYTES else 0
        back = common_suffix(before[front:], after[front:])
        back = back if back >= _MIN_FRONT_BYTES else 0
        return [
            Operation(Kind.COPY, front, source),
            Operation(Kind.LITERAL, len(after) - front - back),
            Operation(Kind.COPY, back, source + len(before) - back),
        ]
