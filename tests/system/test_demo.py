"""`shoal demo` as a newcomer runs it: the facts it must show, and nothing left however it ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from tests.support import left_running

from shoal_agent.config import load
from shoal_fleet.issuer import read_signer

ONLY_LOOPBACK = 'ip link set lo up && exec "$@"'


@pytest.fixture
def mark():
    return left_running.new_mark()


@pytest.fixture
def scratch():
    """Where the demo makes its folder: a short path, because a Unix socket's may have 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="s-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def environment(mark: str, scratch: Path) -> dict[str, str]:
    return {**os.environ, left_running.VARIABLE: mark, "TMPDIR": str(scratch)}


def left_files(scratch: Path) -> list[str]:
    """What is left in TMPDIR."""
    return sorted(path.name for path in scratch.iterdir())


def without_network() -> list[str]:
    """The command in front of a command that leaves it nothing but `lo`; empty where none works."""
    for unshare in (["unshare", "-n"], ["unshare", "-rn"]):
        prefix = [*unshare, "sh", "-c", ONLY_LOOPBACK, "sh"]
        try:
            tried = subprocess.run([*prefix, "true"], check=False, capture_output=True, timeout=5)
        except OSError:
            continue
        if tried.returncode == 0:
            return prefix
    return []


@pytest.mark.system
@pytest.mark.timeout(240)
def test_the_demo_shows_what_it_must_with_no_network_but_loopback(mark, scratch):
    prefix = without_network()
    if not prefix:
        print("no network namespace can be made here: the demo ran beside the real network")
    ran = subprocess.run(
        [*prefix, sys.executable, "-m", "shoal_fleet", "demo", "--json"],
        check=False,
        capture_output=True,
        text=True,
        timeout=220,
        env=environment(mark, scratch),
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert len(ran.stdout.splitlines()) == 1, "people read stderr, programs one line of JSON"
    facts = json.loads(ran.stdout.splitlines()[-1])
    print(json.dumps(facts))
    assert facts["nodes"] >= 5
    assert facts["lost"] == 0
    assert facts["accuracy_v2"] > facts["accuracy_v1"] >= 0.9
    assert facts["delta_bytes"] <= 0.9 * facts["compressed_bytes"]
    assert facts["compressed_bytes"] < facts["full_bytes"]
    assert facts["offloaded"] >= 1
    assert sum(facts["served_for_others"].values()) == facts["offloaded"]
    assert facts["offline_loop_steps"] > 0
    assert len(facts["waves"]) >= 2
    assert sum(facts["waves"]) == facts["nodes"]
    assert len(facts["fetched_bytes"]) == facts["nodes"]
    assert all(0 < count < facts["full_bytes"] for count in facts["fetched_bytes"].values())
    # Every held-out digit was classified by both releases on every board.
    assert facts["readings"] >= 2 * facts["nodes"] * facts["digits_held_out"]
    assert left_running.none_left(mark, within_s=3) == {}
    assert left_files(scratch) == []


def started(mark: str, scratch: Path, said: Path, *, act: str) -> subprocess.Popen[bytes]:
    """A demo of two boards that has come as far as `act`."""
    with said.open("wb") as file:
        demo = subprocess.Popen(
            [sys.executable, "-m", "shoal_fleet", "demo", "--nodes", "2"],
            stdout=file,
            stderr=file,
            env=environment(mark, scratch),
        )
    deadline = time.monotonic() + 40
    while act not in said.read_text():
        assert demo.poll() is None, said.read_text()
        assert time.monotonic() < deadline, said.read_text()
        time.sleep(0.05)
    return demo


@pytest.mark.system
@pytest.mark.timeout(90)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_ends_at_once_and_leaves_nothing(mark, scratch, tmp_path, number):
    said = tmp_path / "said"
    demo = started(mark, scratch, said, act="rolling out")
    assert len(left_running.marked(mark)) >= 1 + 2 + 2 * 3, "broker, controller, and two boards"
    demo.send_signal(number)
    assert demo.wait(timeout=15) == 130
    last = said.read_text().splitlines()[-1]
    assert last == "interrupted: everything that was started has ended"
    assert "Traceback" not in said.read_text()
    assert left_running.none_left(mark, within_s=1) == {}
    assert left_files(scratch) == []


@pytest.mark.system
@pytest.mark.timeout(90)
def test_the_kernel_ends_the_children_of_a_killed_demo(mark, scratch, tmp_path):
    demo = started(mark, scratch, tmp_path / "said", act="devices stream")
    demo.kill()
    demo.wait(timeout=5)
    assert left_running.none_left(mark, within_s=10) == {}
    # The files it left say that its boards obeyed nobody but its controller.
    (controller,) = scratch.glob("**/controller")
    configs = [load(path) for path in scratch.glob("**/agent.toml")]
    assert [config.command_keys for config in configs] == [
        (read_signer(controller).public_key,)
    ] * 2


@pytest.mark.system
def test_a_directory_to_keep_that_is_not_empty_is_refused(tmp_path):
    (tmp_path / "mine").write_text("precious")
    ran = subprocess.run(
        [sys.executable, "-m", "shoal_fleet", "demo", "--keep", tmp_path],
        check=False,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 2
    assert ran.stderr.splitlines() == [f"shoal: --keep {tmp_path}: the directory is not empty"]
    assert (tmp_path / "mine").read_text() == "precious"
