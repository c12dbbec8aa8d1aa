"""A list of nodes as CSV: a column `node`, perhaps `alias`, every other column a label. Pure and strict.

An empty cell says nothing. The first mistake is the only one that is told: line and column.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from shoal_contract.errors import ContractError
from shoal_contract.topics import check_node_id
from shoal_fleet.aliases import check_alias
from shoal_fleet.errors import RequestError
from shoal_fleet.selection import MAX_LABELS, check_label

MAX_BYTES: Final = 16 << 20
MAX_ROWS: Final = 100_000
MAX_CELL: Final = 256
NODE: Final = "node"
ALIAS: Final = "alias"


@dataclass(frozen=True, slots=True)
class Row:
    """One node. `line` is where it stands; `alias` "" and labels that are not here stay as they are."""

    line: int
    node: str
    alias: str
    labels: Mapping[str, str]


def parse(data: bytes) -> list[Row]:
    """The rows of a file.

    Raises:
        RequestError: it is not such a list; names line and column.
    """
    if len(data) > MAX_BYTES:
        raise RequestError(f"the list is larger than {MAX_BYTES} bytes")
    try:
        # Excel begins a file with a mark of the byte order.
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = data[: exc.start].count(b"\n") + 1
        raise RequestError(f"line {line}: byte {exc.start} is not UTF-8 text") from exc
    reader = csv.reader(text.splitlines(), strict=True)
    columns: list[str] = []
    rows: list[Row] = []
    try:
        for cells in reader:
            if not columns:
                columns = _columns(cells, reader.line_num)
            elif any(cell.strip() for cell in cells):
                rows.append(_row(cells, columns, reader.line_num))
            if len(rows) > MAX_ROWS:
                raise RequestError(f"line {reader.line_num}: more than {MAX_ROWS} nodes")
    except csv.Error as exc:
        raise RequestError(f"line {reader.line_num}: {exc}") from exc
    if not columns:
        raise RequestError("line 1: the list is empty; its first line names the columns")
    _check_distinct(rows)
    return rows


def _check_distinct(rows: Sequence[Row]) -> None:
    nodes: dict[str, int] = {}
    aliases: dict[str, int] = {}
    for row in rows:
        for name, value, seen in ((NODE, row.node, nodes), (ALIAS, row.alias, aliases)):
            if value and (first := seen.setdefault(value, row.line)) != row.line:
                raise RequestError(
                    f"line {row.line}, column {name}: {value!r} is in line {first}, too"
                )


def _columns(cells: Sequence[str], line: int) -> list[str]:
    columns = [cell.strip() for cell in cells]
    for index, name in enumerate(columns, start=1):
        if columns.index(name) != index - 1:
            raise RequestError(f"line {line}, column {index}: {name!r} is there twice")
        if name in {NODE, ALIAS}:
            continue
        try:
            check_label(name, "x")
        except RequestError as exc:
            raise RequestError(f"line {line}, column {index}: {exc}") from exc
    if NODE not in columns:
        raise RequestError(f"line {line}: no column is called {NODE!r}")
    if len(columns) > MAX_LABELS + 2:
        raise RequestError(f"line {line}: a node has at most {MAX_LABELS} labels")
    return columns


def _row(cells: Sequence[str], columns: Sequence[str], line: int) -> Row:
    if len(cells) != len(columns):
        raise RequestError(f"line {line}: {len(cells)} cells, but {len(columns)} columns")
    given = {name: cell.strip() for name, cell in zip(columns, cells, strict=True)}
    for name, value in given.items():
        if len(value) > MAX_CELL:
            raise RequestError(f"line {line}, column {name}: longer than {MAX_CELL} characters")
        try:
            if name == NODE:
                check_node_id(value)
            elif value and name == ALIAS:
                check_alias(value)
            elif value:
                check_label(name, value)
        except (RequestError, ContractError) as exc:
            raise RequestError(f"line {line}, column {name}: {exc}") from exc
    labels = {name: value for name, value in given.items() if value and name not in {NODE, ALIAS}}
    return Row(line, given[NODE], given.get(ALIAS, ""), labels)
