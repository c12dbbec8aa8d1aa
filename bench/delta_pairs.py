"""Area `delta-pairs`: our delta beside every other tool's, on a corpus of pairs; and its goals.

The corpus (bench/corpus) and the tools (delta_peers.py) need .venv-bench-delta: `make bench-delta`.
Two parts. `speed`: memory and speed of every pair of a megabyte and more, one at a time, in CPU time: for a
machine with nothing else to do. `sizes`: every pair against every peer; they are the same in every round and
under any load, so each is taken once, several pairs at a time. The picture belongs to the sizes of all pairs.
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
from measure import BenchError, Column, Goal, Options, Row, Table

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "build" / "delta-corpus"
PLOT = ROOT / "docs" / "benchmarks" / "delta.svg"
PEERS_PYTHON = ROOT / ".venv-bench-delta" / "bin" / "python"
# For a pair of the corpus with all tools; for a large one, which takes minutes of CPU.
TIMEOUT_S, LARGE_TIMEOUT_S = 1800.0, 3600.0
# The goal of speed is for new files from this size on.
SPEED_BYTES = 1_000_000
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
SPEED_COLUMNS = (
    COLUMNS[0],
    COLUMNS[-1],
    Column("apply_mb_s", "apply MB/s", 1, spread=False),
    Column("peak_mib", "peak MiB", 1, spread=False),
    Column("diff_mb_s", "diff MB/s", 2, spread=False),
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
    """Memory and speed; every pair of the corpus against every peer, and the extremes."""
    folders = sorted(path for path in CORPUS.glob("*-*-[0-9]") if PAIR.fullmatch(path.name))
    if options.is_quick:
        folders = [path for path in folders if path.name.endswith("-1")]
    if not PEERS_PYTHON.exists() or not folders:
        raise BenchError("there is no corpus, or no peers: make bench-delta sets both up")
    speed = _speed(folders, options, say) if options.wants("speed") else {}
    pairs = _pairs(folders, speed, options, say) if options.wants("sizes") else []
    goals = _size_goals(pairs, folders[0] / "old.onnx", options, say) if pairs else []
    measured = {pair.name: pair.ours for pair in pairs} | speed
    goals += delta_goals.entropy_goals(_entropies(measured, say))
    goals += delta_goals.speed_goals({name: speed[name] for name in LARGE if name in speed})
    goals += delta_goals.pair_speed_goals(speed)
    if pairs and not options.is_quick:
        _plot(pairs)
    return Table(
        title=f"delta-pairs: {len(pairs) or len(speed)} pairs",
        columns=COLUMNS if pairs else SPEED_COLUMNS,
        rows=tuple(map(_row, pairs) if pairs else map(_speed_row, speed, speed.values())),
        goals=tuple(goals),
        settings=SETTINGS if pairs else SETTINGS[:1],
        notes=_against_each(pairs),
        skipped=tuple(sorted({line for pair in pairs for line in pair.skipped})),
    )


def _pairs(
    folders: list[Path],
    speed: Mapping[str, Mapping[str, float]],
    options: Options,
    say: Callable[[str], None],
) -> list[Pair]:
    """Every pair against every peer, losses first."""
    with ThreadPoolExecutor(WORKERS) as pool:
        made = pool.map(partial(_pair, speed=speed, options=options, say=say), folders)
        return sorted(made, key=lambda pair: -pair.ratio)


def _size_goals(
    pairs: list[Pair], model: Path, options: Options, say: Callable[[str], None]
) -> list[Goal]:
    return [
        *delta_goals.size_goals(
            {pair.name: pair.ratio for pair in pairs},
            {pair.name: pair.ratio_to_tools for pair in pairs},
        ),
        *delta_goals.fault_goals(_faults(model, options, say)),
    ]


def _speed_row(name: str, found: Mapping[str, float]) -> Row:
    figures = {
        "ours_bytes": found["size_bytes"],
        "share_percent": found["size_bytes"] / found["new_mb"] / 1e4,
        "apply_mb_s": found["new_mb"] / found["apply_s"],
        "peak_mib": found["peak_mib"],
        "diff_mb_s": found["new_mb"] / found["encode_s"],
    }
    return Row(name, False, {key: figure(value) for key, value in figures.items()})


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


def _pair(
    folder: Path,
    speed: Mapping[str, Mapping[str, float]],
    options: Options,
    say: Callable[[str], None],
) -> Pair:
    say(folder.name)
    peers = _peers(folder, options)
    return Pair(
        folder.name,
        (folder / "new.onnx").stat().st_size,
        speed[folder.name] if folder.name in speed else _ours(folder, options),
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


def _speed(
    folders: list[Path], options: Options, say: Callable[[str], None]
) -> dict[str, dict[str, float]]:
    """Ours on the pairs whose new file has a megabyte or more, and on the large ones."""
    names = [name for name in LARGE if (CORPUS / name).exists()]
    large = [CORPUS / name for name in (names[:1] if options.is_quick else names)]
    found = {}
    for folder in [*folders, *large]:
        if (folder / "new.onnx").stat().st_size >= SPEED_BYTES:
            say(f"memory and speed, {folder.name}")
            found[folder.name] = _ours(folder, options, LARGE_TIMEOUT_S)
    return found


def _entropies(
    measured: Mapping[str, Mapping[str, float]], say: Callable[[str], None]
) -> dict[str, tuple[float, float]]:
    """(what the delta spends on such tensors, what their residuals hold), of pairs that have some."""
    found = {}
    for name in ENTROPY_PAIRS:
        if name in measured:
            say(f"entropy, {name}")
            pair = [CORPUS / name / "old.onnx", CORPUS / name / "new.onnx"]
            answer = _run([PEERS_PYTHON, _script("delta_entropy.py"), *pair], LARGE_TIMEOUT_S)
            if entropy := float(answer.split()[0]):
                found[name] = (measured[name]["large_int8_bytes"], entropy)
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
