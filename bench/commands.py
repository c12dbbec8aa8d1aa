"""The command path as contenders for bus.py: hub -> broker -> node -> broker -> hub, QoS 1 both ways.

Three processes: the broker, and a hub and a node (ends.py) on the same client. It starts them, and
turns what the hub printed into figures.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import processes
from brokers import BROKER_CORE, LOAD_CORE, Broker
from load import single_count
from measure import BenchError, Options, percentile
from shoal_broker.store import Store

COMMIT = "store: one commit"
MEMORY = "command: Session"
DURABLE = "command: Session, durable"
SIGNED = "command: Session, signed"
DURABLE_SIGNED = "command: Session, durable, signed"
AIOMQTT_DURABLE = "command: aiomqtt + ack + outbox"
FLOOR = "command: codec, no library"
GMQTT = "command: gmqtt, plain echo"
AIOMQTT = "command: aiomqtt, plain echo"
PAHO = "command: paho, plain echo"
KINDS = {
    MEMORY: "session-memory",
    DURABLE: "session-durable",
    SIGNED: "session-memory-signed",
    DURABLE_SIGNED: "session-durable-signed",
    AIOMQTT_DURABLE: "session-durable-aiomqtt",
    GMQTT: "gmqtt",
    AIOMQTT: "aiomqtt",
    PAHO: "paho",
    FLOOR: "raw",
}
STDERR = "stderr"
ROW = b"\xa5" * 100
OURS = frozenset({MEMORY, DURABLE, SIGNED, DURABLE_SIGNED})


def contenders(
    broker: Broker, count: int, options: Options
) -> dict[str, Callable[[], Mapping[str, float]]]:
    """One sample is `count` commands in flight together, then some one by one."""
    commands: dict[str, Callable[[], Mapping[str, float]]] = {
        name: partial(_sample, kind, broker, count, options) for name, kind in KINDS.items()
    }
    return commands | {COMMIT: partial(_commit, single_count(count), options)}


def _sample(kind: str, broker: Broker, count: int, options: Options) -> Mapping[str, float]:
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir=options.folder))
        node = _end(stack, "node", kind, [broker.port, count, 0, 0, folder], core=LOAD_CORE)
        pids = [broker.pid, node.pid]
        # Hub and broker share a core: together they need about what the node does.
        hub = _end(stack, "hub", kind, [broker.port, count, *pids, folder], core=BROKER_CORE)
        assert hub.stdin is not None  # noqa: S101 - PIPE; for the type checker
        assert hub.stdout is not None  # noqa: S101
        hub.stdin.write(b"go\n")
        hub.stdin.flush()
        took: dict[str, float] = json.loads(hub.stdout.readline() or "{}")
        if not took:
            raise BenchError(f"the hub on {kind!r} did not finish: {_last_words(folder)}")
    return {
        "per_s": count / took["took_s"],
        "hub_us": took["hub_cpu_s"] / count * 1e6,
        "node_us": took["node_cpu_s"] / count * 1e6,
        "broker_us": took["broker_cpu_s"] / count * 1e6,
    } | {name: took[name] for name in ("p50_us", "p99_us", "sent", "delivered")}


def _commit(count: int, options: Options) -> Mapping[str, float]:
    """How long one waits for one row in the Store, alone."""

    async def commit_all(folder: str) -> list[float]:
        async with Store.open(Path(folder, "commit.db")) as store:
            await store.create("bench", version=1, ddl="CREATE TABLE bench (payload BLOB);")
            took_s = []
            for _ in range(count):
                started_s = time.perf_counter()
                await store.write(lambda db: db.execute("INSERT INTO bench VALUES (?)", (ROW,)))
                took_s.append(time.perf_counter() - started_s)
            return took_s

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        took_s = asyncio.run(commit_all(folder))
    return {"p50_us": percentile(took_s, 0.5) * 1e6, "p99_us": percentile(took_s, 0.99) * 1e6}


def _end(
    stack: contextlib.ExitStack, role: str, kind: str, task: list[object], *, core: int | None
) -> subprocess.Popen[bytes]:
    script = Path(__file__).with_name("ends.py")
    arguments = [processes.PYTHON, script, role, kind, *(str(value) for value in task)]
    folder = str(task[-1])
    stderr = stack.enter_context(open(Path(folder, STDERR), "ab"))  # noqa: PTH123, SIM115 - the stack closes it
    child = stack.enter_context(
        processes.child(
            arguments,
            core=core,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
    )
    assert child.stdout is not None  # noqa: S101 - PIPE; for the type checker
    if child.stdout.readline() != b"ready\n":
        raise BenchError(f"the {role} on {kind!r} did not connect: {_last_words(folder)}")
    return child


def _last_words(folder: str) -> str:
    lines = Path(folder, STDERR).read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-1] if lines else "it said nothing"
