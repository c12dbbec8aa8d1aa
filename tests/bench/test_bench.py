"""`make bench`: a quick run of one area, its JSON, and that who loses messages is never compared."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


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


@pytest.mark.slow
@pytest.mark.system
@pytest.mark.timeout(60)
def test_a_quick_run_prints_its_table_and_writes_the_same_figures_as_json(tmp_path):
    out = tmp_path / "bench.json"
    ended = run("--quick", "--area", "delta", "--json", out, "--dir", tmp_path, "--seed", "7")
    assert ended.returncode == 0, ended.stderr
    result = json.loads(out.read_bytes())
    assert (result["quick"], result["seed"], result["rounds"]) == (True, 7, 1)
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
        (("--area", "delta", "--part", "echo"), 2, "none of these parts belongs to delta"),
        (("--area", "delta-pairs", "--part", "echo"), 2, "belongs to delta-pairs"),
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


@pytest.mark.system
def test_what_a_child_has_started_ends_with_it(bench):
    processes = bench("processes")
    # As strace does: it goes at SIGTERM, and what it started would stay.
    script = (
        "import subprocess, sys, time\n"
        "started = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(started.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with processes.child([sys.executable, "-c", script], stdout=subprocess.PIPE) as child:
        started = int(child.stdout.readline())
        assert Path(f"/proc/{started}").exists()
    with contextlib.suppress(FileNotFoundError):
        # A zombie is what init has not collected yet.
        assert "\nState:\tZ" in Path(f"/proc/{started}/status").read_text(encoding="ascii")


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
    rounds = bench("measure").Rounds(options(bench, tmp_path))
    fast = {"cpu_us": 1.0, "sent": 100.0, "delivered": 99.0}
    whole = {"cpu_us": 2.0, "sent": 100.0, "delivered": 100.0}
    rounds.samples = {"fast": [fast, whole], "whole": [whole, whole]}
    assert rounds.versus("CPU", "cpu_us", "whole", "fast").endswith("not compared, fast LOST 1")
    assert rounds.row("fast", is_ours=False).lost == "LOST 1"
    assert rounds.row("whole", is_ours=True).lost == ""


def test_a_goal_is_judged_by_the_median_and_a_figure_without_one_is_only_told(bench):
    measure = bench("measure")
    figure = measure.Figure.of([1.0, 5.0, 9.0])
    for limit, is_minimum, is_met in (
        (5, True, True),
        (5.1, True, False),
        (5, False, True),
        (4.9, False, False),
        (None, False, None),
    ):
        goal = measure.Goal("x", "s", figure, limit, is_minimum=is_minimum)
        assert goal.is_met is is_met


def test_a_directory_in_memory_is_refused(tmp_path):
    memory = Path("/dev/shm")  # noqa: S108 - nothing is put there
    ended = run("--quick", "--area", "delta", "--dir", memory)
    assert ended.returncode == 1
    assert "in memory: give --dir a directory on a disk" in ended.stderr
    assert ended.stdout == ""


@pytest.mark.system
@pytest.mark.timeout(60)
def test_the_bus_is_measured_part_by_part_with_nobody_losing_a_command(tmp_path):
    out = tmp_path / "bench.json"
    parts = ("--part", "command", "--part", "wire")
    ended = run("--quick", "--area", "bus", *parts, "--json", out, "--dir", tmp_path)
    assert ended.returncode == 0, ended.stderr
    table = json.loads(out.read_bytes())["areas"]["bus"]
    rows = {row["name"]: row for row in table["rows"]}
    assert len(rows) == 10
    for name, row in rows.items():
        assert not row["lost"], name
        assert row["figures"]["p50_us"]["median"] > 0
        if name != "store: one commit":
            assert row["figures"]["delivered"] == row["figures"]["sent"]
            assert all(
                row["figures"][f"{end}_us"]["median"] > 0 for end in ("hub", "node", "broker")
            )
    goals = {goal["name"]: goal for goal in table["goals"]}
    assert goals["acked commands"]["limit"] == 5000
    assert goals["hub CPU a command"]["limit"] == 60
    for goal in goals.values():
        assert goal["name"] in ended.stdout
    assert goals["command on the wire, 25-byte body"]["is_met"]
    assert goals["command on the wire, 25-byte body, signed"]["is_met"]
    assert not any("sessions" in name or "flash" in name for name in goals)
    assert "command update" in ended.stdout


@pytest.mark.system
@pytest.mark.timeout(60)
def test_sessions_are_connected_watched_and_come_back_after_the_broker_was_gone(bench):
    fleet = bench("fleet")
    crowd = fleet.Crowd(sessions=20, idle_s=0.2, returning=5)
    contenders = fleet.contenders(crowd)
    many, back = contenders[fleet.MANY](), contenders[fleet.BACK]()
    assert many["delivered"] == many["sent"] == 20
    assert 1 < many["session_kb"] < 1000
    assert back["delivered"] == 5
    assert back["seconds"] > 0


def test_a_day_on_the_uplink_counts_keepalives_and_reports_apart(bench):
    uplink = bench("uplink")
    seen = [
        uplink.Seen(0.0, uplink.CONNECT, 100, True),
        uplink.Seen(0.1, uplink.CONNACK, 10, False),
        uplink.Seen(0.2, uplink.PUBLISH, 196, True),
        uplink.Seen(0.3, uplink.PUBACK, 4, False),
        uplink.Seen(20.3, uplink.PINGREQ, 2, True),
        uplink.Seen(20.3, uplink.PINGRESP, 2, False),
    ]
    day = uplink.day(seen, 3, reports=144, from_s=10.0, until_s=30.0)
    assert day["ping_every_s"] == pytest.approx(20)
    assert day["report_bytes"] == 200
    assert day["uplink_kb"] == pytest.approx((4320 * 4 + 144 * 200 + 310) / 1e3)
    headers = 52 * (4320 * 3 + 144 * 4)
    assert day["uplink_ip_kb"] == pytest.approx(day["uplink_kb"] + headers / 1e3)
    strange = [*seen, uplink.Seen(25.0, uplink.PUBLISH, 50, True)]
    with pytest.raises(bench("measure").BenchError, match="or more"):
        uplink.day(strange, 3, reports=144, from_s=10.0, until_s=30.0)


def test_the_proxy_counts_whole_packets_however_they_are_cut(bench):
    uplink = bench("uplink")
    assert uplink.packet_size(b"\xc0\x00") == 2
    assert uplink.packet_size(b"\x30\x80\x01") == 131
    assert uplink.packet_size(b"\x30\x80") is None
    assert uplink.packet_size(b"\x30") is None
    with pytest.raises(ValueError, match="more than 4"):
        uplink.packet_size(b"\x30\x80\x80\x80\x80")


def test_what_strace_saw_is_counted_also_where_a_call_was_interrupted(bench, tmp_path):
    traced = bench("traced")
    log = tmp_path / "trace"
    log.write_text(
        f'7 100.5 pwrite64(3<{tmp_path}/agent.db-wal>, ""..., 4096, 0) = 4096\n'
        f'7 101.5 write(3<{tmp_path}/agent.db>, ""..., 99 <unfinished ...>\n'
        f'8 101.6 write(1</elsewhere/log>, ""..., 5) = 5\n'
        f"7 101.7 <... write resumed>) = 99\n"
        f'8 102.0 pwrite64(3<{tmp_path}/agent.db>, ""..., 9, 0) = -1 ENOSPC (No space left on device)\n'
        "8 103.0 +++ exited with 0 +++\n"
    )
    found = traced.writes(log, tmp_path)
    assert [(w.at_s, Path(w.path).name, w.size_bytes) for w in found] == [
        (100.5, "agent.db-wal", 4096),
        (101.5, "agent.db", 99),
    ]


@pytest.mark.system
@pytest.mark.optional
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_what_a_naive_outbox_writes_is_at_least_its_pages(bench, tmp_path):
    idle = bench("idle")
    window = idle.Window(watched_s=1, report_every_s=1.0, keepalives=1, naive_messages=10)
    day = idle._naive(window, options(bench, tmp_path))
    # Two commits a message, a page of the log each.
    assert day["flash_mb"] >= 2 * 4096 * 86_400 / 1e6


def test_protobuf_sizes_are_those_of_the_protobuf_package(bench):
    struct_pb2 = pytest.importorskip("google.protobuf.struct_pb2")
    wire_sizes = bench("wire_sizes")
    value = {"ok": True, "n": 7, "x": [1.5, "a", None], "deep": {"empty": ""}}
    theirs = struct_pb2.Value()
    theirs.struct_value.update(value)
    assert len(wire_sizes._any(value)) == theirs.ByteSize()
    parsed = struct_pb2.Value.FromString(wire_sizes._any(value))
    assert parsed == theirs


def test_every_kind_of_message_is_smaller_in_cbor_than_in_json(bench):
    sizes = bench("wire_sizes").sizes()
    assert {"command", "reported", "wanted"} <= sizes.keys()
    for name, (cbor, json_bytes, protobuf) in sizes.items():
        assert 0 < cbor < json_bytes, name
        assert protobuf > 0


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
        # Neither zstd nor the bsdiff process takes an empty old file.
        if sizes[0] or name not in {"zstd -19 --patch-from", "bsdiff (process)"}:
            assert way.apply(old, way.encode(old, new)) == new, name


def test_the_goals_of_the_pairs_take_the_held_out_seed_and_the_worst_of_all(bench):
    goals = bench("delta_goals")
    ratios = {
        "cnn-few-steps-1": 0.9,
        "cnn-few-steps-2": 0.4,
        "gru-many-steps-2": 0.9,
        "gru-renamed-2": 1.3,
    }
    found = {
        goal.name: goal
        for goal in goals.size_goals(ratios, {name: ratio * 2 for name, ratio in ratios.items()})
    }
    plain = found["size / best peer, plain pairs not used for tuning"]
    assert plain.figure.median == pytest.approx(0.6)
    assert plain.is_met
    tools = found["... beside tools for files only, without NNCodec"]
    assert tools.figure.median == pytest.approx(1.2)
    assert found["... convolution nets: few, many, re-calibrated, pruned"].is_met is False
    assert found["worst pair"].figure.median == 1.3
    assert found["worst pair"].is_met is False
