"""The delta's goals from what delta_pairs.py measured: pure."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

from measure import Figure, Goal

PAIR = re.compile(
    r"(?P<family>cnn|mobilenet|gru|transformer|minilm)-(?P<case>[a-z-]+)-(?P<seed>\d+)"
)
# Seed 1 was looked at while the encoder was written.
HELD_OUT_SEEDS = frozenset({"2"})
PLAIN_CASES = frozenset({"head-only", "few-steps", "many-steps", "re-calibrated", "pruned", "lora"})
NETWORK_CASES = frozenset({"few-steps", "many-steps", "re-calibrated", "pruned"})
CONVOLUTION_NETS = frozenset({"cnn", "mobilenet"})
LARGE = ("large-23", "large-90")


def size_goals(ratios: Mapping[str, float], to_tools: Mapping[str, float]) -> list[Goal]:
    """Geometric means of ours / best peer by the pair's name; `to_tools` leaves NNCodec out."""

    def of(
        is_wanted: Callable[[re.Match[str]], bool], those: Mapping[str, float] = ratios
    ) -> list[float]:
        return [
            ratio
            for name, ratio in those.items()
            if (pair := PAIR.fullmatch(name)) and is_wanted(pair)
        ]

    def is_held_out(pair: re.Match[str]) -> bool:
        return (
            pair["seed"] in HELD_OUT_SEEDS
            and pair["case"] in PLAIN_CASES
            and pair["family"] != "minilm"
        )

    def is_network(pair: re.Match[str], families: frozenset[str]) -> bool:
        return pair["family"] in families and pair["case"] in NETWORK_CASES

    groups: list[tuple[str, list[float], float | None]] = [
        ("size / best peer, plain pairs not used for tuning", of(is_held_out), 0.75),
        ("... beside tools for files only, without NNCodec", of(is_held_out, to_tools), None),
        (
            "... convolution nets: few, many, re-calibrated, pruned",
            of(lambda pair: is_network(pair, CONVOLUTION_NETS)),
            0.58,
        ),
        *(
            (
                f"...... {name} alone",
                of(lambda pair, name=name: is_network(pair, frozenset({name}))),
                None,
            )
            for name in sorted(CONVOLUTION_NETS)
        ),
        ("... GRU nets, all cases", of(lambda pair: pair["family"] == "gru"), None),
        ("... transformers, all cases", of(lambda pair: pair["family"] == "transformer"), None),
        ("... MiniLM: few, many, LoRA", of(lambda pair: pair["family"] == "minilm"), 0.80),
        ("... all pairs", of(lambda _pair: True), None),
    ]
    goals = [
        Goal(name, "x", figure(mean(found)), limit, decimals=3)
        for name, found, limit in groups
        if found
    ]
    return [*goals, Goal("worst pair", "x", figure(max(ratios.values())), 1.0, decimals=3)]


def fault_goals(faults: Mapping[str, float]) -> list[Goal]:
    """One byte, no byte, a bomb: `faults` as delta_faults.py prints them, with the best peers' sizes."""
    goals = [
        Goal(
            f"one byte of a {name} changed, ours less the best peer's",
            "bytes",
            figure(faults[f"one_byte_{name}_bytes"] - faults[f"one_byte_{name}_best_bytes"]),
            24,
        )
        for name in ("model", "firmware")
    ]
    return [
        *goals,
        Goal("old == new", "bytes", figure(faults["equal_bytes"]), 48),
        Goal(
            "4 KB that claim 4 GB, refused twice", "ms", figure(faults["bomb_ms"]), 50, decimals=2
        ),
    ]


def entropy_goals(entropies: Mapping[str, tuple[float, float]]) -> list[Goal]:
    """(coded, entropy) bytes of a pair's INT8 tensors of 1 M weights and more."""
    return [
        Goal(
            f"INT8 tensors of >= 1 M weights / H(r given fraction, log old), {name}",
            "x",
            figure(coded / entropy),
            1.05,
            decimals=3,
        )
        for name, (coded, entropy) in entropies.items()
    ]


def speed_goals(speed: Mapping[str, Mapping[str, float]]) -> list[Goal]:
    """Memory and speed on the large pairs: what delta_child.py prints of each."""
    goals = [
        Goal(
            f"apply peak above numpy, {name} MB",
            "MiB",
            figure(found["peak_mib"]),
            32,
            decimals=1,
        )
        for name, found in speed.items()
    ]
    if speed.keys() >= set(LARGE) and speed[LARGE[0]]["peak_mib"]:
        growth = 100 * (speed[LARGE[1]]["peak_mib"] / speed[LARGE[0]]["peak_mib"] - 1)
        goals.append(Goal("... growth", "%", figure(growth), 5, decimals=1))
    for name, found in speed.items():
        size_mb = found["new_mb"]
        goals += [
            _at_least(f"apply speed, CPU, {name} MB", size_mb / found["apply_s"], 10, 1),
            _at_least(
                f"diff speed, CPU, one worker, {name} MB", size_mb / found["encode_s"], 0.5, 2
            ),
            Goal(
                "... delta's size",
                "% of new",
                figure(found["size_bytes"] / size_mb / 1e4),
                decimals=2,
            ),
        ]
    return goals


def pair_speed_goals(pairs: Mapping[str, Mapping[str, float]]) -> list[Goal]:
    """Of all `pairs` whose new file has a megabyte or more: what delta_child.py prints."""
    large = {name: found for name, found in pairs.items() if found["new_mb"] >= 1}
    if not large:
        return []
    applies, diffs = (
        {name: found["new_mb"] / found[key] for name, found in large.items()}
        for key in ("apply_s", "encode_s")
    )
    slowest_apply, slowest_diff = (
        min(applies, key=applies.__getitem__),
        min(diffs, key=diffs.__getitem__),
    )
    of = f"of {len(large)} pairs >= 1 MB, CPU"
    return [
        _at_least(f"slowest apply {of}, {slowest_apply}", applies[slowest_apply], 10, 1),
        _at_least(
            f"diff speed {of}, one worker, geometric mean", mean(list(diffs.values())), 0.5, 2
        ),
        Goal(f"... slowest, {slowest_diff}", "MB/s", figure(diffs[slowest_diff]), decimals=2),
    ]


def _at_least(name: str, value: float, limit: float, decimals: int) -> Goal:
    return Goal(name, "MB/s", figure(value), limit, is_minimum=True, decimals=decimals)


def mean(ratios: Sequence[float]) -> float:
    """Geometric."""
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def figure(value: float) -> Figure:
    """Sizes are the same in every round: measured once."""
    return Figure(value, value, value)
