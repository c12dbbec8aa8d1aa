"""Hours in which models load, swap and are evicted: whether the memory of engine and worker grows.

`make test-long` soaks for 20 minutes; SHOAL_SOAK_S=28800 for eight hours.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.shoal_agent.inference import tiny_release as tiny
from tests.support.slope import Slope, slope

SOAK_S = float(os.environ.get("SHOAL_SOAK_S", "1200"))
SCRIPT = Path(__file__).resolve().parents[2] / "support" / "soak.py"
WIDTHS = {"busy": 1000, "bursts": 50_000, "rare": 500_000}
THREE_DAYS_S = 72 * 3600.0
MIB = 1 << 20
BUDGET_BYTES = 64 * MIB
"""A board that is restarted every three days can lend so much."""


def prepare(folder: Path) -> None:
    for model, width in WIDTHS.items():
        for seed in (0, 1):
            tiny.write(
                folder / model / str(seed),
                seed=seed,
                model=tiny.wide(width, seed),
                spec={'name = "tiny"': f'name = "{model}"', "tolerance = 0.001": "tolerance = 0.1"},
            )
    answers = {
        str(seed): [tiny.expected_label(bytes((n, 7, 255 - n, 1)), seed) for n in range(256)]
        for seed in (0, 1)
    }
    (folder / "answers.json").write_text(json.dumps(answers))


def soak(folder: Path, seconds: float, every_s: float, speed: float) -> dict:
    prepare(folder)
    ended = subprocess.run(
        [sys.executable, SCRIPT, folder, *map(str, (seconds, every_s, speed))],
        capture_output=True,
        text=True,
        timeout=seconds + 120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])  # log lines stand before it
    lines = (folder / "samples.jsonl").read_text().splitlines()
    return {**found, "samples": [json.loads(line) for line in lines]}


def growth(found: dict, which: int) -> Slope:
    """Of the engine's process (1) or the worker (2), after a third of the time; samples with the same releases loaded."""
    samples = found["samples"][len(found["samples"]) // 3 :]
    return slope([s[0] for s in samples], [s[which] for s in samples], [s[3] for s in samples])


def tell(name: str, found: Slope) -> None:
    low, high = found.over(THREE_DAYS_S)
    print(
        f"{name}: {found.per_s * 3600 / 1024:+.0f} KiB an hour"
        f" (+- {found.margin_per_s * 3600 / 1024:.0f}, 95 %); in 72 h {low / MIB:+.0f} to {high / MIB:+.0f} MiB"
    )


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_models_that_load_swap_and_are_evicted_under_load_answer_right_all_the_while(tmp_path):
    found = soak(tmp_path, seconds=8, every_s=0.1, speed=20)
    assert (found["failed"], found["wrong"], found["worker_restarts"]) == ([], 0, 0)
    assert found["asked"] > 50
    assert found["swaps"] >= 2
    assert found["evictions"] >= 1
    assert len({sample[3] for sample in found["samples"]}) > 1
    tell("engine", growth(found, 1))
    tell("worker", growth(found, 2))


@pytest.mark.long
@pytest.mark.timeout(SOAK_S + 240)
def test_memory_does_not_grow_for_hours(tmp_path, capsys):
    found = soak(tmp_path, seconds=SOAK_S, every_s=2, speed=1)
    with capsys.disabled():
        print("\n", {name: value for name, value in found.items() if name != "samples"})
        for which, name in ((1, "engine"), (2, "worker")):
            print(f"{name} at the end: {found['samples'][-1][which] / MIB:.0f} MiB")
            tell(name, growth(found, which))
    assert (found["failed"], found["wrong"], found["worker_restarts"]) == ([], 0, 0)
    assert found["swaps"] >= SOAK_S / 60
    assert found["evictions"] >= SOAK_S / 120
    for which in (1, 2):
        # What is certain, not what is possible: a short soak cannot exclude much.
        assert growth(found, which).over(THREE_DAYS_S)[0] <= BUDGET_BYTES


def noisy(per_s: float, draw: np.random.Generator, *, hang: float = 0.0, count: int = 400):
    times, values, groups, noise = [], [], [], 0.0
    for n in range(count):
        noise = hang * noise + draw.normal()
        groups.append(n // 7 % 3)
        times.append(float(n))
        values.append(100.0 * groups[-1] + per_s * n + noise)
    return times, values, groups


@pytest.mark.parametrize("hang", [0.0, 0.8])
def test_the_interval_of_a_slope_holds_the_true_one_about_as_often_as_it_says(hang):
    draw = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        found = slope(*noisy(0.01, draw, hang=hang))
        held += abs(found.per_s - 0.01) <= found.margin_per_s
    assert held >= 175


def test_a_leak_is_seen_and_none_is_not():
    draw = np.random.default_rng(2)
    assert slope(*noisy(0.05, draw)).over(1)[0] > 0
    low, high = slope(*noisy(0.0, draw)).over(1)
    assert low < 0 < high


def test_without_groups_a_change_of_level_is_taken_for_noise():
    times, values, groups = noisy(0.01, np.random.default_rng(3))
    assert slope(times, values).margin_per_s > 5 * slope(times, values, groups).margin_per_s
