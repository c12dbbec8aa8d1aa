"""Area `infer`: the agent's engine beside bare ONNX Runtime and beside a thread a request, on generated networks.

Every subject is a process of its own (infer_child.py), in an order drawn for each round; ratios are taken round by
round. The CPU time a request comes first: unlike the rest it says much on a busy machine, too.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import exported_minilm
import infer_models
import processes
from infer_child import CALLERS, MAX_BATCH, SWAP_CALLERS, SWAPS
from measure import Column, Figure, Goal, Options, Rounds, Row, Table

TIMEOUT_S = 600.0  # a swap on a machine where much else runs: what loads is nicer
CAPACITY_TRIES = 3
LOAD_SHARE = 0.9
TEXT_S = 3.0  # 64 callers wait for most of a second each
ENGINES = ("engine-thread", "engine-process")
LARGE = ("mlp", "cnn")
COLUMNS = (
    Column("cpu_us", "CPU us/req", 1),
    Column("engine_cpu_us", "event loop's", 1),
    Column("rate", "req/s"),
    Column("batch", "batch", 1, spread=False),
    Column("p50_us", "p50 us"),
    Column("p99_us", "p99 us"),
    Column("worker_mib", "worker MiB", 1),
    Column("failed", "failed", spread=False),
)


def run(options: Options, say: Callable[[str], None]) -> Table:
    """Measure engines and floors in shuffled rounds."""
    seconds = 0.5 if options.is_quick else 3.0
    directories = {name: options.folder / f"infer-{name}" for name in infer_models.MODELS}
    for name, directory in directories.items():
        say(f"generating {name}")
        infer_models.write(directory, name)
        infer_models.write(directory / "next", name, seed=1)
    large, text = LARGE, ()
    if asked := exported_minilm.wanted():
        directories["minilm"] = exported_minilm.make(options.folder, asked, say).release
        large, text = (*LARGE, "minilm"), ("minilm",)
    capacity = {name: _capacity(directories[name], name, say) for name in ("micro", "cnn")}
    rounds = Rounds(options)
    subjects: dict[str, Callable[[], Mapping[str, float]]] = {
        f"{name}: {subject}": partial(
            _sample,
            subject,
            directories[name],
            name,
            max(seconds, TEXT_S) if name in text else seconds,
        )
        for name in (*infer_models.MODELS, *text)
        for subject in ("loop-1", "loop-best", *ENGINES)
    }
    for name, rate in capacity.items():
        for subject in ("open-threads", "open-thread", "open-process"):
            subjects[f"{name}: {subject}"] = partial(
                _sample, subject, directories[name], name, seconds, LOAD_SHARE * rate
            )
    for subject in ("tight", "paced", "paced-thread", "loop-paced"):
        subjects[f"mlp: {subject}"] = partial(_sample, subject, directories["mlp"], "mlp", seconds)
    for subject in ("swap", "swap-thread", "steady", "loop-steady"):
        subjects[f"mlp: {subject}"] = partial(_sample, subject, directories["mlp"], "mlp", seconds)
    subjects["micro: worker"] = partial(_sample, "worker", directories["micro"], "micro", seconds)
    subjects["callers"] = partial(_sample, "callers", options.folder, "micro", seconds)
    rounds.run(subjects, say=say)
    return Table(
        title="infer: generated networks (FP32), CPU us a request",
        columns=COLUMNS,
        rows=tuple(_row(name, rounds) for name in subjects),
        goals=tuple(_goals(rounds, large)),
        settings=(
            *(f"{name}: {text}" for name, (_, _, text) in infer_models.MODELS.items()),
            *(f"{name}: all-MiniLM-L6-v2, INT8, sentences of 32 tokens" for name in text),
            f"loop: session.run over and over, with one row or with the best batch of up to {MAX_BATCH}",
            (
                f"engine: {CALLERS} callers that ask again at once, the model in a thread of the agent or in a worker"
                f" process; batches of at most {MAX_BATCH}, the size chosen by the engine's own calibration"
            ),
            (
                "open: requests at "
                + ", ".join(
                    f"{LOAD_SHARE * rate:,.0f}/s ({name})" for name, rate in capacity.items()
                )
                + f", {LOAD_SHARE:g} of what loop-1 did before the rounds; Poisson arrivals, latency from when a"
                " request was due; open-threads: a thread a request"
            ),
            (
                f"swap: {SWAP_CALLERS} callers while {SWAPS} releases are admitted, with their trial, and switched to;"
                " steady: the same callers, and no swap; loop-steady: loop-1 for as long"
            ),
            "worker: PSS of the worker process alone; pages that it shares with the agent count a half",
            "ONNX Runtime: 1 thread, no spinning; CPU is that of all processes involved",
        ),
    )


def _goals(rounds: Rounds, large: Sequence[str]) -> list[Goal]:
    cpu = [
        Goal(f"{name}: CPU a request, {engine} / loop-best", "x", ratio, decimals=2)
        for name in ("micro", *large)
        for engine in ENGINES
        for ratio in (rounds.ratios("cpu_us", f"{name}: {engine}", f"{name}: loop-best"),)
    ]
    throughput = [
        Goal(
            f"{name}: throughput, {engine} / loop-best",
            "x",
            rounds.ratios("rate", f"{name}: {engine}", f"{name}: loop-best"),
            0.95 if engine == "engine-thread" else 0.90,
            is_minimum=True,
            decimals=3,
        )
        for name in large
        for engine in ENGINES
    ]
    return [
        Goal(
            "engine's CPU a request, in process (micro, callers taken off)",
            "us",
            _difference(rounds, "engine_cpu_us", "micro: engine-thread", "callers"),
            12,
            decimals=1,
        ),
        *cpu,
        *throughput,
        Goal(
            "micro: throughput, engine-thread / loop-1",
            "x",
            rounds.ratios("rate", "micro: engine-thread", "micro: loop-1"),
            2.5,
            is_minimum=True,
            decimals=2,
        ),
        *(
            Goal(
                f"{name}: p99 at {LOAD_SHARE:g} x loop-1, {engine} / open-threads",
                "x",
                rounds.ratios("p99_us", f"{name}: {engine}", f"{name}: open-threads"),
                0.2,
                decimals=2,
            )
            for name in ("micro", "cnn")
            for engine in ("open-thread", "open-process")
        ),
        Goal(
            "mlp: CPU an inference, 20 a second / one after the other",
            "x",
            rounds.ratios("cpu_us", "mlp: paced", "mlp: tight"),
            1.2,
            decimals=2,
        ),
        Goal(
            "mlp: CPU an inference at 20 a second, worker process / bare loop at that pace",
            "x",
            rounds.ratios("cpu_us", "mlp: paced", "mlp: loop-paced"),
            decimals=2,
        ),
        Goal(
            "mlp: CPU an inference at 20 a second, thread / bare loop at that pace",
            "x",
            rounds.ratios("cpu_us", "mlp: paced-thread", "mlp: loop-paced"),
            decimals=2,
        ),
        Goal(
            "mlp: bare loop, 20 a second / one after the other (the floor here)",
            "x",
            rounds.ratios("cpu_us", "mlp: loop-paced", "mlp: loop-1"),
            decimals=2,
        ),
        Goal("swap: failed requests", "", _total(rounds, "mlp: swap", "failed"), 0),
        Goal(
            "swap: slowest request / median",
            "x",
            rounds.figures("mlp: swap")["max_to_median"],
            3,
            decimals=1,
        ),
        Goal(
            "the same with the model in a thread of the agent",
            "x",
            rounds.figures("mlp: swap-thread")["max_to_median"],
            decimals=1,
        ),
        Goal(
            "the same without a swap",
            "x",
            rounds.figures("mlp: steady")["max_to_median"],
            decimals=1,
        ),
        Goal(
            "bare loop for as long, nothing beside it (the floor here)",
            "x",
            rounds.figures("mlp: loop-steady")["max_to_median"],
            decimals=1,
        ),
        Goal(
            "worker with the micro model, PSS (the agent's own is in area bus)",
            "MiB",
            rounds.figures("micro: worker")["worker_mib"],
            decimals=1,
        ),
    ]


def _difference(rounds: Rounds, figure: str, ours: str, floor: str) -> Figure:
    pairs = zip(rounds.samples[ours], rounds.samples[floor], strict=True)
    return Figure.of([one[figure] - other[figure] for one, other in pairs])


def _total(rounds: Rounds, name: str, figure: str) -> Figure:
    total = rounds.total(name, figure)
    return Figure(total, total, total)


def _capacity(directory: Path, name: str, say: Callable[[str], None]) -> float:
    say(f"capacity of {name}")
    tries = [_sample("loop-1", directory, name, 1.0)["rate"] for _ in range(CAPACITY_TRIES)]
    return statistics.median(tries)


def _sample(
    subject: str, directory: Path, model: str, seconds: float, rate: float = 0.0
) -> Mapping[str, float]:
    script = Path(__file__).with_name("infer_child.py")
    return processes.asked(
        [script, subject, directory, model, f"{seconds:g}", f"{rate:g}"],
        what=f"{subject} ({model})",
        timeout_s=TIMEOUT_S,
    )


def _row(name: str, rounds: Rounds) -> Row:
    figures = rounds.figures(name)
    is_ours = "loop" not in name and "threads" not in name
    if "failed" not in figures:
        return Row(name, is_ours, figures)
    figures["failed"] = _total(rounds, name, "failed")
    failed = figures["failed"].median
    return Row(name, is_ours, figures, f"FAILED {failed:.0f}" if failed else "")
