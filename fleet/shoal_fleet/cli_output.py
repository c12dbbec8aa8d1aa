"""What the operator's commands share: the way to the controller, and how values are shown."""

import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import quote

import typer

from shoal_fleet.errors import UsageError

if TYPE_CHECKING:
    from shoal_fleet.client import FleetClient

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]

_UNITS: Final = ("B", "kB", "MB", "GB", "TB")
_STEP: Final = 1000.0
# JSON escapes those below 0x20 itself.
_ESCAPED_CONTROLS: Final = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}


@dataclass(frozen=True, slots=True)
class Target:
    """Which controller the command line speaks to."""

    state_dir: Path
    url: str | None = None
    ca_file: Path | None = None
    plaintext: bool = False

    def connect(self) -> "FleetClient":
        """A client for it."""
        # Imported when it is used: `shoal --help` answers at once.
        from shoal_fleet.client import FleetClient  # noqa: PLC0415 - see above

        return FleetClient.at(
            state_dir=self.state_dir,
            url=self.url,
            ca_file=self.ca_file,
            plaintext=self.plaintext,
        )


def target(context: typer.Context) -> Target:
    """The controller that this invocation speaks to."""
    found = context.find_object(Target)
    if found is None:
        raise UsageError("no controller is named")
    return found


def print_json(value: object) -> None:
    """One line of JSON, in any script but without characters that steer a terminal."""
    typer.echo(json.dumps(value, ensure_ascii=False).translate(_ESCAPED_CONTROLS))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table at a terminal; tab-separated lines with a head line elsewhere."""
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            typer.echo("\t".join(map(printable, row)))
        return
    from rich.console import Console  # noqa: PLC0415 - only where it is shown
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        # As text: what a node says must not be read as markup.
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console().print(table)


def printable(text: str) -> str:
    """What a node says, in one line and without the power to steer a terminal."""
    return "".join(char if char.isprintable() or char == "\t" else "�" for char in text)


def segment(text: str) -> str:
    """What a person typed, as one level of a path."""
    return quote(text, safe="")


def parse_value(text: str) -> Any:
    """A value of the command line: a JSON literal, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def parse_pairs(texts: Iterable[str]) -> dict[str, str]:
    """`key=value` arguments.

    Raises:
        UsageError: one is not, or a key comes twice.
    """
    pairs: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"{text!r} is not key=value")
        if key in pairs:
            raise UsageError(f"{key} is given twice")
        pairs[key] = value
    return pairs


def ago(at_ms: int, now_ms: int | None = None) -> str:
    """How long ago: `5 s ago`."""
    now = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    seconds = max(0, (now - at_ms) // 1000)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def clock(at_ms: int) -> str:
    """Local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_ms / 1000))


def size(size_bytes: float | None) -> str:
    """A number of bytes for people: `34.6 kB`."""
    if size_bytes is None:
        return "?"
    for unit in _UNITS:
        if size_bytes < _STEP or unit == _UNITS[-1]:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= _STEP
    raise AssertionError  # the last unit takes everything
