"""A board that QEMU emulates, instruction by instruction: it boots an image file, and is reached by SSH on a loopback port.

It has no way out but the ports of this machine that are given to it at `HOST`: slirp is closed (`restrict=on`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from tests.support.mosquitto import free_port

HOST = "10.0.2.100"
USER = "shoal-admin"
RELAY = Path(__file__).with_name("relay.py")


class BoardError(Exception):
    """The board does not do what it should; the message carries what it said last."""


class EmulatedBoard:
    """A running board. `ssh_port` is on loopback."""

    def __init__(
        self, process: subprocess.Popen[bytes], ssh_port: int, key: Path, console: Path
    ) -> None:
        self.process = process
        self.ssh_port = ssh_port
        self.key = key
        self.console = console

    @classmethod
    @contextmanager
    def open(
        cls,
        image: Path,
        *,
        kernel: Path,
        initrd: Path,
        cpu: str,
        key: Path,
        console: Path,
        ports: Iterable[int],
        counts: Path,
    ) -> Iterator[Self]:
        """Power on; leaving takes the power away.

        Args:
            image: of the disk; written to.
            cpu: of QEMU's list, such as cortex-a72.
            key: the private key whose other half the image admits.
            console: what the board says on its serial line is appended there.
            ports: of this machine that the board reaches at HOST.
            counts: a folder; a file a connection says there how many bytes went to the board.
        """
        ssh_port = free_port()
        forwards = "".join(
            f",guestfwd=tcp:{HOST}:{port}-cmd:{sys.executable} {RELAY} 127.0.0.1 {port} {counts}"
            for port in ports
        )
        with console.open("ab") as log:
            process = subprocess.Popen(
                [
                    *("qemu-system-aarch64", "-M", "virt", "-cpu", cpu, "-smp", "2", "-m", "1024"),
                    *(
                        "-accel",
                        "tcg,thread=multi",
                        "-display",
                        "none",
                        "-monitor",
                        "none",
                        "-serial",
                        "stdio",
                    ),
                    *("-kernel", str(kernel), "-initrd", str(initrd)),
                    *("-append", "console=ttyAMA0 ro quiet systemd.show_status=yes"),
                    *("-drive", f"file={image},format=raw,if=none,id=card,cache=writeback"),
                    *("-device", "virtio-blk-pci,drive=card"),
                    *(
                        "-netdev",
                        f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{ssh_port}-:22{forwards}",
                    ),
                    *("-device", "virtio-net-pci,netdev=net", "-device", "virtio-rng-pci"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        board = cls(process, ssh_port, key, console)
        try:
            yield board
        finally:
            board.cut_power()

    def cut_power(self) -> None:
        """Nothing is written any more, as when the plug is pulled."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=20)

    def run(self, command: str, *, timeout_s: float = 120, check: bool = True) -> str:
        """What a command prints on the board, as root. Raises BoardError: it failed, or there is no SSH."""
        try:
            done = subprocess.run(
                [*self._ssh(), f"sudo sh -c {_quoted(command)}"],
                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as exc:
            raise BoardError(f"{command}: no answer after {timeout_s} s") from exc
        if check and done.returncode:
            raise BoardError(f"{command}: {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def send(self, content: Path | bytes, target: str) -> None:
        """Write a file on the board. Raises BoardError."""
        data = content if isinstance(content, bytes) else content.read_bytes()
        done = subprocess.run(
            [*self._ssh(), f"cat > {target}"],
            input=data,
            capture_output=True,
            timeout=300,
            check=False,
        )
        if done.returncode:
            raise BoardError(f"{target}: {done.stderr.decode(errors='replace')}")

    def until(self, command: str, *, timeout_s: float) -> str:
        """Repeat a command until it succeeds. Raises BoardError."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return self.run(command, timeout_s=60)
            except BoardError as exc:
                if self.process.poll() is not None:
                    raise BoardError(f"QEMU ended: {self.tail()}") from exc
                if time.monotonic() > deadline:
                    raise BoardError(f"{exc}; its console: {self.tail()}") from exc
                time.sleep(1)

    def tail(self) -> str:
        """The end of the console."""
        return self.console.read_text(errors="replace")[-3000:]

    def _ssh(self) -> list[str]:
        return [
            *(
                "ssh",
                "-F",
                "none",
                "-i",
                str(self.key),
                "-p",
                str(self.ssh_port),
                "-o",
                "BatchMode=yes",
            ),
            *("-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={os.devnull}"),
            *("-o", "ConnectTimeout=30", "-o", "LogLevel=ERROR", f"{USER}@127.0.0.1"),
        ]


def _quoted(command: str) -> str:
    return "'" + command.replace("'", "'\\''") + "'"
