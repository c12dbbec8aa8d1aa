"""Whether a new release answers live requests as the one that serves does, and what follows. Pure: outputs come in.

Running the copies is `shadow`'s matter.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from shoal_agent.inference.signature import Form, Signature
from shoal_agent.inference.tensors import ELEMENT_BYTES, Tensor
from shoal_contract.release import ShadowTable

_CODES: Final = dict(zip(ELEMENT_BYTES, "?BbHheIifQqd", strict=True))
"""`struct`'s codes of the types of tensors."""
MAX_FAILURES: Final = 3
"""Copies at which the new release failed: more are no chance."""


@dataclass(frozen=True, slots=True)
class Measure:
    """How two answers are compared; the labels are empty for releases of tensors."""

    kind: Literal["top-1", "cosine"]
    cosine: float
    old_labels: tuple[str, ...] = ()
    new_labels: tuple[str, ...] = ()


def measure_of(table: ShadowTable, old: Signature, new: Signature) -> Measure:
    """As the release says, or else as its kind has it."""
    kind = table.measure or ("top-1" if new.item_bytes else "cosine")
    return Measure(kind, table.cosine, old.labels, new.labels)


def is_comparable(old: Signature, new: Signature) -> bool:
    """What is asked of one may be asked of the other: they differ in labels at most."""
    return (old.inputs, old.outputs, old.is_batched, old.item_bytes, bool(old.text_bytes)) == (
        new.inputs,
        new.outputs,
        new.is_batched,
        new.item_bytes,
        bool(new.text_bytes),
    )


def agreeing_rows(
    measure: Measure, form: Form, rows: int, old: Sequence[Tensor], new: Sequence[Tensor]
) -> int:
    """In how many of the first `rows` rows both releases say the same.

    Args:
        measure: of the new release.
        form: of the request.
        rows: that the new release was given.
        old: outputs of the release that serves, perhaps of more rows.
        new: outputs of the new one.
    """
    if form.is_items:
        pairs = [(old[0], new[0])]
        agree = _same_label
    else:
        pairs = list(zip(old, new, strict=True))
        agree = _same_largest if measure.kind == "top-1" else _alike
    return sum(
        all(
            agree(measure, _row(one, row, form.is_batched), _row(other, row, form.is_batched))
            for one, other in pairs
        )
        for row in range(rows)
    )


def _row(tensor: Tensor, row: int, is_batched: bool) -> tuple[float, ...]:  # noqa: FBT001
    count = math.prod(tensor.shape[1:] if is_batched else tensor.shape)
    start = row * count * ELEMENT_BYTES[tensor.dtype] if is_batched else 0
    return struct.unpack_from(f"<{count}{_CODES[tensor.dtype]}", tensor.data, start)


def _same_label(measure: Measure, old: Sequence[float], new: Sequence[float]) -> bool:
    """The worker has found the largest already; -1: there is none."""
    one, other = int(old[0]), int(new[0])
    return min(one, other) >= 0 and measure.old_labels[one] == measure.new_labels[other]


def _same_largest(measure: Measure, old: Sequence[float], new: Sequence[float]) -> bool:
    if len(old) != len(new):
        return False
    if not old:
        return True
    if not all(map(math.isfinite, new)):
        return False
    one, other = (max(range(len(row)), key=row.__getitem__) for row in (old, new))
    if len(old) == len(measure.old_labels) == len(measure.new_labels):
        return measure.old_labels[one] == measure.new_labels[other]
    return one == other


def _alike(measure: Measure, old: Sequence[float], new: Sequence[float]) -> bool:
    if len(old) != len(new):
        return False
    if not all(map(math.isfinite, new)):
        return False
    lengths = math.hypot(*old) * math.hypot(*new)
    if lengths == 0.0 or len(old) == 1:  # no direction, or one that says nothing
        return all(map(_close, old, new))
    return math.fsum(map(_product, old, new)) >= measure.cosine * lengths


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=0.01, abs_tol=1e-6)


def _product(one: float, other: float) -> float:
    return one * other


@dataclass(slots=True)
class Tally:
    """What came of the copies so far.

    Attributes:
        requests: compared.
        rows: of these.
        agreed: of these rows, those where both say the same.
        failed: requests at which the new release failed; their rows count, too.
        passed_over: requests that were not copied: the board was busy, or they were too large.
    """

    table: ShadowTable
    measure: Measure
    requests: int = 0
    rows: int = 0
    agreed: int = 0
    failed: int = 0
    passed_over: int = 0

    def count(self, rows: int, agreed: int) -> None:
        """A copy was answered."""
        self.requests += 1
        self.rows += rows
        self.agreed += agreed

    def count_failure(self, rows: int) -> None:
        """The new release failed at a copy of a request that the other one answered."""
        self.failed += 1
        self.count(rows, 0)

    @property
    def is_enough(self) -> bool:
        """No more is asked, or more would change nothing."""
        return self.requests >= self.table.requests or self.failed >= MAX_FAILURES

    def __str__(self) -> str:
        what = (
            "the same answer" if self.measure.kind == "top-1" else f"cosine {self.table.cosine:g}"
        )
        failed = f", {self.failed} requests failed" if self.failed else ""
        return (
            f"{self.agreed} of {self.rows} rows of {self.requests} live requests agree"
            f" ({what}{failed}; {self.passed_over} were not copied)"
        )

    def why_refused(self) -> str | None:
        """After the end: why it is not to serve; None: it may."""
        if self.failed >= MAX_FAILURES:
            return f"shadow run: it failed at {self.failed} live requests: {self}"
        if self.requests < self.table.least:
            return without(
                self.table,
                f"{self.requests} live requests in {self.table.within_s:g} s, {self.table.least} are needed"
                f" ({self.passed_over} were not copied)",
            )
        if self.agreed < self.table.agreement * self.rows:
            return f"shadow run: {self}; its release asks for {self.table.agreement:.1%}"
        return None


def without(table: ShadowTable, reason: str) -> str | None:
    """What follows where nothing can be said, by what the release declares."""
    if table.without == "refuse":
        return f"shadow run: {reason}, and its release does not pass without"
    return None
