"""Messages between the engine and its worker: length-prefixed msgpack on a socket pair.

Engine to worker `[call, operation, argument...]`; worker to engine `[call, verdict, value]`, where
call 0 is the worker's greeting. Tensors do not travel here: they lie in shared memory (`segment`), the messages
say which shapes. Bytes and values only; neither end's reading loop stands here.
"""

import struct
from typing import Final

import msgspec

from shoal_contract.errors import DecodeError

MAX_BYTES: Final = 1024 * 1024
MAX_FORMS: Final = 256
"""Forms of batches that either end keeps at hand."""
PREFIX: Final = struct.Struct(">I")

GREETING: Final = 0
OK: Final = "ok"
REFUSED: Final = "refused"
"""The worker is well but says no: a release breaks a promise."""
BAD_INPUT: Final = "bad-input"
"""This batch does not fit the model."""
FAILED: Final = "failed"
"""The model, or the runtime, failed at this batch."""

LATE: Final = "late"
"""It took too long, and was stopped."""

LOAD: Final = "load"
UNLOAD: Final = "unload"
RUN: Final = "run"


def pack(message: list[object]) -> bytes:
    """The message with its length in front."""
    body = msgspec.msgpack.encode(message)
    return PREFIX.pack(len(body)) + body


def body_bytes(prefix: bytes | bytearray) -> int:
    """How many bytes follow this prefix.

    Raises:
        DecodeError: more than one message may have.
    """
    (length,) = PREFIX.unpack(prefix)
    if length > MAX_BYTES:
        raise DecodeError(f"a message of {length} bytes; at most {MAX_BYTES} are allowed")
    return int(length)


def unpack(body: bytes) -> tuple[int, str, list[object]]:
    """The call's number, the operation or verdict, and the rest.

    Raises:
        DecodeError: anything else.
    """
    try:
        message = msgspec.msgpack.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise DecodeError(f"not a message between engine and worker: {exc}") from exc
    match message:
        case [int(call), str(word), *rest]:
            return call, word, rest
    raise DecodeError("not a message between engine and worker")
