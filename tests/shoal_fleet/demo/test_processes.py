"""Children of the demo: ready when they say so, ended in order, and never left behind."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap

import pytest
from tests.support import left_running

from shoal_fleet.demo import processes
from shoal_fleet.demo.errors import DemoError
from shoal_fleet.demo.processes import Processes

CHILD = """
import pathlib, signal, sys, time
ready, mode = pathlib.Path(sys.argv[1]), sys.argv[2]
if mode == "fails":
    sys.exit("there is no such device")
if mode == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if mode == "counts":
    signal.signal(signal.SIGUSR1, lambda *_: ready.with_name("signalled").touch())
if mode != "late":
    part = ready.with_suffix(".part")
    part.write_text("4711\\n")
    part.replace(ready)
while True:
    time.sleep(0.01)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder whose `child` can be started as a module."""
    (tmp_path / "child.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def start(children: Processes, folder, mode: str, name: str = "child") -> str:
    ready = folder / f"{name}.ready"
    return await children.start(name, "child", str(ready), mode, ready_file=ready)


async def test_what_the_ready_file_says_is_returned_and_leaving_ends_the_child(folder):
    async with Processes.open(folder) as children:
        assert await start(children, folder, "good") == "4711"
        children.check()
        assert len(children) == 1
        assert children.pss_bytes("child") > 1 << 20
        pid = children._children["child"].pid
        assert alive(pid)
    assert not alive(pid)


async def test_a_child_that_ends_before_it_is_ready_is_quoted(folder):
    async with Processes.open(folder) as children:
        with pytest.raises(DemoError, match="child ended with 1: there is no such device"):
            await start(children, folder, "fails")


async def test_a_child_that_is_never_ready_is_given_up(folder, monkeypatch):
    monkeypatch.setattr(processes, "READY_TIMEOUT_S", 0.2)
    async with Processes.open(folder) as children:
        with pytest.raises(DemoError, match=r"child is not ready after 0\.2 s: no log"):
            await start(children, folder, "late")


async def test_a_child_that_does_not_listen_is_killed(folder, monkeypatch):
    monkeypatch.setattr(processes, "STOP_TIMEOUT_S", 0.2)
    async with Processes.open(folder) as children:
        await start(children, folder, "deaf")
        pid = children._children["child"].pid
    assert not alive(pid)


async def test_a_child_that_died_is_noticed(folder):
    async with Processes.open(folder) as children:
        await start(children, folder, "good")
        children.signal("child", signal.SIGKILL)
        await children._children["child"].wait()
        with pytest.raises(DemoError, match="child ended with -9"):
            children.check()


async def test_a_signal_reaches_the_child_it_is_for(folder):
    async with Processes.open(folder) as children:
        await start(children, folder, "counts", "one")
        await start(children, folder, "good", "two")
        children.signal("one", signal.SIGUSR1)
        async with asyncio.timeout(5):
            while not (folder / "signalled").exists():  # noqa: ASYNC110 - only the file tells
                await asyncio.sleep(0.01)
        children.check()


@pytest.mark.system
def test_children_end_with_a_parent_that_is_killed(folder):
    mark = left_running.new_mark()
    program = textwrap.dedent("""
        import asyncio, pathlib, sys
        from shoal_fleet.demo.processes import Processes

        async def main(folder):
            async with Processes.open(folder) as children:
                ready = folder / "ready"
                await children.start("child", "child", str(ready), "deaf", ready_file=ready)
                print("ready", flush=True)
                await asyncio.Event().wait()

        asyncio.run(main(pathlib.Path(sys.argv[1])))
    """)
    with subprocess.Popen(
        [sys.executable, "-c", program, folder],
        stdout=subprocess.PIPE,
        env={**os.environ, left_running.VARIABLE: mark},
    ) as parent:
        assert parent.stdout.readline() == b"ready\n"
        assert len(left_running.marked(mark)) == 2
        parent.kill()
    assert left_running.none_left(mark, within_s=5) == {}
