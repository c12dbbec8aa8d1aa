"""A simulated microcontroller: a program of its own at the other end of a pty or a TCP port.

It behaves as good firmware does (`firmware.py` holds that behaviour) and writes down, line by line, what
it sampled and what it was made to do: `python -m shoal_firmware_bridge.simulated_mcu --help`.
"""

import argparse
import asyncio
import contextlib
import json
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TextIO

from shoal_contract import frames
from shoal_contract.exits import Exit
from shoal_contract.frames import FrameReader
from shoal_firmware_bridge.firmware import MAX_NAME_BYTES, MAX_PAYLOAD_BYTES, Firmware, Wrote
from shoal_firmware_bridge.simulated_lines import BadLine, on_pty, on_tcp

MAX_RATE_HZ = 10_000


class SimulatedMcu:
    """Runs a Firmware on the clock and a line."""

    def __init__(self, firmware: Firmware, line: BadLine, log: TextIO) -> None:
        self._firmware = firmware
        self._line = line
        self._log = log
        self._send: Callable[[bytes], None] = _to_nobody
        self._changed = asyncio.Event()

    def stop_sampling(self) -> None:
        """Take no new samples; go on with what was taken."""
        self._firmware.stop_sampling()

    def attach(self, send: Callable[[bytes], None]) -> None:
        """Send through this from now on; it loses what it has no room for."""
        self._send = send

    def detach(self) -> None:
        """Nobody is at the other end."""
        self._send = _to_nobody

    def receive(self, cutter: FrameReader, data: bytes) -> None:
        """Bytes came in."""
        for frame in cutter.receive(self._line.carry(data)):
            self._do(self._firmware.receive(frame, time.monotonic()))
        self._changed.set()

    async def run(self) -> NoReturn:
        """Live until cancelled."""
        self._note(Wrote("start", {"boot": self._firmware.boot}))
        while True:
            self._do(self._firmware.tick(time.monotonic()))
            wait_s = max(0.0, self._firmware.next_tick_s - time.monotonic())
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()

    def _do(self, actions: list[frames.Frame | Wrote]) -> None:
        for action in actions:
            if isinstance(action, Wrote):
                self._note(action)
            elif wire := self._line.carry(frames.encode(action)):
                self._send(wire)

    def _note(self, wrote: Wrote) -> None:
        entry = {"t": time.monotonic(), "kind": wrote.kind, **wrote.facts}
        self._log.write(json.dumps(entry) + "\n")
        self._log.flush()


def _to_nobody(_data: bytes) -> None:
    pass


def main() -> None:
    """The program."""
    options = _parser().parse_args()
    _check(options)
    try:
        data = options.samples.read_bytes()
        log = options.log.open("a", encoding="utf-8")
    except OSError as exc:
        _complain(f"{exc.filename}: {exc.strerror}", Exit.USAGE)
    size = options.sample_bytes
    if not data or len(data) % size:
        _complain(f"{options.samples} is not whole samples of {size} bytes", Exit.USAGE)
    firmware = Firmware(
        name=options.name,
        samples=[data[at : at + size] for at in range(0, len(data), size)],
        rate_hz=options.rate_hz,
        boot=random.SystemRandom().randrange(1, 1 << 16) if options.boot is None else options.boot,
        limit=options.limit,
        now_s=time.monotonic(),
    )
    with log:
        mcu = SimulatedMcu(firmware, BadLine(options.loss, options.corrupt, options.seed), log)
        try:
            asyncio.run(_run(mcu, options))
        except OSError as exc:
            _complain(str(exc), Exit.FAILED)


def _check(options: argparse.Namespace) -> None:
    """What argparse does not know of the options."""
    limits = (
        (0 < options.rate_hz <= MAX_RATE_HZ, f"--rate-hz is above 0, at most {MAX_RATE_HZ}"),
        (
            1 <= options.sample_bytes <= MAX_PAYLOAD_BYTES,
            f"--sample-bytes is 1 to {MAX_PAYLOAD_BYTES}",
        ),
        (
            len(options.name.encode(errors="replace")) <= MAX_NAME_BYTES,
            f"--name has at most {MAX_NAME_BYTES} bytes",
        ),
        (options.boot is None or 0 <= options.boot <= frames.MAX_SEQ, "--boot is 0 to 2^32 - 1"),
        (options.limit is None or options.limit >= 0, "--limit is 0 or more"),
        (0 <= options.loss <= 1, "--loss is 0 to 1"),
        (0 <= options.corrupt <= 1, "--corrupt is 0 to 1"),
        (options.tcp_port is None or 0 <= options.tcp_port < 1 << 16, "--tcp-port is 0 to 65535"),
    )
    for holds, rule in limits:
        if not holds:
            _complain(rule, Exit.USAGE)


def _complain(message: str, code: Exit) -> NoReturn:
    print(f"simulated_mcu: {message}", file=sys.stderr)  # noqa: T201 - a command line
    sys.exit(code)


async def _run(mcu: SimulatedMcu, options: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGUSR1, mcu.stop_sampling)
    async with contextlib.AsyncExitStack() as stack:
        if options.pty_link is not None:
            stack.enter_context(on_pty(mcu, options.pty_link))
        else:
            port = await stack.enter_async_context(on_tcp(mcu, options.tcp_port))
            print(port, flush=True)  # noqa: T201 - how a port 0 is learnt
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        life = tasks.create_task(mcu.run(), name="mcu")
        await stop.wait()
        life.cancel()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m shoal_firmware_bridge.simulated_mcu",
        description="A simulated microcontroller. SIGUSR1 stops its sampling, SIGTERM ends it.",
        epilog="example: ... --name meter --samples scans.bin --pty-link /tmp/tty-meter --log meter.jsonl",
    )
    parser.add_argument("--name", required=True, help="what it answers to HELLO")
    parser.add_argument("--samples", type=Path, required=True, help="payloads, one after the other")
    parser.add_argument("--sample-bytes", type=int, default=40, help="length of one payload")
    parser.add_argument("--rate-hz", type=float, default=10.0, help="samples a second")
    parser.add_argument("--limit", type=int, help="stop sampling after that many")
    parser.add_argument("--boot", type=int, help="its boot number (default: drawn)")
    parser.add_argument(
        "--log", type=Path, required=True, help="where it writes down what happened"
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--pty-link", type=Path, help="make a pty and a link to it here")
    where.add_argument("--tcp-port", type=int, help="listen on this loopback port; 0: a free one")
    parser.add_argument("--loss", type=float, default=0.0, help="chance that a piece is lost")
    parser.add_argument("--corrupt", type=float, default=0.0, help="chance of a damaged byte")
    parser.add_argument("--seed", type=int, default=1, help="of those chances")
    return parser


if __name__ == "__main__":
    main()
