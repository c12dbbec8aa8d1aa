"""Area `infer-mqtt`: from a request over MQTT to its answer, across a network that loses packets.

Each sample is a process of its own (infer_mqtt_child.py), with real agents, a real broker and the kernel's TCP between them.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import processes
from infer_mqtt_child import PER_SECOND
from measure import BenchError, Column, Figure, Goal, Options, Rounds, Row, Table

LOSSES = (0.0, 0.05)
TIMEOUT_S = 180.0
GOAL_MS = 100
COLUMNS = (
    Column("p50_ms", "p50 ms", 1),
    Column("p99_ms", "p99 ms", 1),
    Column("failed", "failed", spread=False),
)


def run(options: Options, say: Callable[[str], None]) -> Table:
    """Measure without and with loss, in shuffled rounds."""
    seconds = 15.0 if options.is_quick else 30.0
    title = "infer-mqtt: from a request over MQTT to its answer"
    if refused := _refusal(options.folder):
        reason = f"everything: no network that loses packets can be made here ({refused})"
        return Table(title=title, columns=COLUMNS, rows=(), skipped=(reason,))
    rounds = Rounds(options)
    seeds = iter(range(options.seed % 10_000, 1 << 31))
    subjects: dict[str, Callable[[], Mapping[str, float]]] = {
        _name(loss): partial(_measured, options.folder, loss, seconds, seeds) for loss in LOSSES
    }
    rounds.run(subjects, say=say)
    return Table(
        title=title,
        columns=COLUMNS,
        rows=tuple(_row(name, rounds) for name in subjects),
        goals=(
            Goal(
                f"p99 at {LOSSES[-1]:.0%} loss",
                "ms",
                rounds.figures(_name(LOSSES[-1]))["p99_ms"],
                GOAL_MS,
                decimals=1,
            ),
        ),
        settings=(
            f"requests for the digits model at {PER_SECOND}/s, Poisson arrivals, latency from when one was due, {seconds:g} s a round",
            "agent and who asks it on one side of the wire, the embedded broker on the other: a request crosses it four times",
            (
                "loss: of every packet by itself, in both directions, acknowledgements too; no delay is added (two network namespaces,"
                " a wire in user space between two TUN devices; TCP is the kernel's)"
            ),
        ),
    )


def _name(loss: float) -> str:
    return f"{loss:.0%} loss" if loss else "no loss"


def _row(name: str, rounds: Rounds) -> Row:
    figures = rounds.figures(name)
    total = rounds.total(name, "failed")
    figures["failed"] = Figure(total, total, total)
    return Row(name, is_ours=True, figures=figures, lost=f"FAILED {total:.0f}" if total else "")


def _refusal(folder: Path) -> str:
    """Why this machine cannot; empty: it can."""
    return str(_sample(folder, 0.0, 0.5, 1).get("refused", ""))


def _measured(
    folder: Path, loss: float, seconds: float, seeds: Iterator[int]
) -> Mapping[str, float]:
    took = _sample(folder, loss, seconds, next(seeds))
    if "refused" in took:
        raise BenchError(str(took["refused"]))
    return {
        "p50_ms": took["p50_us"] / 1e3,
        "p99_ms": took["p99_us"] / 1e3,
        "failed": took["failed"],
    }


def _sample(folder: Path, loss: float, seconds: float, seed: int) -> dict:
    script = Path(__file__).with_name("infer_mqtt_child.py")
    with (
        tempfile.TemporaryDirectory(dir=folder) as home,
        processes.child(
            [processes.PYTHON, script, f"{loss:g}", f"{seconds:g}", str(seed), home],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as child,
    ):
        try:
            said, _ = child.communicate(timeout=TIMEOUT_S)
            return json.loads(said.splitlines()[-1])
        except (subprocess.TimeoutExpired, ValueError, IndexError) as exc:
            raise BenchError(f"requests over MQTT at {loss:.0%} loss were not measured") from exc
