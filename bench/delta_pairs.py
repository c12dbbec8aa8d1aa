"""Area `delta-pairs`: our delta beside every other tool's, on a corpus of pairs; and its goals.

The corpus (bench/corpus) and the tools (delta_peers.py) need .venv-bench-delta: `make bench-delta`.
Sizes are the same in every round, so each is taken once, several pairs at a time; memory and speed are
measured afterwards, alone, in CPU time. The picture is written when there is one of every family.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import delta_goals
import processes
from delta_goals import LARGE, PAIR, figure, mean
from delta_plot import Bar, drawn
from measure import BenchError, Column, Options, Row, Table

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "build" / "delta-corpus"
PLOT = ROOT / "docs" / "benchmarks" / "delta.svg"
PEERS_PYTHON = ROOT / ".venv-bench-delta" / "bin" / "python"
# For a pair of the corpus with all tools; for a large one, which takes minutes of CPU.
TIMEOUT_S, LARGE_TIMEOUT_S = 1800.0, 3600.0
WORKERS = min(5, (os.cpu_count() or 1) + 1)
FAMILIES = {
    "cnn": "MobileNet v1, static",
    "mobilenet": "MobileNet v2, static",
    "gru": "Conv1d + GRU, static",
    "transformer": "transformer, dynamic",
    "minilm": "all-MiniLM-L6-v2, dynamic",
}
ENTROPY_PAIRS = ("large-23", "minilm-many-steps-2")
COLUMNS = (
    Column("ours_bytes", "ours, bytes", spread=False),
    Column("best_bytes", "best peer", spread=False),
    Column("ratio", "ours / best", 3),
    Column("nncodec_bytes", "NNCodec + hdiffpatch", spread=False),
    Column("share_percent", "% of new", 2, spread=False),
)
SETTINGS = (
    "corpus: bench/corpus, trained with jax, INT8 by ONNX Runtime's quantisers; seed 1 was looked at while the encoder was written, seed 2 was not",
    "every peer at its strongest setting (delta_peers.py); a row's name ends with the peer that was best; sizes count every byte that travels",
)


# No tool for files: a coder of residuals, with a container that we put around it. It is a peer like the
# others; one line of the goals tells what would be without it.
ASSEMBLED = "NNCodec on residuals"


@dataclass(frozen=True, slots=True)
class Pair:
    """What was measured on one pair: ours, and every peer's size."""

    name: str
    new_bytes: int
    ours: Mapping[str, float]
    peers: Mapping[str, float]
    skipped: tuple[str, ...]

    @property
    def best(self) -> str:
        """The peer with the smallest delta."""
        return min(self.peers, key=lambda name: (self.peers[name], name))

    @property
    def ratio(self) -> float:
        """Ours / best."""
        return self.ours["size_bytes"] / self.peers[self.best]

    @property
    def ratio_to_tools(self) -> float:
        """The same without NNCodec: beside tools that anybody can run on two files."""
        tools = [size for name, size in self.peers.items() if name != ASSEMBLED]
        return self.ours["size_bytes"] / min(tools)


def run(options: Options, say: Callable[[str], None]) -> Table:
    """Every pair of the corpus against every peer; then the extremes, memory and speed."""
    folders = sorted(path for path in CORPUS.glob("*-*-[0-9]") if PAIR.fullmatch(path.name))
    if options.is_quick:
        folders = [path for path in folders if path.name.endswith("-1")]
    if not PEERS_PYTHON.exists() or not folders:
        raise BenchError("there is no corpus, or no peers: make bench-delta sets both up")
    with ThreadPoolExecutor(WORKERS) as pool:
        pairs = list(pool.map(partial(_pair, options=options, say=say), folders))
    # Losses first.
    pairs.sort(key=lambda pair: -pair.ratio)
    faults = _faults(folders[0] / "old.onnx", options, say)
    speed = _large(options, say)
    goals = (
        *delta_goals.size_goals(
            {pair.name: pair.ratio for pair in pairs},
            {pair.name: pair.ratio_to_tools for pair in pairs},
        ),
        *delta_goals.fault_goals(faults),
        *delta_goals.entropy_goals(_entropies(pairs, speed, say)),
        *delta_goals.speed_goals(speed),
        *delta_goals.slowest_goal({pair.name: pair.ours for pair in pairs} | speed),
    )
    if not options.is_quick:
        _plot(pairs)
    return Table(
        title=f"delta-pairs: {len(pairs)} pairs",
        columns=COLUMNS,
        rows=tuple(map(_row, pairs)),
        goals=goals,
        settings=SETTINGS,
        notes=_against_each(pairs),
        skipped=tuple(sorted({line for pair in pairs for line in pair.skipped})),
    )


