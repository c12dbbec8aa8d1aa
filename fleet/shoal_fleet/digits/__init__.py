"""The real input of the demonstration: scanned digits, and two INT8 releases trained on them.

1,797 handwritten digits of 8x8 grey levels 0..16 (`optdigits.csv`; source and licence: LICENSE.md),
the 5-bit packing in which a device sends one, and the release directories `v1` and `v2`. Reading them
takes the standard library only; nothing here trains (`tools/digits`) or runs a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final, Literal

DIGITS_DIR: Final = Path(str(files(__name__)))
LEVELS: Final = 64
MAX_LEVEL: Final = 16
# Rows from here on are never trained or calibrated on.
HELD_OUT_FROM: Final = 1200
ROWS: Final = 1797

_U5_BITS: Final = 5
_U5_MAX: Final = (1 << _U5_BITS) - 1


class DigitsError(ValueError):
    """The table or a packed scan is not what it has to be; the message says where."""


@dataclass(frozen=True, slots=True)
class Scan:
    """One scanned digit: its row in the table (from 0), 64 grey levels 0..16 row by row, its label."""

    row: int
    levels: tuple[int, ...]
    label: int


def scans() -> list[Scan]:
    """All 1,797 scans in the order of the table.

    Raises:
        DigitsError: the table is damaged; names the row.
    """
    lines = (DIGITS_DIR / "optdigits.csv").read_text(encoding="ascii").splitlines()
    if len(lines) != ROWS:
        raise DigitsError(f"optdigits.csv has {len(lines)} rows, expected {ROWS}")
    return [_scan(row, line) for row, line in enumerate(lines)]


def held_out() -> list[Scan]:
    """The 597 scans that no release was trained or calibrated on: rows 1200 to 1796."""
    return scans()[HELD_OUT_FROM:]


def release_dir(version: Literal[1, 2]) -> Path:
    """The directory with release.toml, model.onnx and golden.npz of that release.

    Raises:
        DigitsError: there is no such version.
    """
    if version not in (1, 2):
        raise DigitsError(f"there is no version {version} of the digits, only 1 and 2")
    return DIGITS_DIR / f"v{version}"


def pack_u5(levels: Sequence[int]) -> bytes:
    """Values 0..31 as 5 bits each, most significant bit first; the last byte is padded with zeros.

    64 grey levels become 40 bytes.

    Raises:
        DigitsError: a value does not fit into 5 bits.
    """
    bits = 0
    for index, level in enumerate(levels):
        if not 0 <= level <= _U5_MAX:
            raise DigitsError(f"value {index} is {level}, not 0..{_U5_MAX}")
        bits = bits << _U5_BITS | level
    size_bytes = _u5_bytes(len(levels))
    return (bits << size_bytes * 8 - len(levels) * _U5_BITS).to_bytes(size_bytes, "big")


def unpack_u5(data: bytes, count: int) -> list[int]:
    """The `count` values in what `pack_u5` made.

    Raises:
        DigitsError: another length than `count` values take, or padding that is not zero.
    """
    if count < 0 or len(data) != _u5_bytes(count):
        raise DigitsError(f"{len(data)} bytes are not {count} packed values")
    bits = int.from_bytes(data, "big")
    padding = len(data) * 8 - count * _U5_BITS
    if bits & (1 << padding) - 1:
        raise DigitsError("the padding after the last packed value is not zero")
    bits >>= padding
    return [bits >> (count - 1 - index) * _U5_BITS & _U5_MAX for index in range(count)]


def _u5_bytes(count: int) -> int:
    return (count * _U5_BITS + 7) // 8


def _scan(row: int, line: str) -> Scan:
    try:
        *levels, label = map(int, line.split(","))
    except ValueError as exc:
        raise DigitsError(f"optdigits.csv row {row} is not numbers") from exc
    in_range = all(0 <= level <= MAX_LEVEL for level in levels)
    if len(levels) != LEVELS or not in_range or not 0 <= label <= 9:  # noqa: PLR2004 - a digit
        raise DigitsError(f"optdigits.csv row {row} is not 64 grey levels 0..16 and a digit")
    return Scan(row=row, levels=tuple(levels), label=label)
