"""Areas `infer-mqtt` and `infer-int8`: the wire really loses packets, and the CNN that is made small really tells classes apart."""

import json
import random
import select
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


def test_the_wire_carries_both_ways_and_loses_as_many_as_it_is_told(bench):
    wire, processes = bench("lossy_lan"), bench("processes")
    loss, seed, count = 0.25, 1, 100
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
    (ours, left), (theirs, right) = pairs
    ends = [str(left.fileno()), str(right.fileno())]
    words = [processes.PYTHON, wire.__file__, *ends, str(loss), str(seed)]
    draw = random.Random(seed)  # noqa: S311 - as the wire draws
    expected = sum(draw.random() >= loss for _ in range(2 * count))
    with processes.child(words, keep=(left.fileno(), right.fileno())):
        for number in range(count):
            ours.send(b"to the right %d" % number)
            theirs.send(b"to the left %d" % number)
        came: list[bytes] = []
        while len(came) < expected:
            ready, _, _ = select.select([ours, theirs], [], [], 10)
            assert ready
            came += [sock.recv(100) for sock in ready]
    for sock in (ours, theirs, left, right):
        sock.close()
    assert len(set(came)) == expected < 2 * count
    assert {bytes(one[:12]) for one in came} == {b"to the right", b"to the left "}


@pytest.mark.slow
def test_a_sample_is_measured_or_refused_with_a_reason(tmp_path):
    said = subprocess.run(
        [sys.executable, BENCH / "infer_mqtt_child.py", "0.05", "1", "1", tmp_path],
        capture_output=True,
        check=True,
        timeout=60,
    )
    took = json.loads(said.stdout.splitlines()[-1])
    if "refused" in took:
        pytest.skip(took["refused"])
    assert took["failed"] == 0
    assert 0 < took["p50_us"] <= took["p99_us"]


@pytest.mark.slow
def test_the_fitted_cnn_tells_every_texture_apart(bench, tmp_path):
    made = bench("infer_textures")
    made.write(tmp_path / "model.onnx")
    pictures, labels = made.textures(400, seed=9)
    (scores,) = ort.InferenceSession(tmp_path / "model.onnx").run(None, {"x": pictures})
    assert set(labels) == set(range(made.CLASSES))
    assert (scores.argmax(axis=1) == labels).mean() > 0.9


@pytest.mark.slow
def test_a_pair_is_measured_by_what_both_say(bench, tmp_path):
    area = bench("infer_int8")
    made = bench("infer_textures")
    made.write(tmp_path / "float/model.onnx")
    shutil.copytree(tmp_path / "float", tmp_path / "same")
    pictures, _ = made.textures(64, seed=9)
    np.savez(tmp_path / "inputs.npz", x=pictures)
    pair = area.Pair(
        "cnn",
        tmp_path / "float/model.onnx",
        tmp_path / "same/model.onnx",
        tmp_path / "inputs.npz",
        "static",
        "agreement",
        1.0,
        1.0,
        1.0,
    )
    assert area._agreement(pair).median == 1.0
    took = area._sample(pair.int8, pair.inputs, 0.05)
    assert took["cpu_us"] > 0
    assert took["mib"] == pytest.approx(pair.int8.stat().st_size / (1 << 20))
