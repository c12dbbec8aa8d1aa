"""`make bench-trust`: what attackers tried and got, in one table; 1 when a goal is missed.

Counts come from the tests that trust_rows.py names, which are run here, a row a process and as many side by side as
there are cores; costs from trust_cost.py, alone. Loopback only, no root; Mosquitto and faketime have to be
installed for three of the rows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table as Grid

import measure
from trust_rows import IDLE_TEST, ROWS, Line, Outcome, judged, of, read

ROOT = Path(__file__).resolve().parents[1]
VERIFY_MS, OVERHEAD_BYTES = 2.0, 80
WIDTH = 170
# pytest's own words for: all passed, some failed. Anything else is no result.
RAN = (0, 1)


def main(argv: Sequence[str] | None = None) -> int:
    """0: every goal is met; 1: one is missed, or the tests could not be run; 2: usage; 130: interrupted."""
    arguments = _parse(argv)
    console = Console(width=WIDTH, highlight=False)
    began_s = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="shoal-bench-", dir=arguments.dir) as folder:
            facts = measure.machine(Path(folder))
            for name, value in facts.items():
                console.print(f"{name}: {value}", markup=False)
            with console.status("trust: what attackers try"):
                lines = _counted(Path(folder), is_full=arguments.full)
            with console.status("trust: what a signature costs"):
                lines += _costs(Path(folder))
    except (measure.BenchError, OSError) as exc:
        sys.stderr.write(f"bench: {exc}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    _print(console, lines)
    console.print(f"took {time.monotonic() - began_s:.0f} s")
    if arguments.json is not None:
        result = {"machine": facts, "full": arguments.full, "lines": [asdict(one) for one in lines]}
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 1 if any(line.is_met is False for line in lines) else 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Try what attackers would, count what they get, and hold it against the goals.",
        epilog="Example: make bench-trust ARGS='--full --json trust.json'",
    )
    parser.add_argument(
        "--full", action="store_true", help="the full counts: ten million mutations"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the lines there, too")
    parser.add_argument("--dir", type=Path, help="a directory on the disk to measure")
    return parser.parse_args(argv)


def _counted(folder: Path, *, is_full: bool) -> list[Line]:
    # Those that take longest first: else the last core would work long after the others.
    rows = sorted(ROWS, key=lambda row: -row.weight)
    runs = [row.tests(is_full=is_full) for row in rows] + [(IDLE_TEST,)]
    outcomes: dict[str, Outcome] = {}
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        try:
            places = [folder / f"row-{number}" for number in range(len(runs))]
            for found in pool.map(_run, places, runs):
                outcomes |= found
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    lines = [judged(row, of(row.tests(is_full=is_full), outcomes)) for row in ROWS]
    idle_bytes = of((IDLE_TEST,), outcomes).idle_bytes
    told = "not measured" if idle_bytes is None else f"{idle_bytes} bytes"
    return [*lines, Line("metadata that a board fetches when nothing is new", told, "-", None)]


def _run(folder: Path, tests: Sequence[str]) -> dict[str, Outcome]:
    """What these tests recorded, by id."""
    folder.mkdir()
    report = folder / "tests.xml"
    ran = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "junit_family=xunit1",
            f"--junitxml={report}", f"--basetemp={folder / 'tests'}", *tests,
        ],
        cwd=ROOT, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if ran.returncode not in RAN or not report.exists():
        raise measure.BenchError(f"pytest ended with {ran.returncode}: {ran.stdout[-2000:]}")
    return read(report.read_bytes())


def _costs(folder: Path) -> list[Line]:
    ran = subprocess.run(
        [sys.executable, Path(__file__).with_name("trust_cost.py"), folder],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    if ran.returncode:
        raise measure.BenchError(f"trust_cost.py: {ran.stderr[-2000:]}")
    cost = json.loads(ran.stdout)
    again_ms, overhead = cost["again_ms"], int(cost["overhead_bytes"])
    return [
        Line(
            "a signed command that came before: verify, find it, answer",
            f"{again_ms:.3f} ms, of them {cost['verify_ms']:.3f} verify",
            f"<= {VERIFY_MS:g} ms",
            again_ms <= VERIFY_MS,
        ),
        Line(
            "a new one: verify, store with its first answer", f"{cost['new_ms']:.3f} ms", "-", None
        ),
        Line(
            "bytes that a signature adds to a command",
            f"{overhead} bytes",
            f"<= {OVERHEAD_BYTES} bytes",
            overhead <= OVERHEAD_BYTES,
        ),
    ]


def _print(console: Console, lines: Sequence[Line]) -> None:
    grid = Grid(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for heading in ("figure", "measured", "goal", ""):
        grid.add_column(heading)
    for line in lines:
        verdict = {True: "met", False: "MISSED", None: ""}[line.is_met]
        grid.add_row(line.figure, line.measured, line.goal, verdict)
    console.print(grid)


if __name__ == "__main__":
    sys.exit(main())
