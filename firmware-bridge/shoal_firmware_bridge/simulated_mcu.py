"""A simulated microcontroller: a program of its own at the other end of a pty or a TCP port.

It behaves as good firmware does (`firmware.py` holds that behaviour) and writes down, line by line, what
it sampled and what it was made to do: `python -m shoal_firmware_bridge.simulated_mcu --help`.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import time
import tty
from pathlib import Path
from typing import Any, NoReturn, TextIO

from shoal_contract import frames
from shoal_contract.exits import Exit
from shoal_contract.frames import FrameReader
from shoal_firmware_bridge.firmware import Firmware, Wrote

READ_BYTES = 4096
RETRY_OPEN_S = 0.2


class Line:
    """A line that may be bad: drops and damages what passes, by a seeded chance."""

    def __init__(self, loss: float, corrupt: float, seed: int) -> None:
        self._loss = loss
        self._corrupt = corrupt
        self._random = random.Random(seed)  # noqa: S311 - a simulation that can be repeated

    def carry(self, data: bytes) -> bytes:
        """What arrives of these bytes."""
        if self._random.random() < self._loss:
            return b""
        if data and self._random.random() < self._corrupt:
            damaged = bytearray(data)
            damaged[self._random.randrange(len(data))] ^= self._random.randrange(1, 256)
            return bytes(damaged)
        return data


class SimulatedMcu:
    """Runs a Firmware on the clock and a line."""

    def __init__(self, firmware: Firmware, line: Line, log: TextIO) -> None:
        self._firmware = firmware
        self._line = line
        self._log = log
        self._write: Any = None
        self._changed = asyncio.Event()

    def stop_sampling(self) -> None:
        """Take no new samples; go on with what was taken."""
        self._firmware.stop_sampling()

    def attach(self, write: Any) -> None:
        """Send through this from now on; None: the line is open at the other end."""
        self._write = write

    def receive(self, cutter: FrameReader, data: bytes) -> None:
        """Bytes came in."""
        for frame in cutter.receive(self._line.carry(data)):
            self._do(self._firmware.receive(frame, time.monotonic()))
        self._changed.set()

    async def run(self) -> None:
        """Live until cancelled."""
        self._note(Wrote("start", {"boot": self._firmware.boot}))
        while True:
            now_s = time.monotonic()
            self._do(self._firmware.tick(now_s))
            wait_s = max(0.0, self._firmware.next_tick_s - time.monotonic())
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()

    def _do(self, actions: list[frames.Frame | Wrote]) -> None:
        for action in actions:
            if isinstance(action, Wrote):
                self._note(action)
            elif self._write is not None and (wire := self._line.carry(frames.encode(action))):
                self._write(wire)

    def _note(self, wrote: Wrote) -> None:
        entry = {"t": time.monotonic(), "kind": wrote.kind, **wrote.facts}
        self._log.write(json.dumps(entry) + "\n")
        self._log.flush()


async def _on_pty(mcu: SimulatedMcu, link: Path) -> None:
    """Own a pty and offer its other end at `link`, whoever opens and closes it."""
    ours, theirs = os.openpty()
    # Both ends stay open here, so that a bridge that goes away is silence and not a hang-up.
    tty.setraw(theirs)
    os.set_blocking(ours, False)
    temporary = link.with_name(link.name + ".part")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    temporary.symlink_to(os.ttyname(theirs))
    temporary.replace(link)
    cutter = FrameReader()

    def write(data: bytes) -> None:
        # A full buffer is a line nobody reads: what does not fit is lost, as on a UART.
        with contextlib.suppress(BlockingIOError):
            os.write(ours, data)

    def read() -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            mcu.receive(cutter, os.read(ours, READ_BYTES))

    mcu.attach(write)
    loop = asyncio.get_running_loop()
    loop.add_reader(ours, read)
    try:
        await mcu.run()
    finally:
        loop.remove_reader(ours)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(link)  # noqa: PTH108 - the last act of this program
        os.close(ours)
        os.close(theirs)


async def _on_tcp(mcu: SimulatedMcu, port: int) -> None:
    """Listen on loopback; the newest connection has the device."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        cutter = FrameReader()
        mcu.attach(writer.write)
        try:
            while data := await reader.read(READ_BYTES):
                mcu.receive(cutter, data)
        except ConnectionError:
            return
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201 - how a port 0 is learnt
    async with server:
        await mcu.run()


def main() -> None:
    """The program."""
    options = _parser().parse_args()
    try:
        data = options.samples.read_bytes()
        log = options.log.open("a", encoding="utf-8")
    except OSError as exc:
        _complain(f"{exc.filename}: {exc.strerror}")
    size = options.sample_bytes
    if not data or len(data) % size:
        _complain(f"{options.samples} is not whole samples of {size} bytes")
    firmware = Firmware(
        name=options.name,
        samples=[data[at : at + size] for at in range(0, len(data), size)],
        rate_hz=options.rate_hz,
        boot=options.boot or random.SystemRandom().randrange(1, 1 << 16),
        limit=options.limit,
        now_s=time.monotonic(),
    )
    with log:
        mcu = SimulatedMcu(firmware, Line(options.loss, options.corrupt, options.seed), log)
        asyncio.run(_run(mcu, options))


def _complain(message: str) -> NoReturn:
    print(f"simulated_mcu: {message}", file=sys.stderr)  # noqa: T201 - a command line
    sys.exit(Exit.USAGE)


async def _run(mcu: SimulatedMcu, options: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    if options.pty_link is not None:
        life = asyncio.ensure_future(_on_pty(mcu, options.pty_link))
    else:
        life = asyncio.ensure_future(_on_tcp(mcu, options.tcp_port))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, life.cancel)
    loop.add_signal_handler(signal.SIGUSR1, mcu.stop_sampling)
    with contextlib.suppress(asyncio.CancelledError):
        await life


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
