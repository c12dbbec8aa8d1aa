"""Area `inference`: the agent's engine beside bare ONNX Runtime loops. Digits v2, the held-out scans.

Engine and loops run in processes of their own (inference_child.py) with the same session settings; the
loops are the floor: inputs decoded beforehand, no queue, no second process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import measure
import processes
from inference_child import BATCH, WAITING
from measure import Column, Figure, Options, Rounds, Row, Table

TIMEOUT_S = 60.0
ENGINE_MANY = "Engine, saturated"
ENGINE_SINGLE = "Engine, one at a time"
LOOP_MANY = f"raw loop, batches of {BATCH}"
LOOP_SINGLE = "raw loop, one at a time"
CONTENDERS = {
    ENGINE_MANY: "engine-many",
    LOOP_MANY: "loop-many",
    ENGINE_SINGLE: "engine-single",
    LOOP_SINGLE: "loop-single",
}
COLUMNS = (
    Column("request_us", "us/req", 1),
    Column("cpu_us", "CPU us/req", 1),
    Column("p50_us", "p50 us"),
    Column("p99_us", "p99 us"),
    Column("correct_percent", "right %", 2, spread=False),
    Column("answered", "answered", spread=False),
    Column("sent", "sent", spread=False),
)


def run(options: Options, say: Callable[[str], None]) -> Table:
    """Measure engine and loops in shuffled rounds."""
    many, single = (1194, 597) if options.is_quick else (23_880, 2985)
    rounds = Rounds(options)
    rounds.run(
        {
            name: partial(_sample, kind, many if kind.endswith("many") else single)
            for name, kind in CONTENDERS.items()
        },
        say=say,
    )
    saturated = rounds.ratios("request_us", ENGINE_MANY, LOOP_MANY)
    cpu = rounds.ratios("cpu_us", ENGINE_MANY, LOOP_MANY)
    alone = rounds.ratios("p50_us", ENGINE_SINGLE, LOOP_SINGLE)
    extra_us = Figure.of(
        [
            ours["p50_us"] - floor["p50_us"]
            for ours, floor in zip(
                rounds.samples[ENGINE_SINGLE], rounds.samples[LOOP_SINGLE], strict=True
            )
        ]
    )
    rows = tuple(_row(name, rounds) for name in CONTENDERS)
    notes: tuple[str, ...] = (
        f"time a request, saturated, engine / raw loop: {measure.ratio_text(saturated)}",
        f"CPU a request, saturated, engine / raw loop: {measure.ratio_text(cpu)}",
        (
            f"p50 one at a time, engine / raw loop: {measure.ratio_text(alone)},"
            f" {extra_us.median:.0f} us more for queue, process hop and decoding"
        ),
    )
    if lossy := [f"{row.name} {row.lost}" for row in rows if row.lost]:
        notes = (f"not compared: {', '.join(lossy)}",)
    return Table(
        title="inference: digits v2 (INT8), us a request",
        columns=COLUMNS,
        rows=rows,
        settings=(
            "model: shoal_fleet.digits v2; inputs: the 597 held-out scans, over and over",
            (
                f"saturated: {WAITING} callers that each ask again at once, {many:,} requests;"
                f" batches of at most {BATCH}; one at a time: {single:,} requests"
            ),
            "ONNX Runtime: 1 thread, no spinning; CPU is that of all processes involved",
        ),
        notes=notes,
    )


def _sample(kind: str, requests: int) -> Mapping[str, float]:
    script = Path(__file__).with_name("inference_child.py")
    return processes.asked([script, kind, str(requests)], what=kind, timeout_s=TIMEOUT_S)


def _row(name: str, rounds: Rounds) -> Row:
    figures = rounds.figures(name)
    for counter in ("sent", "answered"):
        total = rounds.total(name, counter)
        figures[counter] = Figure(total, total, total)
    missing = figures["sent"].median - figures["answered"].median
    return Row(name, name.startswith("Engine"), figures, f"LOST {missing:.0f}" if missing else "")
