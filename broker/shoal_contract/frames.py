"""Device frames between agent, bridge and microcontroller: bytes in, frames out.

A frame is one CBOR array `[head, seq, op, args...]`, its CRC-32 (big-endian, zlib's polynomial), COBS
encoded and closed by 0x00; at most 64 bytes on the wire, so at most 58 of CBOR. `head` is
version * 8 + kind. The same bytes travel on serial lines, TCP and the Unix socket to the agent.
Numbers are written in the fewest bytes that hold them, so a frame passed on is never longer than it came.

Who answers what: a COMMAND and an EVENT are repeated by their sender until a REPLY with the same seq
comes; the receiver answers a repeat from memory and does not act twice. A BEAT is never answered.
"""

import zlib
from dataclasses import dataclass
from enum import IntEnum

from shoal_contract import cbor
from shoal_contract.errors import DecodeError, EncodeError, FrameError

VERSION = 1
MAX_WIRE_BYTES = 64
MAX_CBOR_BYTES = 58
MAX_SEQ = 0xFFFF_FFFF
REPEAT_MEMORY = 8
"""How many commands a device remembers with their replies, the one that came first goes first."""

MAX_COMMAND_SPAN = REPEAT_MEMORY // 2
"""Unanswered commands on a line stand within so many consecutive seqs. Half of the memory, because on a
lossy line three with a lower seq and three with a higher one may come between a command and its repeat."""

MAX_EVENT_SPAN = 8
"""The same for a device's events; who receives them has room to remember at least twice as many."""

BEAT_INTERVAL_S = 1.0
SILENCE_S = 3.0
"""After this long without a BEAT from the agent a device goes to its safe state by itself."""

_CRC_BYTES = 4
_DELIMITER = b"\x00"
_MIN_ITEMS = 3
_INTEGER_END = 1 << 64

Scalar = None | bool | int | float | str | bytes


class Kind(IntEnum):
    """What a frame is; the low three bits of its head."""

    COMMAND = 0
    REPLY = 1
    EVENT = 2
    BEAT = 3


class Op(IntEnum):
    """Standard operations. Numbers from 64 up belong to the product's own firmware.

    SET [channel, value, context...] -> [status]; GET [channel] -> [status, value];
    SAMPLE [channel, boot, payload] (an EVENT) -> [status, boot];
    HELLO [] -> [status, name, firmware, boot];
    ALIVE [] (a BEAT from the agent) or [uptime_s, safe, unanswered] (from the device).
    """

    ALIVE = 0
    SET = 1
    GET = 2
    SAMPLE = 3
    HELLO = 4


class Status(IntEnum):
    """The first argument of every REPLY."""

    OK = 0
    UNKNOWN_OP = 1
    BAD_ARGS = 2
    REFUSED = 3
    NO_ANSWER = 4
    """Said by the bridge in the device's place: it repeated the command and heard nothing."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame; `seq` belongs to the sender of the COMMAND or EVENT that it is or answers."""

    kind: Kind
    seq: int
    op: int
    args: tuple[Scalar, ...] = ()


def encode(frame: Frame) -> bytes:
    """The frame as it stands on the wire, delimiter included.

    Raises:
        EncodeError: it does not fit in 64 bytes, seq or op are out of range, or an argument is no scalar.
    """
    if not 0 <= frame.seq <= MAX_SEQ or not 0 <= frame.op <= 0xFF:  # noqa: PLR2004 - one byte
        raise EncodeError(f"seq {frame.seq} or op {frame.op} is out of range")
    for arg in frame.args:
        _check_scalar(arg)
    head = VERSION * 8 + frame.kind
    body = cbor.encode([head, frame.seq, int(frame.op), *frame.args], shortest=True)
    if len(body) > MAX_CBOR_BYTES:
        raise EncodeError(f"a frame of {len(body)} CBOR bytes; at most {MAX_CBOR_BYTES} fit")
    return cobs_encode(body + zlib.crc32(body).to_bytes(_CRC_BYTES, "big")) + _DELIMITER


