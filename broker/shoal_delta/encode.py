"""Old file + new file -> delta: try the plans, keep the smallest, check it, hand it over.

The same two files give the same bytes (with the same versions of zstd and liblzma).
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import zstandard

from shoal_delta import segment, solid, views
from shoal_delta.apply import Progress, apply
from shoal_delta.container import Layout, Segment, encode_header
from shoal_delta.decoding import check_work, read_header, reader_of
from shoal_delta.errors import DeltaError, EncodeError, LimitError
from shoal_delta.estimate import promising
from shoal_delta.model_plan import model_plan
from shoal_delta.operations import WIDTH, Kind, Operation
from shoal_delta.plan import SLOW_CODER_BYTES, Plan, generic_plans
from shoal_delta.work import Work

Profile = Literal["fast", "small"]
"""What matters: "fast" to make and to apply, resumed at every segment; or "small"."""

SEGMENT_BYTES = 1 << 20
# A copy this long stands in the segment table, where it costs nothing to unpack.
_MIN_COPY_SEGMENT_BYTES = 256 << 10
_MAX_COPY_SEGMENT_BYTES = 1 << 30
_MAX_SEGMENT_OPERATIONS = 16_384
# Up to here more than one plan is packed in earnest, those that look smallest.
_TRY_ALL_BYTES = 2 << 20
_TRIED = 3
_SAME_OR_TEXT = frozenset({Kind.COPY, Kind.LITERAL})
# Above this the solid layout is tried only where little is left to pack.
_SOLID_BYTES = 8 << 20
_SOLID_SHARE = 16
_QUICK_LEVEL = 3


@dataclass(frozen=True, slots=True)
class _Cut:
    """One segment to be: its place, and its operations (of a copy segment one)."""

    start: int
    size: int
    operations: tuple[Operation, ...]
    is_copy: bool


def diff(
    old: bytes,
    new: bytes,
    *,
    profile: Profile = "small",
    progress: Progress | None = None,
    workers: int | None = None,
) -> bytes:
    """The delta that makes `new` from `old`.

    Holds both files and a few times the new one in memory. `progress` is called with (bytes packed,
    bytes in all); `workers` threads pack (default: the CPUs, at most 4).

    Raises:
        EncodeError: the delta does not give `new` back (a defect of ours, or a file beyond the
            format's limits); nothing wrong ever leaves here.
    """
    workers = workers or min(4, os.cpu_count() or 1)
    delta = _Encoder(old, new, profile, progress, workers).smallest()
    try:
        again = apply(old, delta, max_output_bytes=len(new))
    except DeltaError as exc:
        raise EncodeError(f"the delta just made is refused: {exc}") from exc
    if again != new:
        raise EncodeError("the delta just made gives another file")
    return delta


def quick_size(old: bytes, new: bytes, *, workers: int | None = None) -> int:
    """About how many bytes `diff` would give, in a fraction of its time: every plan packed quickly.

    No delta is made and nothing is applied. `bases.estimate` says how near it comes.
    """
    workers = workers or min(4, os.cpu_count() or 1)
    return _Encoder(old, new, "fast", None, workers).quick_size()


class _Encoder:
    def __init__(
        self, old: bytes, new: bytes, profile: Profile, progress: Progress | None, workers: int
    ) -> None:
        self._old, self._new = old, new
        self._is_small = profile == "small"
        self._is_slow_allowed = self._is_small and len(new) <= SLOW_CODER_BYTES
        self._progress = progress or (lambda _done, _total: None)
        self._workers = workers
        self._sizes = (len(old), len(new))
        self._sha256 = (hashlib.sha256(old).digest(), hashlib.sha256(new).digest())

    def quick_size(self) -> int:
        if not self._new or self._old == self._new:
            return len(self.smallest())
        model = model_plan(self._old, self._new)
        # Between two models the others would triple the time, and they seldom win.
        plans = generic_plans(self._old, self._new) if model is None else [model]
        sizes = [len(self._packed(plan, is_quick=True)) for plan in plans]
        whole = zstandard.ZstdCompressor(level=_QUICK_LEVEL).compress(self._new)
        return min(*sizes, len(whole))

    def smallest(self) -> bytes:
        if not self._new or self._old == self._new:
            copy = Operation(Kind.COPY, len(self._new))
            return self._packed(Plan((copy,) if self._new else (), lambda _start, _size: ()))
        model = model_plan(self._old, self._new)
        plans = [model] if model is not None else []
        if model is None or self._may_be_beaten(model):
            plans += generic_plans(self._old, self._new)
        is_tried = self._is_small and len(self._new) <= _TRY_ALL_BYTES
        count = _TRIED if is_tried else 1
        most = Work(len(self._new)).limit
        plans = [plan for plan in plans if len(plan.operations) < most]
        plans = promising(plans or [self._plain()], self._old, self._new, count)
        packed = [delta for plan in plans if self._is_in_time(delta := self._packed(plan))]
        segmented = min(packed, key=len) if packed else self._packed(self._plain())
        if not self._is_small or not self._may_hang_together(len(segmented)):
            return segmented
        solids = [
            self._solid(plan.operations)
            for plan in plans
            if len(list(_cut(plan.operations, len(self._old)))) > 1
            and not plan.views.views
            and solid.KINDS.issuperset(operation.kind for operation in plan.operations)
        ]
        if len(self._new) > SEGMENT_BYTES and not self._is_hopeless(len(segmented)):
            solids.append(self._solid([Operation(Kind.LITERAL, len(self._new))]))
        smallest = min(solids, key=len, default=segmented)
        # Segments are resumed and decoded in parallel: not given up for next to nothing.
        return smallest if len(smallest) < len(segmented) - len(segmented) // 128 else segmented

    def _may_be_beaten(self, model: Plan) -> bool:
        """Whether a plan that knows no tensors may be smaller: not where most of a larger model moved."""
        same = sum(each.size for each in model.operations if each.kind in _SAME_OR_TEXT)
        is_worth_time = len(self._new) <= SLOW_CODER_BYTES or 2 * same > len(self._new)
        return is_worth_time and len(self._new) <= _TRY_ALL_BYTES

    def _may_hang_together(self, segmented: int) -> bool:
        """Whether a solid layout may pay: not on the noise of a large model, which takes minutes."""
        return len(self._new) <= _SOLID_BYTES or segmented <= len(self._new) // _SOLID_SHARE

    def _is_hopeless(self, best: int) -> bool:
        """Whether no compression of the new file alone can come near to `best` bytes."""
        parameters = zstandard.ZstdCompressionParameters.from_level(
            _QUICK_LEVEL, enable_ldm=True, window_log=27
        )
        quick = zstandard.ZstdCompressor(compression_params=parameters).compress(self._new)
        return 2 * best < len(quick)

    def _plain(self) -> Plan:
        """What is never too much work."""
        return Plan((Operation(Kind.LITERAL, len(self._new)),), lambda _start, _size: ())

    def _is_in_time(self, delta: bytes) -> bool:
        """Whether a reader accepts it: boards are not to work on one for minutes."""
        read = reader_of(delta)
        try:
            check_work(read_header(read, len(delta), len(self._new)), read, reader_of(self._old))
        except LimitError:
            return False
        return True

    def _packed(self, plan: Plan, *, is_quick: bool = False) -> bytes:
        """The segmented delta of a plan; without the slow coders when they would be too slow."""
        is_slow = self._is_slow_allowed and not is_quick
        delta = self._packed_once(plan, is_quick=is_quick, is_slow=is_slow)
        if is_slow and not self._is_in_time(delta):
            delta = self._packed_once(plan, is_quick=is_quick, is_slow=False)
        return delta

    def _packed_once(self, plan: Plan, *, is_quick: bool, is_slow: bool) -> bytes:
        read = plan.views.reader(reader_of(self._old))
        cuts = list(_cut(plan.operations, len(self._old)))
        done = 0

        def pack(cut: _Cut) -> bytes:
            if cut.is_copy:
                return b""
            return segment.encode(
                list(cut.operations),
                self._new[cut.start : cut.start + cut.size],
                cut.start,
                read=read,
                block=plan.block,
                dictionary=plan.dictionary(cut.start, cut.size),
                is_quick=is_quick,
                prime=plan.prime if is_slow else (),
                is_slow_allowed=is_slow,
            )

        block = b""
        if plan.block:
            block = views.encode(plan.views) + segment.encode(
                list(plan.block_operations),
                plan.block,
                0,
                read=read,
                block=plan.block,
                is_slow_allowed=is_slow or is_quick,
            )
        bodies, segments = [], []
        with ThreadPoolExecutor(self._workers) as pool:
            for cut, body in zip(cuts, pool.map(pack, cuts), strict=True):
                source = cut.operations[0].source if cut.is_copy else None
                content = self._new[cut.start : cut.start + cut.size]
                segments.append(Segment(cut.size, zlib.crc32(content), len(body), source))
                bodies.append(body)
                done += cut.size
                self._progress(done, len(self._new))
        header = encode_header(
            Layout.SEGMENTED,
            sizes=self._sizes,
            sha256=self._sha256,
            segments=segments,
            global_size=len(plan.block),
            global_coded_size=len(block),
        )
        return b"".join([header, block, *bodies])

    def _solid(self, operations: Sequence[Operation]) -> bytes:
        body = solid.encode(operations, self._new, reader_of(self._old))
        segments = [Segment(len(self._new), None, len(body))]
        return (
            encode_header(Layout.SOLID, sizes=self._sizes, sha256=self._sha256, segments=segments)
            + body
        )


def _cut(operations: Sequence[Operation], old_size: int) -> Iterator[_Cut]:
    """The operations as segments of about `SEGMENT_BYTES`, long copies as segments of their own."""
    is_short = sum(operation.size for operation in operations) <= SEGMENT_BYTES
    is_one_copy = len(operations) == 1
    start, size, pending = 0, 0, list[Operation]()
    for operation in operations:
        left = operation
        is_long = is_one_copy or (operation.size >= _MIN_COPY_SEGMENT_BYTES and not is_short)
        # What a view shows is gathered, piece by piece.
        if operation.kind is Kind.COPY and is_long and left.source + left.size <= old_size:
            if pending:
                yield _Cut(start, size, tuple(pending), is_copy=False)
                start, size, pending = start + size, 0, []
            while left.size:
                head, left = left.split(min(left.size, _MAX_COPY_SEGMENT_BYTES))
                yield _Cut(start, head.size, (head,), is_copy=True)
                start += head.size
            continue
        while left.size:
            room = SEGMENT_BYTES - size
            room -= room % WIDTH.get(left.kind, 1)
            if left.size <= room and len(pending) < _MAX_SEGMENT_OPERATIONS:
                pending.append(left)
                size += left.size
                break
            if room == 0 or len(pending) >= _MAX_SEGMENT_OPERATIONS:
                yield _Cut(start, size, tuple(pending), is_copy=False)
                start, size, pending = start + size, 0, []
                continue
            head, left = left.split(min(left.size, room))
            pending.append(head)
            size += head.size
    if pending:
        yield _Cut(start, size, tuple(pending), is_copy=False)
