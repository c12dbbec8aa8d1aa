"""`make bench`: a quick run of one area, its JSON, and that who loses messages is never compared."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def bench(monkeypatch):
    """Imports one of the benchmark's modules as its script sees them."""
    monkeypatch.syspath_prepend(BENCH)
    for path in BENCH.glob("*.py"):
        monkeypatch.delitem(sys.modules, path.stem, raising=False)
    yield importlib.import_module
    for path in BENCH.glob("*.py"):
        sys.modules.pop(path.stem, None)


def options(bench, tmp_path, *, rounds=3, seed=1):
    return bench("measure").Options(rounds=rounds, seed=seed, is_quick=True, folder=tmp_path)


def run(*arguments):
    return subprocess.run(
        [sys.executable, BENCH / "run.py", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.system
@pytest.mark.timeout(60)
def test_a_quick_run_prints_its_table_and_writes_the_same_figures_as_json(tmp_path):
    out = tmp_path / "bench.json"
    ended = run("--quick", "--area", "delta", "--json", out, "--dir", tmp_path, "--seed", "7")
    assert ended.returncode == 0, ended.stderr
    result = json.loads(out.read_bytes())
    assert (result["quick"], result["seed"], result["rounds"]) == (True, 7, 2)
    assert {"cpu", "kernel", "python", "disk fsync", "packages"} <= result["machine"].keys()
    assert list(result["areas"]) == ["delta"]
    rows = {row["name"]: row for row in result["areas"]["delta"]["rows"]}
    assert {"shoal_delta", "subtract + xz -9e", "zstd -19 --patch-from"} <= rows.keys()
    for row in rows.values():
        assert row["is_ours"] == (row["name"] == "shoal_delta")
        for figure in row["figures"].values():
            assert 0 < figure["low"] <= figure["median"] <= figure["high"]
        assert row["name"] in ended.stdout
        assert f"{row['figures']['size_bytes']['median']:,.0f}" in ended.stdout
    assert "seed 7" in ended.stdout
    assert "ours / best peer" in ended.stdout
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.system
@pytest.mark.parametrize(
    ("arguments", "exit_code", "complaint"),
    [
        (("--area", "weather"), 2, "invalid choice"),
        (("--rounds", "0"), 2, "1 to 100"),
        (("--rounds", "many"), 2, "invalid"),
        (("--area", "delta", "--dir", "/nowhere/at/all"), 1, "bench: "),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(arguments, exit_code, complaint):
    ended = run("--quick", *arguments)
    assert ended.returncode == exit_code
    assert complaint in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.system
@pytest.mark.timeout(60)
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_no_process_and_no_file(tmp_path, number, exit_code):
    with subprocess.Popen(
        [sys.executable, BENCH / "run.py", "--rounds", "50", "--area", "bus", "--dir", tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    ) as process:
        until = time.monotonic() + 30
        while len(mine := descendants(process.pid)) < 3:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < until
        process.send_signal(number)
        _, complaint = process.communicate(timeout=30)
    assert process.returncode == exit_code
    assert complaint == b""
    assert not [pid for pid in mine if Path(f"/proc/{pid}").exists()]
    assert not list(tmp_path.iterdir())


def descendants(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return [int(child) for child in children]


def test_every_round_runs_everybody_in_an_order_that_the_seed_repeats(bench, tmp_path):
    measure = bench("measure")

    def order(seed):
        ran = []
        contenders = {name: lambda name=name: ran.append(name) or {"x": 1.0} for name in "abcdef"}
        rounds = measure.Rounds(options(bench, tmp_path, rounds=4, seed=seed))
        rounds.run(contenders, say=lambda step: None)
        return ran

    ran = order(5)
    assert [sorted(ran[start : start + 6]) for start in range(0, 24, 6)] == [list("abcdef")] * 4
    assert len({tuple(ran[start : start + 6]) for start in range(0, 24, 6)}) > 1
    assert ran == order(5) != order(6)


def test_a_ratio_is_taken_round_by_round(bench, tmp_path):
    rounds = bench("measure").Rounds(options(bench, tmp_path))
    rounds.samples = {
        "ours": [{"x": 1.0}, {"x": 30.0}, {"x": 2.0}],
        "peer": [{"x": 2.0}, {"x": 60.0}, {"x": 5.0}],
    }
    ratio = rounds.ratios("x", "ours", "peer")
    assert (ratio.median, ratio.low, ratio.high) == (0.5, 0.4, 0.5)
    assert rounds.figures("ours")["x"].median == 2.0


def test_who_loses_messages_is_marked_and_not_compared(bench, tmp_path):
    bus = bench("bus")
    rounds = bench("measure").Rounds(options(bench, tmp_path))
    fast = {"cpu_us": 1.0, "sent": 100.0, "delivered": 99.0}
    whole = {"cpu_us": 2.0, "sent": 100.0, "delivered": 100.0}
    rounds.samples = {"fast": [fast, whole], "whole": [whole, whole]}
    assert bus._versus(rounds, "CPU", "cpu_us", "whole", "fast").endswith(
        "not compared, fast LOST 1"
    )
    assert bus._row("fast", rounds).lost == "LOST 1"
    assert bus._row("whole", rounds).lost == ""


def test_a_contender_that_gives_another_file_back_ends_the_run(bench):
    delta, measure = bench("delta"), bench("measure")
    way = delta.Contender(lambda old, new: b"x", lambda old, patch: old)
    with pytest.raises(measure.BenchError, match="broken does not give the new file back"):
        delta._sample("broken", way, b"old", b"new")


@pytest.mark.parametrize("sizes", [(5000, 5000), (5000, 7000), (7000, 5000), (0, 100)])
def test_the_peers_of_the_delta_give_back_files_of_every_size(bench, tmp_path, sizes):
    delta = bench("delta")
    old, new = (bytes(range(256)) * 40)[: sizes[0]], (bytes(range(255, -1, -1)) * 40)[: sizes[1]]
    for name, way in delta._contenders(tmp_path).items():
        if sizes[0] or "patch-from" not in name:
            assert way.apply(old, way.encode(old, new)) == new, name
