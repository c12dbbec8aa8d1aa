"""Area `delta-pairs`: our delta beside every other tool's, on a corpus of pairs; and its goals.

The corpus (bench/corpus) and the tools (delta_peers.py) need .venv-bench-delta: `make bench-delta`.
Sizes are the same in every round, so each is taken once, several pairs at a time; memory and speed are
measured afterwards, alone, in CPU time.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import processes
from measure import BenchError, Column, Figure, Goal, Options, Row, Table

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "build" / "delta-corpus"
PEERS_PYTHON = ROOT / ".venv-bench-delta" / "bin" / "python"
TIMEOUT_S = 600.0
WORKERS = 5
COLUMNS = (
    Column("ours_bytes", "ours, bytes", spread=False),
    Column("best_bytes", "best peer", spread=False),
    Column("ratio", "ours / best", 3),
    Column("share_percent", "% of new", 2, spread=False),
)
SETTINGS = (
    "corpus: bench/corpus, trained with jax, INT8 by ONNX Runtime's quantisers; seed 1 was looked at while the encoder was written, seed 2 was not",
    "every peer at its strongest setting (delta_peers.py); a row's name ends with the peer that was best; sizes count every byte that travels",
)
PAIR = re.compile(r"(?P<family>cnn|gru|transformer)-(?P<case>[a-z-]+)-(?P<seed>\d+)")
# Not used while the encoder was written.
HELD_OUT_SEEDS = frozenset({"2"})
PLAIN_CASES = frozenset({"head-only", "few-steps", "many-steps", "re-calibrated", "pruned", "lora"})
NETWORK_CASES = frozenset({"few-steps", "many-steps", "re-calibrated", "pruned"})
LARGE = ("large-23", "large-90")
SPEED_PAIR = "large-23"


def run(options: Options, say: Callable[[str], None]) -> Table:
    """Every pair of the corpus against every peer; then memory and speed on the large ones."""
    folders = sorted(path for path in CORPUS.glob("*-*-[0-9]") if PAIR.fullmatch(path.name))
    if options.is_quick:
        folders = [path for path in folders if path.name.endswith("-1")]
    if not PEERS_PYTHON.exists() or not folders:
        raise BenchError("there is no corpus, or no peers: make bench-delta sets both up")
    samples: dict[str, dict[str, float]] = {}
    best: dict[str, str] = {}
    skipped: set[str] = set()
    totals: dict[str, list[float]] = {}
    with ThreadPoolExecutor(WORKERS) as pool:
        found_sizes = list(pool.map(partial(_sizes, options=options, say=say), folders))
    for folder, (ours, peers) in zip(folders, found_sizes, strict=True):
        skipped.update(peers["skipped"])
        sizes = {name: found["size_bytes"] for name, found in peers["figures"].items()}
        best[folder.name] = min(sizes, key=lambda name: sizes[name])
        least = sizes[best[folder.name]]
        samples[folder.name] = {
            "ours_bytes": ours["size_bytes"],
            "best_bytes": least,
            "ratio": ours["size_bytes"] / least,
            "share_percent": 100 * ours["size_bytes"] / (folder / "new.onnx").stat().st_size,
        }
        for name, size in sizes.items():
            totals.setdefault(name, []).append(ours["size_bytes"] / size)
    rows = [
        Row(f"{name} ({best[name]})", False, {k: _figure(v) for k, v in found.items()})
        for name, found in samples.items()
    ]
    # Losses first.
    rows.sort(key=lambda row: -row.figures["ratio"].median)
    speed = {name: _ours(CORPUS / name, options) for name in _large(options, say)}
    return Table(
        title=f"delta-pairs: {len(rows)} pairs",
        columns=COLUMNS,
        rows=tuple(rows),
        goals=(*_size_goals(samples), *_speed_goals(speed)),
        settings=SETTINGS,
        notes=tuple(
            f"ours / {name}: {_mean(ratios):.3f} (geometric mean), worst {max(ratios):.3f}"
            for name, ratios in sorted(totals.items(), key=lambda item: -_mean(item[1]))
        ),
        skipped=tuple(sorted(skipped)),
    )


def _sizes(folder: Path, options: Options, say: Callable[[str], None]) -> tuple[dict, dict]:
    say(folder.name)
    return _ours(folder, options), _peers(folder, options)


def _large(options: Options, say: Callable[[str], None]) -> list[str]:
    names = [name for name in LARGE if (CORPUS / name).exists()]
    say("memory and speed")
    return names[:1] if options.is_quick else names


def _ours(folder: Path, options: Options) -> dict[str, float]:
    return _child([processes.PYTHON, Path(__file__).with_name("delta_child.py")], folder, options)


def _peers(folder: Path, options: Options) -> dict[str, dict[str, dict[str, float]]]:
    return _child([PEERS_PYTHON, Path(__file__).with_name("delta_peers.py")], folder, options)


def _child(command: list[str | Path], folder: Path, options: Options) -> dict:
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        done = subprocess.run(
            [*command, folder / "old.onnx", folder / "new.onnx", scratch],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise BenchError(f"{Path(command[-1]).name} on {folder.name}: {last}")
    return json.loads(done.stdout)


def _size_goals(samples: Mapping[str, Mapping[str, float]]) -> list[Goal]:
    def ratios(is_wanted: Callable[[re.Match[str]], bool]) -> list[float]:
        return [
            found["ratio"]
            for name, found in samples.items()
            if (pair := PAIR.fullmatch(name)) and is_wanted(pair)
        ]

    def is_held_out(pair: re.Match[str]) -> bool:
        return pair["seed"] in HELD_OUT_SEEDS and pair["case"] in PLAIN_CASES

    def is_cnn(pair: re.Match[str]) -> bool:
        return pair["family"] == "cnn" and pair["case"] in NETWORK_CASES

    groups: list[tuple[str, list[float], float | None]] = [
        ("size / best peer, plain pairs not used for tuning", ratios(is_held_out), 0.75),
        ("... convolution nets: few, many, re-calibrated, pruned", ratios(is_cnn), 0.58),
        ("... GRU nets, all cases", ratios(lambda pair: pair["family"] == "gru"), None),
        ("... transformers, all cases", ratios(lambda pair: pair["family"] == "transformer"), None),
        ("... all pairs", ratios(lambda _pair: True), None),
    ]
    goals = [
        Goal(name, "x", _figure(_mean(found)), limit, decimals=3)
        for name, found, limit in groups
        if found
    ]
    worst = max(found["ratio"] for found in samples.values())
    return [*goals, Goal("worst pair", "x", _figure(worst), 1.0, decimals=3)]


def _speed_goals(speed: Mapping[str, Mapping[str, float]]) -> list[Goal]:
    goals = []
    for name, found in speed.items():
        peak = _figure(found["peak_mib"])
        goals.append(Goal(f"apply peak above numpy, {name} MB", "MiB", peak, 32, decimals=1))
    if SPEED_PAIR not in speed:
        return goals
    found = speed[SPEED_PAIR]
    if len(speed) == len(LARGE) and found["peak_mib"]:
        growth = 100 * (speed[LARGE[1]]["peak_mib"] / found["peak_mib"] - 1)
        goals.append(Goal("... growth", "%", _figure(growth), 5, decimals=1))
    applied, made = found["new_mb"] / found["apply_s"], found["new_mb"] / found["encode_s"]
    share = 100 * found["size_bytes"] / (found["new_mb"] * 1e6)
    return [
        *goals,
        Goal("apply speed, CPU", "MB/s", _figure(applied), 10, is_minimum=True, decimals=1),
        Goal(
            "diff speed, CPU, one worker", "MB/s", _figure(made), 0.5, is_minimum=True, decimals=2
        ),
        Goal("... delta's size", "% of new", _figure(share), decimals=2),
    ]


def _mean(ratios: list[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def _figure(value: float) -> Figure:
    return Figure(value, value, value)
