"""What the JSON door takes, from whom, and how it says what became of it. Pure; `json_door` acts.

What comes in is JSON of any program: size first, then strict JSON (no key twice, no NaN, no number that
is infinite), then the fields of `DoorCommand` and no others.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec

from shoal_contract.messages import MAX_MESSAGE_BYTES
from shoal_fleet.config import DoorTable
from shoal_fleet.errors import DoorRefusedError
from shoal_fleet.registry import Node
from shoal_fleet.selection import belongs, parse_group

MAX_COMMAND_BYTES: Final = 32 * 1024
MAX_CORRELATION_BYTES: Final = 128

_OP = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MAX_REQUEST_CHARS: Final = 128
_INTEGER_END: Final = 1 << 64
"""What CBOR carries without a tag."""


class DoorCommand(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A command as JSON says it. The same `id` of the same user to the same node is the same command."""

    op: str
    args: dict[str, Any] = {}
    id: str | None = None
    expires_s: Annotated[float, msgspec.Meta(gt=0, le=30 * 86400)] = 60.0
    priority: Annotated[int, msgspec.Meta(ge=0, le=9)] = 4


@dataclass(frozen=True, slots=True)
class DoorUser:
    """A client of the door and its scope."""

    name: str
    ops: tuple[str, ...]
    group: Mapping[str, str]
    telemetry: bool

    @classmethod
    def of(cls, table: DoorTable) -> "DoorUser":
        """The user of one table of the configuration, which was checked."""
        return cls(table.user, table.ops, parse_group(table.nodes), table.telemetry)

    def sees(self, node: Node | None) -> bool:
        """Whether this node is in the scope."""
        return node is not None and belongs(node.labels, self.group)

    def may(self, op: str) -> bool:
        """Whether this operation is in the scope."""
        return any(
            op.startswith(pattern[:-1]) if pattern.endswith("*") else op == pattern
            for pattern in self.ops
        )


def parse_command(payload: bytes) -> DoorCommand:
    """The command in a payload.

    Raises:
        DoorRefusedError: it is none; `why` is "size", "json" or "shape".
    """
    if len(payload) > MAX_COMMAND_BYTES:
        raise DoorRefusedError(
            f"{len(payload)} bytes; at most {MAX_COMMAND_BYTES} are taken", why="size"
        )
    try:
        value = json.loads(
            payload.decode("utf-8"),
            object_pairs_hook=_object,
            parse_float=_finite,
            parse_int=_integer,
            parse_constant=_refuse_constant,
        )
        _check_text(value)
    except (ValueError, RecursionError) as exc:
        reason = "nested too deeply" if isinstance(exc, RecursionError) else str(exc)
        raise DoorRefusedError(f"not JSON: {reason}", why="json") from exc
    request = _request(value)
    try:
        command = msgspec.convert(value, DoorCommand)
    except msgspec.ValidationError as exc:
        raise DoorRefusedError(str(exc), why="shape", request=request) from exc
    if command.id is not None and request is None:
        raise DoorRefusedError(
            f"id is 1 to {_MAX_REQUEST_CHARS} printable characters", why="shape", request=None
        )
    if not _OP.fullmatch(command.op):
        raise DoorRefusedError(
            "op is 1 to 64 of letters, digits, '.', '_' and '-'", why="shape", request=request
        )
    return command


def command_id(
    user: str, node: str, request: str | None, correlation: bytes | None
) -> bytes | None:
    """The id on the bus of a command that names itself, by `request` or else by `correlation`.

    The same command has the same id however often it comes. None: it does not name itself.
    """
    if request is not None:
        name = b"id\0" + request.encode()
    elif correlation:
        name = b"correlation\0" + correlation
    else:
        return None
    # Neither user nor node has a NUL in it.
    whole = b"\0".join((b"shoal json door", user.encode(), node.encode(), name))
    return hashlib.sha256(whole).digest()[:8]


def answer(
    *,
    node: str,
    at_ms: int,
    state: str,
    request: str | None = None,
    command: bytes | None = None,
    op: str | None = None,
    reason: str = "",
    progress: int = 0,
    result: Any = None,
) -> bytes:
    """What a client of the door is told, every key in every answer. `command` None: the door refused it."""
    whole = {
        "id": request,
        "command": None if command is None else command.hex(),
        "node": node,
        "op": op,
        "state": state,
        "at_ms": at_ms,
        "progress": progress,
        "reason": reason,
        "result": result,
    }
    payload = as_json(whole)
    if len(payload) > MAX_MESSAGE_BYTES:
        larger = f"the result is {len(payload)} bytes of JSON, too large to be sent"
        payload = as_json({**whole, "result": None, "reason": larger})
    return payload


def as_json(value: object) -> bytes:
    """JSON as it goes out: ASCII, so that nothing in it can break a reader."""
    return json.dumps(value, separators=(",", ":")).encode()


def _request(value: object) -> str | None:
    """The id, where it can be told, so that a refusal says which command it means."""
    found = value.get("id") if isinstance(value, dict) else None
    if isinstance(found, str) and 1 <= len(found) <= _MAX_REQUEST_CHARS and found.isprintable():
        return found
    return None


def _check_text(value: object) -> None:
    """JSON can say half of a surrogate pair, which no other text can."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as exc:
        raise ValueError("half a surrogate pair is no text") from exc


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands there twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def _integer(text: str) -> int:
    number = int(text)
    if not -_INTEGER_END <= number < _INTEGER_END:
        raise ValueError("an integer of more than 64 bits")
    return number


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")
