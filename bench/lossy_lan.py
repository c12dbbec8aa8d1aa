"""Two network namespaces joined by a wire that loses packets, for who measures over a network: real packets, the kernel's own TCP.

`tc netem` is not in every kernel; this needs /dev/net/tun, `ip`, and root or user namespaces that anybody may make. A packet
is dropped with the same probability in either direction, acknowledgements too; nothing is delayed or put out of order.

    lossy_lan.py LEFT_FD RIGHT_FD LOSS SEED    the wire, a process
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import random
import select
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import processes
from measure import BenchError

LEFT, RIGHT = "10.77.0.1", "10.77.0.2"
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_PACKET_BYTES = 65536
_libc = ctypes.CDLL(None, use_errno=True)


class Lan:
    """This process is on the left; `right` is where the other end of the wire is."""

    def __init__(self, left: int, right: int) -> None:
        self._left, self._right = left, right

    @contextlib.contextmanager
    def right(self) -> Iterator[None]:
        """What is started within is on the right."""
        _check(_libc.setns(self._right, _CLONE_NEWNET), "setns")
        try:
            yield
        finally:
            _check(_libc.setns(self._left, _CLONE_NEWNET), "setns")


@contextlib.contextmanager
def lan(loss: float, seed: int) -> Iterator[Lan]:
    """Move this process, which has one thread, into a network of its own. It never comes back.

    Raises:
        BenchError: this machine does not allow it; the message says what is missing.
    """
    if shutil.which("ip") is None:
        raise BenchError("no `ip` (Debian: iproute2)")
    if os.geteuid() != 0:
        _become_root_of_our_own()
    with contextlib.ExitStack() as stack:
        spaces, wires = [], []
        for address in (LEFT, RIGHT):
            _check(_libc.unshare(_CLONE_NEWNET), "unshare")
            spaces.append(os.open("/proc/self/ns/net", os.O_RDONLY))
            wires.append(_tun(address))
        for descriptor in (*spaces, *wires):
            stack.callback(os.close, descriptor)
        stack.enter_context(
            processes.child(
                [processes.PYTHON, __file__, str(wires[0]), str(wires[1]), f"{loss:g}", str(seed)],
                keep=wires,
            )
        )
        _check(_libc.setns(spaces[0], _CLONE_NEWNET), "setns")
        yield Lan(*spaces)


def _become_root_of_our_own() -> None:
    user, group = os.getuid(), os.getgid()
    _check(_libc.unshare(_CLONE_NEWUSER), "user namespaces")
    Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1", encoding="ascii")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1", encoding="ascii")


def _tun(address: str) -> int:
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR)
        name = struct.pack("16sH22x", b"lan0", _IFF_TUN | _IFF_NO_PI)
        fcntl.ioctl(descriptor, _TUNSETIFF, name)
    except OSError as exc:
        raise BenchError(f"/dev/net/tun: {exc.strerror}") from exc
    for words in (f"addr add {address}/24 dev lan0", "link set lan0 up", "link set lo up"):
        subprocess.run(["ip", *words.split()], check=True, timeout=10)
    return descriptor


def _check(result: int, what: str) -> None:
    if result != 0:
        raise BenchError(f"{what}: {os.strerror(ctypes.get_errno())}")


def carry(left: int, right: int, loss: float, draw: random.Random) -> None:
    """Pass packets on, or lose them, until this process is ended."""
    other = {left: right, right: left}
    while True:
        ready, _, _ = select.select([left, right], [], [])
        for descriptor in ready:
            packet = os.read(descriptor, _PACKET_BYTES)
            if draw.random() >= loss:
                os.write(other[descriptor], packet)


if __name__ == "__main__":
    carry(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), random.Random(int(sys.argv[4])))  # noqa: S311 - no secret