def decode(packet: bytes) -> Frame:
    """One frame from the bytes between two delimiters.

    Raises:
        FrameError: with the reason.
    """
    if len(packet) >= MAX_WIRE_BYTES:
        raise FrameError("overlong", f"{len(packet)} bytes without a delimiter")
    raw = cobs_decode(packet)
    body, crc = raw[:-_CRC_BYTES], raw[-_CRC_BYTES:]
    if len(crc) < _CRC_BYTES or zlib.crc32(body) != int.from_bytes(crc, "big"):
        raise FrameError("crc", "the checksum does not match")
    return decode_body(body)


def decode_body(body: bytes) -> Frame:
    """One frame from its bare CBOR (as in a WebSocket message)."""
    try:
        items = cbor.decode(body, max_bytes=MAX_CBOR_BYTES)
    except DecodeError as exc:
        raise FrameError("cbor", str(exc)) from exc
    if not isinstance(items, list) or len(items) < _MIN_ITEMS:
        raise FrameError("shape", "not an array of at least three items")
    head, seq, op, *args = items
    if not (type(head) is type(seq) is type(op) is int):
        raise FrameError("shape", "head, seq and op must be integers")
    if head < 0 or head >> 3 != VERSION:
        raise FrameError("version", f"frame head {head}, this version speaks {VERSION}")
    if head & 7 > max(Kind) or not 0 <= seq <= MAX_SEQ or not 0 <= op <= 0xFF:  # noqa: PLR2004
        raise FrameError("shape", "kind, seq or op out of range")
    if any(isinstance(arg, (list, dict)) for arg in args):
        raise FrameError("shape", "arguments are scalars")
    return Frame(Kind(head & 7), seq, op, tuple(args))


class FrameReader:
    """Cuts a byte stream into frames; damage is counted and skipped up to the next delimiter.

    Attributes:
        errors: how many frames were thrown away, by reason.
    """

    def __init__(self) -> None:
        self.errors: dict[str, int] = {}
        self._buffer = bytearray()
        self._skipping = False

    def receive(self, data: bytes) -> list[Frame]:
        """The frames that are complete now. Never holds more than one frame's bytes."""
        frames = []
        *complete, rest = data.split(_DELIMITER)
        for piece in complete:
            packet = bytes(self._buffer) + piece
            self._buffer.clear()
            if self._skipping:
                self._skipping = False
                self._count("overlong")
            elif packet:
                try:
                    frames.append(decode(packet))
                except FrameError as exc:
                    self._count(exc.reason)
        if not self._skipping:
            self._buffer += rest
            if len(self._buffer) >= MAX_WIRE_BYTES:
                self._buffer.clear()
                self._skipping = True
        return frames

    def _count(self, reason: str) -> None:
        self.errors[reason] = self.errors.get(reason, 0) + 1


def _check_scalar(arg: object) -> None:
    if isinstance(arg, int):
        if not -_INTEGER_END <= arg < _INTEGER_END:
            raise EncodeError("an integer argument of more than 64 bits")
    elif not isinstance(arg, (float, str, bytes, type(None))):
        raise EncodeError(f"an argument of type {type(arg).__name__}; only scalars fit a frame")


def cobs_encode(data: bytes) -> bytes:
    """Consistent Overhead Byte Stuffing (Cheshire and Baker 1999), for fewer than 254 bytes."""
    if len(data) >= 0xFE:  # noqa: PLR2004 - the one-block form is all a frame needs
        raise EncodeError(f"{len(data)} bytes do not fit one COBS block")
    return b"".join(bytes((len(run) + 1,)) + run for run in data.split(b"\x00"))


def cobs_decode(data: bytes) -> bytes:
    """The inverse.

    Raises:
        FrameError: reason "cobs": a block points past the end or a zero stands inside.
    """
    runs = []
    at = 0
    while at < len(data):
        length = data[at]
        run = data[at + 1 : at + length]
        if length == 0 or len(run) != length - 1 or 0 in run:
            raise FrameError("cobs", "the stuffing is broken")
        runs.append(run)
        at += length
    if not runs:
        raise FrameError("cobs", "empty")
    return b"\x00".join(runs)
