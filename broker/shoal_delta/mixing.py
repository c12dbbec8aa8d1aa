"""The coder for graphs and names: what the last bytes and the old graph tell of each bit, mixed.

Context mixing after Mahoney's lpaq (bit histories, logistic mixing, a match model, a binary arithmetic
coder), integers only. Slow, some ten thousand bytes a second, and for text of a few kilobytes by far the
smallest. Format: docs/delta-format.md.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from operator import getitem, mul

MAX_BYTES = 64 << 10
"""Of the text and what it is primed with, together: it bounds the time that it takes."""
_ORDERS = (1, 2, 3, 4, 5, 7)
_MULTIPLIERS = (
    0x9E3779B97F4A7C15,
    0xD6E8FEB86659FD93,
    0xA0761D6478BD642F,
    0xE7037ED1A0B428DB,
    0x8EBC6AF09C88C6E3,
    0x589965CC75374CC3,
)
_NODE_MULTIPLIER = 0x2F0B4C47
_SLOT_BITS = 20
_SLOT_MASK = (1 << _SLOT_BITS) - 1
_HISTORY = 1 << 7
_MIN_MATCH, _MAX_MATCH = 5, 32
_HALF = 1 << 15
_INPUTS = len(_ORDERS) + 2
_WEIGHT = 19661
_RATE = 14
# A bit that was as good as known teaches the weights nothing.
_SMALL_ERROR = 32 * _RATE
_LIMIT = 2047
# 4096 / (1 + exp(-x / 256)) at x = -2048, -1920 ... 2048
_SQUASH = (
    *(1, 2, 3, 6, 10, 16, 27, 45, 73, 120, 194, 310, 488, 747, 1101, 1546, 2047),
    *(2549, 2994, 3348, 3607, 3785, 3901, 3975, 4022, 4050, 4068, 4079, 4085, 4089, 4092, 4093),
    *(4094, 4094),
)

Code = Callable[[int, int], int]
"""(chance of a one in 1/4096, the bit when it is known) -> the bit"""


def encode(text: bytes, prime: bytes) -> bytes:
    """`text` after `prime`, which the decoder knows; together at most `MAX_BYTES`."""
    encoder = _Encoder()
    _run(prime + text, len(prime), len(text), encoder.bit)
    return encoder.end()


def decode(packed: bytes, size: int, prime: bytes) -> bytes:
    """The `size` bytes of text; any `packed` gives some."""
    return _run(prime, len(prime), size, _Decoder(packed).bit)


class _Encoder:
    """A binary arithmetic coder without carries (Mahoney's)."""

    def __init__(self) -> None:
        self._low, self._high = 0, 0xFFFFFFFF
        self._out = bytearray()

    def bit(self, chance: int, bit: int) -> int:
        middle = self._low + (self._high - self._low >> 12) * chance
        if bit:
            self._high = middle
        else:
            self._low = middle + 1
        while not (self._low ^ self._high) & 0xFF000000:
            self._out.append(self._high >> 24)
            self._low = self._low << 8 & 0xFFFFFFFF
            self._high = self._high << 8 & 0xFFFFFFFF | 0xFF
        return bit

    def end(self) -> bytes:
        """As few bytes as fall between the bounds when zeros follow."""
        for size in range(5):
            step = 1 << 32 - 8 * size
            value = -(-self._low // step) * step
            if value <= self._high:
                self._out += (value >> 32 - 8 * size).to_bytes(size, "big")
                break
        return bytes(self._out)


class _Decoder:
    def __init__(self, packed: bytes) -> None:
        self._packed, self._position = packed, 4
        self._low, self._high = 0, 0xFFFFFFFF
        self._value = int.from_bytes(packed[:4].ljust(4, b"\0"), "big")

    def bit(self, chance: int, _bit: int) -> int:
        middle = self._low + (self._high - self._low >> 12) * chance
        bit = int(self._value <= middle)
        if bit:
            self._high = middle
        else:
            self._low = middle + 1
        while not (self._low ^ self._high) & 0xFF000000:
            self._low = self._low << 8 & 0xFFFFFFFF
            self._high = self._high << 8 & 0xFFFFFFFF | 0xFF
            following = self._packed[self._position : self._position + 1]
            self._value = self._value << 8 & 0xFFFFFFFF | (following[0] if following else 0)
            self._position += 1
        return bit


class _Match:
    """The last place where the same bytes stood, and how well it has told what follows."""

    def __init__(self) -> None:
        self.text = bytearray()
        self._pointer, self._length, self._misses = -1, 0, 0
        self._places: dict[int, int] = {}

    def expected(self) -> int:
        """The byte that followed there, with a one in front; 0 when there is no such place."""
        return self.text[self._pointer] | 0x100 if self._pointer >= 0 else 0

    def confidence(self) -> int:
        """Below 48: how long the match is, and whether it has failed of late."""
        state = 2 if self._misses > 8 else int(self._misses > 0)  # noqa: PLR2004
        return 16 * state + min(self._length, 15)

    def weights(self) -> int:
        """Which set of weights: 0 without a match, then by its length, up to 15."""
        return 1 + min(self._length, 14)

    def add(self, byte: int, last: int) -> None:
        """`byte` follows; `last` are the last eight bytes with it."""
        if self._pointer >= 0:
            if self.text[self._pointer] == byte:
                self._length += 1
                self._misses -= self._misses > 0 and self._length > 15  # noqa: PLR2004
            else:
                self._length, self._misses = 0, min(self._misses + 8, 16)
            self._pointer += 1
        self.text.append(byte)
        if len(self.text) < _MIN_MATCH:
            return
        key = last & (1 << 8 * _MIN_MATCH) - 1
        if self._length < _MIN_MATCH:
            self._find(self._places.get(key))
        self._places[key] = len(self.text)

    def _find(self, place: int | None) -> None:
        if place is None:
            return
        length, end = 0, len(self.text)
        while length < min(_MAX_MATCH, place) and (
            self.text[place - 1 - length] == self.text[end - 1 - length]
        ):
            length += 1
        if length > self._length:
            self._pointer, self._length = place, length


def _run(known: bytes, primed: int, size: int, code: Code) -> bytes:
    """The text, bit by bit; `known` is all of it or as far as it is primed."""
    tables = [bytearray(b"\1") * (1 << _SLOT_BITS) for _ in _ORDERS]
    histories = [_first_chances() for _ in _ORDERS]
    trusted = [_HALF + 400 * confidence for confidence in range(48)]
    alone = [_HALF] * 256
    weights = [[_WEIGHT] * _INPUTS for _ in range(16)]
    squash, stretch, longer = squashed(), stretched(), _longer()
    match = _Match()
    last = 0
    for position in range(primed + size):
        byte = known[position] if position < len(known) else 0
        coded = code if position >= primed else _given
        places = [
            (last & (1 << 8 * order) - 1) * multiplier >> 20
            for order, multiplier in zip(_ORDERS, _MULTIPLIERS, strict=True)
        ]
        expected, confidence = match.expected(), match.confidence()
        node = 1
        for shift in range(7, -1, -1):
            offset = node * _NODE_MULTIPLIER
            slots = [place + offset & _SLOT_MASK for place in places]
            seen = list(map(getitem, tables, slots))
            inputs = [stretch[chance >> 4] for chance in map(getitem, histories, seen)]
            inputs.append(stretch[alone[node] >> 4])
            is_matched = expected >> shift + 1 == node
            likely = expected >> shift & 1
            if is_matched:
                trust = stretch[trusted[confidence] >> 4]
                inputs.append(trust if likely else -trust)
                mixer = weights[match.weights()]
            else:
                inputs.append(0)
                mixer = weights[0]
            total = sum(map(mul, mixer, inputs)) >> 16
            chance = squash[min(max(total, -_LIMIT), _LIMIT) + _LIMIT]
            bit = coded(chance, byte >> shift & 1)
            error = ((bit << 12) - chance) * _RATE
            if not -_SMALL_ERROR < error < _SMALL_ERROR:
                mixer[:] = [
                    w + (x * error + _HALF >> 16) for w, x in zip(mixer, inputs, strict=True)
                ]
            target = 0xFFFF if bit else 0
            following = longer[bit]
            for table, chances, slot, history in zip(tables, histories, slots, seen, strict=True):
                chances[history] += target - chances[history] >> 6
                table[slot] = following[history]
            alone[node] += target - alone[node] >> 5
            if is_matched:
                goal = 0xFFFF if bit == likely else 0
                trusted[confidence] += goal - trusted[confidence] >> 6
            node = node << 1 | bit
        byte = node & 0xFF
        last = (last << 8 | byte) & 0xFFFFFFFFFFFFFFFF
        match.add(byte, last)
    return bytes(match.text[primed:])


def _given(_chance: int, bit: int) -> int:
    return bit


def _first_chances() -> list[int]:
    """Of each bit history (a one, then up to seven bits): the chance of a one in 1/65536."""
    chances = [_HALF, _HALF]
    for history in range(2, 2 * _HISTORY):
        length, ones = history.bit_length() - 1, history.bit_count() - 1
        chances.append((10 * ones + 3) * 0xFFFF // (10 * length + 6))
    return chances


@cache
def _longer() -> tuple[bytes, ...]:
    """For a zero and for a one: what each bit history becomes."""
    return tuple(
        bytes(
            each if each < 2 * _HISTORY else each & _HISTORY - 1 | _HISTORY
            for each in (history << 1 | bit for history in range(2 * _HISTORY))
        )
        for bit in (0, 1)
    )


@cache
def squashed() -> list[int]:
    """4096 / (1 + exp(-x / 256)) for x from -2047 to 2047, between the points of `_SQUASH` linear."""
    out = []
    for x in range(-_LIMIT, _LIMIT + 1):
        index, part = (x >> 7) + 16, x & 127
        out.append((_SQUASH[index] * (128 - part) + _SQUASH[index + 1] * part + 64) >> 7)
    return out


@cache
def stretched() -> list[int]:
    """The inverse: for each chance the least x that reaches it."""
    squash = squashed()
    out, x = [], -_LIMIT
    for chance in range(4096):
        while x < _LIMIT and squash[x + _LIMIT] < chance:
            x += 1
        out.append(x)
    return out
