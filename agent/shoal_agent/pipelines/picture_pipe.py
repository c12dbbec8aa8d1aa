"""Messages between an agent and a process that decodes pictures: length-prefixed msgpack on its stdin and stdout.

The agent asks, the process answers each question once, in order; so at most one picture is under way. The first
message says what is to be read. Bytes and values only.
"""

import struct
from typing import Final

import msgspec

from shoal_contract.errors import DecodeError
from shoal_contract.images import Preparation

MAX_BYTES: Final = 96 * 1024 * 1024
PREFIX: Final = struct.Struct(">I")


class _Message(msgspec.Struct, array_like=True, frozen=True):
    pass


# ------------------------------------------------------------------ what the agent says
class OpenFolder(_Message, frozen=True, tag="folder"):
    """Read the pictures of a folder, or one file; `known` (name -> stamp) were read before."""

    path: str
    formats: list[str]
    poll_s: float
    max_file_bytes: int
    max_pixels: int
    memory_bytes: int
    known: dict[str, str]


class OpenCamera(_Message, frozen=True, tag="camera"):
    """Read a camera."""

    url: str
    format: str | None
    options: dict[str, str]
    open_timeout_s: float
    read_timeout_s: float
    max_pixels: int
    memory_bytes: int


class Look(_Message, frozen=True, tag="look"):
    """Which file is next? Wait for one so long."""

    wait_s: float


class Decode(_Message, frozen=True, tag="decode"):
    """This file, prepared."""

    name: str
    stamp: str
    preparation: Preparation


class Done(_Message, frozen=True, tag="done"):
    """This file is done with."""

    name: str
    stamp: str
    delete: bool


class Newest(_Message, frozen=True, tag="newest"):
    """The newest picture of the camera that was not given yet, prepared. Wait for one so long."""

    wait_s: float
    preparation: Preparation


Opening = OpenFolder | OpenCamera
Question = Look | Decode | Done | Newest


# ------------------------------------------------------------------ what the process answers
class Ready(_Message, frozen=True, tag="ready"):
    """It can begin. `gone`: known files that are not there any more."""

    gone: list[str] = []


class Nothing(_Message, frozen=True, tag="nothing"):
    """Not in that time; or there was nothing to be said."""


class Found(_Message, frozen=True, tag="found"):
    """A file that is complete, as far as one can see."""

    name: str
    stamp: str


class Picture(_Message, frozen=True, tag="picture"):
    """The bytes that the model takes. `skipped`: pictures of the camera before it that nobody saw."""

    data: bytes
    taken_ms: int
    decode_us: int
    skipped: int = 0


class Unusable(_Message, frozen=True, tag="unusable"):
    """This picture will never do; another may."""

    reason: str


class Failed(_Message, frozen=True, tag="failed"):
    """Nothing more can come of this process."""

    reason: str


Answer = Ready | Nothing | Found | Picture | Unusable | Failed


def pack(message: msgspec.Struct) -> bytes:
    """The message with its length in front."""
    body = msgspec.msgpack.encode(message)
    return PREFIX.pack(len(body)) + body


def body_bytes(prefix: bytes) -> int:
    """How many bytes follow this prefix.

    Raises:
        DecodeError: more than one message may have.
    """
    (length,) = PREFIX.unpack(prefix)
    if length > MAX_BYTES:
        raise DecodeError(f"a message of {length} bytes; at most {MAX_BYTES} are allowed")
    return int(length)


def answer(body: bytes) -> Answer:
    """What the process said.

    Raises:
        DecodeError: nonsense.
    """
    try:
        found: Answer = _ANSWERS.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise DecodeError(f"not an answer of a decoding process: {exc}") from exc
    return found


def question(body: bytes) -> Opening | Question:
    """What the agent said.

    Raises:
        DecodeError: nonsense.
    """
    try:
        found: Opening | Question = _QUESTIONS.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise DecodeError(f"not a question to a decoding process: {exc}") from exc
    return found


_ANSWERS = msgspec.msgpack.Decoder(Answer)
_QUESTIONS = msgspec.msgpack.Decoder(Opening | Question)
