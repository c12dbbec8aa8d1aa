"""TOML text -> a frozen struct; unknown keys and wrong values are errors naming file and key."""

import tomllib
from typing import Any, TypeVar

import msgspec

from shoal_contract.errors import FileFormatError

T = TypeVar("T", bound=msgspec.Struct)

MAX_BYTES = 256 * 1024


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A TOML table: subclass it, one field a key; a key that is no field is an error."""


def decode(data: bytes, kind: type[T], *, source: str) -> T:
    """The table in these bytes.

    Args:
        data: UTF-8 TOML, at most 256 KiB.
        kind: a Table.
        source: what to call the file in an error.

    Raises:
        FileFormatError: one line that names the file and the key.
    """
    if len(data) > MAX_BYTES:
        raise FileFormatError(f"{source}: {len(data)} bytes is too large for a TOML file")
    try:
        table = tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as exc:
        raise FileFormatError(f"{source}: not UTF-8 text") from exc
    except (tomllib.TOMLDecodeError, RecursionError) as exc:
        raise FileFormatError(f"{source}: not TOML: {exc}") from exc
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as exc:
        raise FileFormatError(f"{source}: {in_words(str(exc))}") from exc


def plain(data: bytes) -> dict[str, Any]:
    """The plain values of TOML that `decode` has taken."""
    return tomllib.loads(data.decode("utf-8"))


def in_words(message: str) -> str:
    """Say msgspec's 'Object contains unknown field `x` - at `$.a`' in the words of a TOML file."""
    text, _, path = message.partition(" - at `")
    key = path.rstrip("`").removeprefix("$").lstrip(".")
    text = text.replace("Object contains unknown field", "unknown key")
    text = text.replace("Object missing required field", "missing key")
    return f"[{key}] {text}" if key else text
