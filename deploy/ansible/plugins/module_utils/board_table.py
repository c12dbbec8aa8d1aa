# Copyright: The Shoal authors
# SPDX-License-Identifier: Apache-2.0
"""Reads `boards.csv`: one line a board that is to be flashed. Pure; whatever is wrong is named by line and column."""

from __future__ import annotations

import csv
import io
import ipaddress
import re
from dataclasses import dataclass

# What a table of ten thousand boards needs, five times over.
MAX_TABLE_BYTES = 8 * 2**20
COLUMNS = ("node", "token", "address", "gateway", "dns")
REQUIRED = ("node", "token")

_NODE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,128}")


class TableError(Exception):
    """The table is wrong; the message names line and column."""


@dataclass(frozen=True)
class Board:
    """One board: who it is to be, what admits it once, and its address where DHCP does not give one.

    `address` is CIDR (`192.168.7.20/24`), `gateway` an address of that network, `dns` addresses; empty without.
    """

    node: str
    token: str
    address: str = ""
    gateway: str = ""
    dns: tuple[str, ...] = ()


def parse(content: bytes) -> list[Board]:
    """The boards of a table in UTF-8 whose first line names its columns. Raises TableError."""
    if len(content) > MAX_TABLE_BYTES:
        raise TableError(f"{len(content)} bytes are more than {MAX_TABLE_BYTES}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = content[: exc.start].count(b"\n") + 1
        raise TableError(f"line {line}: not UTF-8") from exc
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    boards: list[Board] = []
    seen: dict[tuple[str, str], int] = {}
    names: list[str] = []
    try:
        for row in rows:
            if not row:
                continue
            if not names:
                names = _columns(row)
                continue
            board = _board(rows.line_num, names, row)
            for column in ("node", "token", "address"):
                value = getattr(board, column).split("/")[0]
                first = seen.setdefault((column, value), rows.line_num) if value else rows.line_num
                if first != rows.line_num:
                    shown = f" {value}" if column != "token" else ""
                    raise _wrong(rows.line_num, column, f"{column}{shown} stands in line {first}")
            boards.append(board)
    except csv.Error as exc:
        raise TableError(f"line {rows.line_num}: {exc}") from exc
    if not boards:
        raise TableError("there is no board in it")
    return boards


def _columns(row: list[str]) -> list[str]:
    for column in row:
        if column not in COLUMNS:
            raise _wrong(1, column, f"there is no such column; there are {', '.join(COLUMNS)}")
        if row.count(column) > 1:
            raise _wrong(1, column, "stands there twice")
    for column in REQUIRED:
        if column not in row:
            raise _wrong(1, column, "is missing")
    return row


def _board(line: int, names: list[str], row: list[str]) -> Board:
    if len(row) != len(names):
        raise TableError(f"line {line}: {len(row)} columns, the first line has {len(names)}")
    given = dict(zip(names, row, strict=True))
    node, token = given["node"], given["token"]
    if not _NODE.fullmatch(node):
        raise _wrong(line, "node", f"{node[:80]!r} is not 1 to 63 of a-z, 0-9 and - inside")
    if not _TOKEN.fullmatch(token):
        # Not shown: it may be a good one with a letter too much.
        raise _wrong(line, "token", "is not a token as shoal token create prints it")
    address, gateway, dns = _network(line, given)
    return Board(node, token, address, gateway, dns)


def _network(line: int, given: dict[str, str]) -> tuple[str, str, tuple[str, ...]]:
    """Address, gateway and name servers of a line, checked against each other."""
    address, gateway = given.get("address", ""), given.get("gateway", "")
    dns = tuple(given.get("dns", "").split())
    if not address:
        for column, value in (("gateway", gateway), ("dns", dns)):
            if value:
                raise _wrong(line, column, "needs an address")
        return "", "", ()
    if "/" not in address:
        raise _wrong(line, "address", f"{address[:80]!r} needs its prefix, such as /24")
    try:
        network = ipaddress.ip_interface(address).network
    except ValueError as exc:
        raise _wrong(line, "address", f"{address[:80]!r} is not an address and a prefix") from exc
    if gateway and _address(line, "gateway", gateway) not in network:
        raise _wrong(line, "gateway", f"{gateway} is not in {network}")
    for server in dns:
        _address(line, "dns", server)
    return address, gateway, dns


def _address(line: int, column: str, value: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(value)
    except ValueError as exc:
        raise _wrong(line, column, f"{value[:80]!r} is not an address") from exc


def _wrong(line: int, column: str, says: str) -> TableError:
    return TableError(f"line {line}, column {column[:80]}: {says}")
