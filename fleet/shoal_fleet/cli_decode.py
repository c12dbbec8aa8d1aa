"""`shoal decode`: a filter that makes JSON of what went over the bus. It needs no controller and no broker."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final

import typer

from shoal_contract import envelope, frames, messages
from shoal_contract.errors import ContractError, DecodeError
from shoal_contract.exits import Exit
from shoal_contract.messages import MAX_MESSAGE_BYTES
from shoal_contract.topics import Address, ChunkTopic, DoorTopic, Topics, UpdateTopic
from shoal_fleet.cli_output import print_json
from shoal_fleet.errors import UsageError
from shoal_fleet.named import named_address, named_fields, named_frame
from shoal_fleet.plain import plain

MAX_LINE_BYTES: Final = 2 * MAX_MESSAGE_BYTES + 4096
"""The largest message in hex, with its topic."""


def decode(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE|HEX]", help="A file of lines, or one payload in hex; else stdin is read."
        ),
    ] = None,
    *,
    root: Annotated[str, typer.Option(help="The first level of every topic.")] = Topics().root,
    as_frames: Annotated[
        bool, typer.Option("--frames", help="The payloads are device frames as on a serial line.")
    ] = False,
) -> None:
    """Print messages of the bus as JSON, one object a line.

    A line is a topic and a payload in hex, as `mosquitto_sub -F '%t %x'` prints them, or a payload
    alone. Of a signed one the key is named, its signature is not checked. What cannot be decoded becomes an object with `error`, and the exit code is 1 at the end.
    """
    topics = Topics(root)
    is_good = True
    try:
        for number, line in enumerate(_lines(source), start=1):
            for found in _decoded(line, topics, as_frames=as_frames):
                if "error" in found:
                    is_good = False
                    found = {"line": number, **found}  # noqa: PLW2901 - the same object, with its place
                # `echo` below it flushes: what reads from us sees each line at once.
                print_json(found)
    except BrokenPipeError:
        # Whoever reads has enough. Python would complain when it flushes at exit: give it a place.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(Exit.OK) from None
    except KeyboardInterrupt:
        raise typer.Exit(Exit.INTERRUPTED) from None
    if not is_good:
        raise typer.Exit(Exit.FAILED)


def _lines(source: str | None) -> Iterator[bytes]:
    with contextlib.ExitStack() as stack:
        file: BinaryIO
        if source is None:
            file = sys.stdin.buffer
        else:
            if not _is_file(source):
                yield source.encode(errors="replace")
                return
            try:
                file = stack.enter_context(Path(source).open("rb"))
            except OSError as exc:
                raise UsageError(f"{source}: cannot be read: {exc.strerror}") from exc
        while line := file.readline(MAX_LINE_BYTES):
            if not line.endswith(b"\n"):
                rest = _skip_line(file)
                # One byte more than is taken says that it was longer.
                line = line.ljust(MAX_LINE_BYTES + 1, b"0") if rest else line
            if line.strip():
                yield line


def _is_file(source: str) -> bool:
    try:
        return Path(source).is_file()
    except OSError:
        # A payload may be longer than the name of a file.
        return False


def _skip_line(file: BinaryIO) -> bool:
    """Whether anything was left of the line."""
    skipped = False
    while piece := file.readline(MAX_LINE_BYTES):
        skipped = True
        if piece.endswith(b"\n"):
            break
    return skipped


def _decoded(line: bytes, topics: Topics, *, as_frames: bool) -> Iterator[dict[str, Any]]:
    """The objects of one line; the last one has `error` where it could not go on."""
    found: dict[str, Any] = {}
    try:
        if len(line) > MAX_LINE_BYTES:
            raise DecodeError(f"a line of more than {MAX_LINE_BYTES} bytes")
        topic, payload = _parts(line)
        if topic:
            found["topic"] = topic
        if as_frames:
            for packet in filter(None, payload.split(b"\x00")):
                yield {**found, **named_frame(frames.decode(packet))}
            return
        address = None
        if topic:
            address = topics.parse(topic)
            found |= named_address(address)
        yield {**found, **_message(address, payload)}
    except ContractError as exc:
        yield {**found, "error": str(exc)}


def _parts(line: bytes) -> tuple[str, bytes]:
    """Topic, if the line has one, and payload."""
    try:
        text = line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as exc:
        raise DecodeError("not UTF-8 text") from exc
    # A topic without a payload is what clears a retained message: `%x` prints nothing then.
    topic, _, digits = text.rpartition(" ")
    try:
        return topic.strip(), bytes.fromhex(digits)
    except ValueError as exc:
        raise DecodeError("not a topic and a payload in hex (mosquitto_sub -F '%t %x')") from exc


def _message(address: Address | None, payload: bytes) -> dict[str, Any]:
    if address is not None and not payload:
        return {"cleared": True}
    match address:
        case ChunkTopic():
            return {"size_bytes": len(payload)}
        case UpdateTopic():
            return {"payload": payload.hex()}
        case DoorTopic():
            return {"json": _json(payload)}
        case _:
            signed: dict[str, Any] = {}
            if envelope.is_signed(payload):
                found = envelope.unpack(payload)
                payload, signed = found.payload, {"signed_by": found.key_id.hex()}
            message = messages.decode(payload)
            return {"kind": type(message).__name__, "message": named_fields(message), **signed}


def _json(payload: bytes) -> object:
    try:
        value: object = plain(json.loads(payload))
        # Half a surrogate pair is text to Python's JSON and to nobody else.
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as exc:
        raise DecodeError("not JSON") from exc
    return value
