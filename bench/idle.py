"""What an agent costs when nothing happens: memory, bytes on the uplink, writes to flash. For bus.py.

A window of some seconds is watched and told as a day: what comes by the clock (keepalives, reports of
the state) is counted apart and multiplied by how often it comes, nothing is guessed.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import processes
import traced
import uplink
from brokers import Broker
from idle_agent import idle_agent
from measure import BenchError, Options
from shoal_agent.config import AgentConfig
from uplink import Uplink

MEMORY_CODEC = "agent: idle, codec"
MEMORY_AIOMQTT = "agent: idle, aiomqtt"
DAY = "agent: a day"
NAIVE = "outbox: naive, 1/s"
DAY_S = 86_400
SETTLE_S = 3.0
LOOK_S = 0.2
KEEPALIVES_TIMEOUT_S = 120.0
NEVER_S = 86_400
WAL_FRAME_BYTES = 4096 + 24
# SQLite's default: a checkpoint once the log holds so many pages.
CHECKPOINT_FRAMES = 1000


@dataclass(frozen=True, slots=True)
class Window:
    """How long the flash and how many keepalives are watched, and how much the naive outbox writes."""

    watched_s: int
    report_every_s: float
    keepalives: int
    naive_messages: int


@dataclass(frozen=True, slots=True)
class Writer:
    """A process that writes to an outbox, and where."""

    folder: Path
    child: subprocess.Popen[bytes]


def contenders(
    broker: Broker, window: Window, options: Options
) -> dict[str, Callable[[], Mapping[str, float]]]:
    """Without strace nothing is said about flash."""
    found: dict[str, Callable[[], Mapping[str, float]]] = {
        MEMORY_CODEC: partial(_memory, broker, "codec", options),
        MEMORY_AIOMQTT: partial(_memory, broker, "aiomqtt", options),
        DAY: partial(_day, broker, window, options),
    }
    if traced.strace_program() is not None:
        found[NAIVE] = partial(_naive, window, options)
    return found


def _memory(broker: Broker, transport: str, options: Options) -> Mapping[str, float]:
    with (
        tempfile.TemporaryDirectory(dir=options.folder) as folder,
        idle_agent(
            Path(folder),
            broker.port,
            node="bench-memory",
            transport=transport,
            report_every_s=NEVER_S,
        ) as agent,
    ):
        time.sleep(SETTLE_S)
        return {
            "pss_mib": processes.pss_bytes(agent.pid) / (1 << 20),
            "rss_mib": processes.rss_mib(agent.pid),
        }


# ------------------------------------------------------------------ a day on the line and on the flash
def _day(broker: Broker, window: Window, options: Options) -> Mapping[str, float]:
    """At once, for all they do is wait: an idle agent, one that reports often, two 1/s publishers."""
    with contextlib.ExitStack() as stack:
        new = partial(_folder, stack, options)
        line, busy_line = (stack.enter_context(Uplink.open(broker.port)) for _ in range(2))
        quiet, busy = new(), new()
        program = traced.strace_program()
        for node, folder, port, every_s in (
            ("bench-idle", quiet, line.port, float(NEVER_S)),
            ("bench-busy", busy, busy_line.port, window.report_every_s),
        ):
            before = traced.prefix(program, folder / "trace") if program else []
            stack.enter_context(
                idle_agent(
                    folder,
                    port,
                    node=node,
                    transport="codec",
                    report_every_s=every_s,
                    prefix=before,
                )
            )
        _writer(stack, "receiver", broker.port, 0, new(), None)
        writers = {
            kind: Writer(
                folder := new(),
                _writer(stack, kind, broker.port, window.watched_s, folder, program),
            )
            for kind in ("answered", "unanswered")
        }
        time.sleep(SETTLE_S)
        segments, from_s = line.segments(), time.time()
        for writer in writers.values():
            _go(writer.child)
        for writer in writers.values():
            _expect(writer.child, b"done\n")
        done_s = time.time()
        _wait_for_keepalives(line, window.keepalives, from_s)
        segments, until_s = line.segments() - segments, time.time()
        for writer in writers.values():
            _go(writer.child)
            writer.child.wait(processes.END_TIMEOUT_S)
        figures = uplink.day(
            line.seen, segments, reports=reports_a_day(), from_s=from_s, until_s=until_s
        )
        if program is not None:
            other = _written(quiet, from_s, until_s)[0] / (until_s - from_s) * DAY_S
            report_bytes, report_frames = _written(busy, from_s, done_s)
            reports = sum(
                packet.kind == uplink.PUBLISH and from_s <= packet.at_s <= done_s
                for packet in busy_line.seen
            )
            scale = reports_a_day() / max(1, reports)
            # What the closing of the file checkpoints is what one checkpoint costs.
            each_bytes = _written(writers["unanswered"].folder, until_s, time.time())[0]
            reports_mb = (
                report_bytes * scale + _checkpoints(report_frames * scale, each_bytes)
            ) / 1e6
            figures["flash_idle_mb"] = other / 1e6 + reports_mb
            for kind, writer in writers.items():
                size_bytes, frames = _written(writer.folder, from_s, done_s)
                day = DAY_S / window.watched_s
                figures[f"flash_{kind}_mb"] = (
                    size_bytes * day + _checkpoints(frames * day, each_bytes)
                ) / 1e6
        return figures


def _wait_for_keepalives(line: Uplink, count: int, from_s: float) -> None:
    """Until the broker has answered so many since `from_s`."""
    until_s = time.monotonic() + KEEPALIVES_TIMEOUT_S
    while sum(p.kind == uplink.PINGRESP and p.at_s > from_s for p in list(line.seen)) < count:
        if time.monotonic() > until_s:
            raise BenchError(f"no {count} keepalives within {KEEPALIVES_TIMEOUT_S:g} s")
        time.sleep(LOOK_S)
    # The acknowledgement of the last answer, on TCP's own level.
    time.sleep(LOOK_S)


def reports_a_day() -> float:
    """Of an agent whose configuration says nothing about it."""
    fields = dict(zip(AgentConfig.__struct_fields__[::-1], AgentConfig.__struct_defaults__[::-1]))  # noqa: B905
    return DAY_S / float(fields["report_every_s"])


def _naive(window: Window, options: Options) -> Mapping[str, float]:
    with contextlib.ExitStack() as stack:
        folder = _folder(stack, options)
        child = _writer(stack, "naive", 0, window.naive_messages, folder, traced.strace_program())
        from_s = time.time()
        _go(child)
        _expect(child, b"done\n")
        until_s = time.time()
        _go(child)
        child.wait(processes.END_TIMEOUT_S)
        size_bytes, _ = _written(folder, from_s, until_s)
    return {"flash_mb": size_bytes / window.naive_messages * DAY_S / 1e6}


def _folder(stack: contextlib.ExitStack, options: Options) -> Path:
    return Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.folder)))


def _writer(
    stack: contextlib.ExitStack,
    kind: str,
    port: int,
    count: int,
    folder: Path,
    program: str | None,
) -> subprocess.Popen[bytes]:
    script = Path(__file__).with_name("flash_child.py")
    before = traced.prefix(program, folder / "trace") if program else []
    arguments = [*before, processes.PYTHON, script, kind, str(port), str(count), folder]
    child = stack.enter_context(
        processes.child(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    )
    _expect(child, b"ready\n")
    return child


def _expect(child: subprocess.Popen[bytes], word: bytes) -> None:
    assert child.stdout is not None  # noqa: S101 - PIPE; for the type checker
    if child.stdout.readline() != word:
        raise BenchError("the process that writes to the outbox ended")


def _go(child: subprocess.Popen[bytes]) -> None:
    assert child.stdin is not None  # noqa: S101 - PIPE; for the type checker
    child.stdin.write(b"go\n")
    child.stdin.flush()


def _written(folder: Path, from_s: float, until_s: float) -> tuple[int, float]:
    """Bytes written to the databases below the folder, and pages among them that went into a log."""
    found = [
        write
        for write in traced.writes(folder / "trace", folder)
        if from_s <= write.at_s <= until_s and Path(write.path).name.startswith("agent.db")
    ]
    log_bytes = sum(write.size_bytes for write in found if write.path.endswith("-wal"))
    return sum(write.size_bytes for write in found), log_bytes / WAL_FRAME_BYTES


def _checkpoints(frames: float, bytes_each: float) -> float:
    """What a day's checkpoints write; each costs what the one at the end did."""
    return frames / CHECKPOINT_FRAMES * bytes_each