def _row(pair: Pair) -> Row:
    figures = {
        "ours_bytes": pair.ours["size_bytes"],
        "best_bytes": pair.peers[pair.best],
        "ratio": pair.ratio,
        "share_percent": 100 * pair.ours["size_bytes"] / pair.new_bytes,
    }
    if ASSEMBLED in pair.peers:
        figures["nncodec_bytes"] = pair.peers[ASSEMBLED]
    name = f"{pair.name} ({pair.best})"
    return Row(name, False, {key: figure(value) for key, value in figures.items()})


def _against_each(pairs: list[Pair]) -> tuple[str, ...]:
    totals: dict[str, list[float]] = {}
    for pair in pairs:
        for name, size in pair.peers.items():
            totals.setdefault(name, []).append(pair.ours["size_bytes"] / size)
    return tuple(
        f"ours / {name}: {mean(ratios):.3f} (geometric mean of {len(ratios)}), worst {max(ratios):.3f}"
        for name, ratios in sorted(totals.items(), key=lambda item: -mean(item[1]))
    )


def _plot(pairs: list[Pair]) -> None:
    groups = []
    for family, title in FAMILIES.items():
        bars = [
            Bar(
                pair.name, pair.ours["size_bytes"], pair.peers[pair.best], pair.new_bytes, pair.best
            )
            for pair in pairs
            if pair.name.startswith(f"{family}-")
        ]
        if bars:
            groups.append((title, bars))
    title = "Delta as a share of the new file, and ours / best"
    PLOT.write_text(drawn(groups, title), encoding="utf-8")


def _pair(folder: Path, options: Options, say: Callable[[str], None]) -> Pair:
    say(folder.name)
    peers = _peers(folder, options)
    return Pair(
        folder.name,
        (folder / "new.onnx").stat().st_size,
        _ours(folder, options),
        {name: found["size_bytes"] for name, found in peers["figures"].items()},
        tuple(peers["skipped"]),
    )


def _faults(model: Path, options: Options, say: Callable[[str], None]) -> dict[str, float]:
    say("one byte, no byte, a bomb")
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        found: dict[str, float] = _json_of("delta_faults.py", [model, scratch])
        for name in ("model", "firmware"):
            peers = _peers(Path(scratch) / f"one-byte-{name}", options)["figures"]
            found[f"one_byte_{name}_best_bytes"] = min(one["size_bytes"] for one in peers.values())
    return found


def _large(options: Options, say: Callable[[str], None]) -> dict[str, dict[str, float]]:
    names = [name for name in LARGE if (CORPUS / name).exists()]
    found = {}
    for name in names[:1] if options.is_quick else names:
        say(f"memory and speed, {name}")
        found[name] = _ours(CORPUS / name, options, LARGE_TIMEOUT_S)
    return found


def _entropies(
    pairs: list[Pair],
    speed: Mapping[str, Mapping[str, float]],
    say: Callable[[str], None],
) -> dict[str, tuple[float, float]]:
    """(what the delta spends on such tensors, what their residuals hold), of pairs that have some."""
    coded = {name: found["large_int8_bytes"] for name, found in speed.items()}
    coded |= {pair.name: pair.ours["large_int8_bytes"] for pair in pairs}
    found = {}
    for name in ENTROPY_PAIRS:
        if name in coded:
            say(f"entropy, {name}")
            pair = [CORPUS / name / "old.onnx", CORPUS / name / "new.onnx"]
            answer = _run([PEERS_PYTHON, _script("delta_entropy.py"), *pair], LARGE_TIMEOUT_S)
            if entropy := float(answer.split()[0]):
                found[name] = (coded[name], entropy)
    return found


def _ours(folder: Path, options: Options, timeout_s: float = TIMEOUT_S) -> dict[str, float]:
    return _on_pair(processes.PYTHON, "delta_child.py", folder, options, timeout_s)


def _peers(folder: Path, options: Options) -> dict:
    return _on_pair(PEERS_PYTHON, "delta_peers.py", folder, options, TIMEOUT_S)


def _on_pair(
    python: str | Path, script: str, folder: Path, options: Options, timeout_s: float
) -> dict:
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        pair = [folder / "old.onnx", folder / "new.onnx", scratch]
        return json.loads(_run([python, _script(script), *pair], timeout_s))


def _json_of(script: str, arguments: list[str | Path]) -> dict:
    return json.loads(_run([processes.PYTHON, _script(script), *arguments], TIMEOUT_S))


def _script(name: str) -> Path:
    return Path(__file__).with_name(name)


def _run(command: list[str | Path], timeout_s: float) -> str:
    what = f"{Path(command[1]).name} on {Path(command[2]).parent.name}"
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as exc:
        raise BenchError(f"{what}: not done in {timeout_s:.0f} s") from exc
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise BenchError(f"{what}: {last}")
    return done.stdout
