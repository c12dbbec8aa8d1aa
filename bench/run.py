"""`make bench`: measures Shoal beside its peers in one run and prints one table an area.

Loopback only, no root, nothing downloaded. What an area measures stands in bus.py, broker.py,
delta.py, delta_pairs.py, inference.py, infer.py,
infer_memory.py, infer_mqtt.py, infer_int8.py, infer_http.py, rollout.py and sources.py; what the figures mean in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import importlib
import json
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as Grid

import measure
from measure import BenchError, Column, Figure, Options, Row, Table

PARTS: dict[str, tuple[str, ...]] = {
    "bus": ("command", "sessions", "agent", "wire"),
    "broker": ("echo", "amqtt", "fanout", "idle", "durable"),
    "delta": (),
    "delta-pairs": ("speed", "sizes"),
    "inference": (),
    "infer": (),
    "infer-http": (),
    "infer-int8": (),
    "infer-memory": (),
    "infer-mqtt": (),
    "rollout": (),
    "sources": (),
}
# What needs more than `make setup`, or takes long, is measured when it is asked for.
AREAS = tuple(PARTS)
LONG_AREAS = frozenset(
    {
        "delta-pairs",
        "infer",
        "infer-http",
        "infer-int8",
        "infer-memory",
        "infer-mqtt",
        "rollout",
        "sources",
    }
)
DEFAULT_AREAS = tuple(area for area in PARTS if area not in LONG_AREAS)
QUICK_ROUNDS = 1
WIDTH = 160


def main(argv: Sequence[str] | None = None) -> int:
    """Run the areas asked for. 0: done; 1: a benchmark failed; 2: usage; 130: interrupted."""
    arguments = _parse(argv)
    console = Console(width=WIDTH, highlight=False, soft_wrap=False)
    started = time.monotonic()
    # As an exception, so that brokers and publishers are ended on the way out.
    signal.signal(signal.SIGTERM, _end)
    try:
        with tempfile.TemporaryDirectory(prefix="shoal-bench-", dir=arguments.dir) as folder:
            options = Options(
                rounds=arguments.rounds or (QUICK_ROUNDS if arguments.quick else 5),
                seed=secrets.randbelow(1 << 31) if arguments.seed is None else arguments.seed,
                is_quick=arguments.quick,
                folder=Path(folder),
                parts=frozenset(arguments.part or ()),
            )
            measure.refuse_memory_disk(options.folder)
            facts = measure.machine(options.folder)
            _print_facts(console, facts, options)
            tables = {area: _run_area(area, options, console) for area in _areas(arguments)}
        took_s = time.monotonic() - started
        console.print(f"took {took_s:.0f} s")
        if arguments.json is not None:
            _write_json(arguments.json, facts, options, tables, took_s)
    except (BenchError, OSError) as exc:
        sys.stderr.write(f"bench: {exc}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _end(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measure Shoal beside its peers, on this machine, in one run.",
        epilog="Example: make bench ARGS='--quick --area delta --json bench.json'",
    )
    parser.add_argument(
        "--area",
        choices=AREAS,
        action="append",
        help="default: all but the long ones; repeatable",
    )
    parser.add_argument(
        "--part",
        choices=[part for parts in PARTS.values() for part in parts],
        action="append",
        help="of bus, broker or delta-pairs, default: all; repeatable",
    )
    parser.add_argument("--rounds", type=_rounds, help="rounds an area (default 5; 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="fewer messages: a look, not a figure")
    parser.add_argument("--seed", type=int, help="of the order of the contenders (default: drawn)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument(
        "--dir", type=Path, help="a directory on the disk to measure (default: the temporary one)"
    )
    arguments = parser.parse_args(argv)
    if not _areas(arguments):
        parser.error(f"none of these parts belongs to {' or '.join(arguments.area)}")
    return arguments


def _areas(arguments: argparse.Namespace) -> list[str]:
    """The areas asked for, without those of which other parts than theirs were."""
    asked: list[str] = arguments.area or list(DEFAULT_AREAS)
    if not arguments.part:
        return asked
    return [area for area in asked if set(PARTS[area]) & set(arguments.part)]


def _rounds(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 100:
        raise argparse.ArgumentTypeError(f"{number} rounds; 1 to 100 are allowed")
    return number


def _run_area(area: str, options: Options, console: Console) -> Table:
    run: Callable[[Options, Callable[[str], None]], Table] = importlib.import_module(
        area.replace("-", "_")
    ).run
    with console.status("") as status:
        table = run(options, lambda step: status.update(f"{area}: {step}"))
    _print_table(console, table)
    return table


def _print_facts(console: Console, facts: dict[str, str], options: Options) -> None:
    for name, value in facts.items():
        console.print(f"{name}: {value}", markup=False)
    quick = ", quick: a look, not a figure" if options.is_quick else ""
    console.print(f"rounds: {options.rounds}, order drawn from seed {options.seed}{quick}\n")


def _print_table(console: Console, table: Table) -> None:
    grid = Grid(
        title=table.title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    grid.add_column("", no_wrap=True)
    for column in table.columns:
        grid.add_column(column.heading, justify="right", no_wrap=True)
    for row in table.rows:
        # What has no figure in a column stands among the goals.
        if any(column.name in row.figures for column in table.columns if column.spread):
            cells = (_cell(row, column) for column in table.columns)
            grid.add_row(row.name + (f" ({row.lost})" if row.lost else ""), *cells)
    if grid.row_count:
        console.print(grid)
    if table.goals:
        console.print(_goals(table))
    for lines, before in (
        (table.notes, "=> "),
        (table.settings, "   "),
        (table.skipped, "   skipped: "),
    ):
        for line in lines:
            console.print(before + line, markup=False)
    console.print()


def _goals(table: Table) -> Grid:
    grid = Grid(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for heading in ("figure", "measured", "goal", ""):
        grid.add_column(heading, justify="left" if heading == "figure" else "right", no_wrap=True)
    for goal in table.goals:
        as_number = Column(goal.name, goal.name, goal.decimals)
        measured = f"{_number(goal.figure.median, as_number)} {_spread(goal.figure, as_number)}"
        wanted, verdict = "-", ""
        if goal.limit is not None:
            sign = ">=" if goal.is_minimum else "<="
            wanted = f"{sign} {goal.limit:,g} {goal.unit}".rstrip()
            verdict = "met" if goal.is_met else "MISSED"
        grid.add_row(goal.name, f"{measured} {goal.unit}".rstrip(), wanted, verdict)
    return grid


def _cell(row: Row, column: Column) -> str:
    figure = row.figures.get(column.name)
    if figure is None:
        return "-"
    if not column.spread or figure.low == figure.high:
        return _number(figure.median, column)
    return f"{_number(figure.median, column)}\n{_spread(figure, column)}"


def _spread(figure: Figure, column: Column) -> str:
    return f"({_number(figure.low, column)}..{_number(figure.high, column)})"


def _number(value: float, column: Column) -> str:
    return f"{value:,.{column.decimals}f}"


def _write_json(
    path: Path, facts: dict[str, str], options: Options, tables: dict[str, Table], took_s: float
) -> None:
    result: dict[str, Any] = {
        "machine": facts,
        "rounds": options.rounds,
        "seed": options.seed,
        "quick": options.is_quick,
        "took_s": round(took_s, 1),
        "areas": {area: table.to_json() for area, table in tables.items()},
    }
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
