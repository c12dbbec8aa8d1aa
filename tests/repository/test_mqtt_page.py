"""docs/mqtt.md has a row for every packet and property of MQTT 5, and each row names tests that exist."""

import re
from pathlib import Path

from shoal_broker import codec, packet_text

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/mqtt.md"
NAMED = re.compile(r"`(test_\w+\.py)::(test_\w+)`")
DEFINED = re.compile(r"^(?:async )?def (test_\w+)", re.MULTILINE)
ROW = re.compile(r"^\| (?!.*shown by)(?!-)(.*) \|$", re.MULTILINE)


def names_by_file() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for path in (ROOT / "tests/shoal_broker").rglob("test_*.py"):
        names = DEFINED.findall(path.read_text())
        found.setdefault(path.name, set()).update(names)
    return found


def test_every_test_that_the_page_names_exists():
    known = names_by_file()
    named = NAMED.findall(PAGE.read_text())
    assert len(named) > 100
    assert [f"{file}::{name}" for file, name in named if name not in known.get(file, ())] == []


def test_every_row_names_a_test():
    rows = [row for row in ROW.findall(PAGE.read_text()) if not set(row) <= set("-| ")]
    assert len(rows) > 90
    assert [row for row in rows if not NAMED.search(row)] == []


def test_every_property_has_a_row():
    rows = {
        int(code, 16) for code in re.findall(r"^\| (0x\w\w) [a-z]", PAGE.read_text(), re.MULTILINE)
    }
    assert rows >= set(packet_text._PROPERTIES)


def test_every_packet_has_a_row():
    text = PAGE.read_text()
    kinds = [
        name.removesuffix("Packet").upper() for name in codec.__all__ if name.endswith("Packet")
    ]
    kinds.remove("")
    assert len(kinds) == 15
    assert [kind for kind in kinds if kind not in text] == []
