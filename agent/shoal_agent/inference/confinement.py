"""What a process may do that judges a release nobody has to trust yet: resource limits, no network, no programs.

Each process confines itself, once, before it looks at the release. Nothing here can be taken back.
"""

import ctypes
import platform
import resource
import struct
import sys
from typing import Final

_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_SET_SECCOMP: Final = 22
_SECCOMP_MODE_FILTER: Final = 2
_ALLOW: Final = 0x7FFF0000
_EPERM: Final = 0x00050001
_X32_BIT: Final = 0x40000000

_FORBIDDEN: Final[dict[str, tuple[int, tuple[int, ...]]]] = {
    "x86_64": (0xC000003E, (41, 59, 322, 425)),
    "aarch64": (0xC00000B7, (198, 221, 281, 425)),
}
"""By machine: its audit number (linux/audit.h), and its numbers of socket, execve, execveat, io_uring_setup.

A socket cannot be had without socket(2), nor by io_uring; what was open before stays open.
"""


def limit(*, cpu_s: int, file_bytes: int | None = None, memory_bytes: int | None = None) -> None:
    """Limit processor time, the size of files that are written, and private memory; no core is dumped.

    Args:
        cpu_s: over all threads; then the kernel ends the process (SIGXCPU).
        file_bytes: None: as it is.
        memory_bytes: in all (RLIMIT_DATA: what is mapped from files does not count); None: as it is.
    """
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_CPU, cpu_s)
    if file_bytes is not None:
        _lower(resource.RLIMIT_FSIZE, file_bytes)
    if memory_bytes is not None:
        _lower(resource.RLIMIT_DATA, memory_bytes)


def forbid_network_and_programs() -> bool:
    """From now on this process opens no socket and starts no program; False: this kernel cannot do that.

    Source: seccomp(2), "filter mode"; the programs are classic BPF, as in linux/filter.h.
    """
    # A 32-bit program under a 64-bit kernel has other numbers.
    known = _FORBIDDEN.get(platform.machine()) if sys.maxsize > 1 << 32 else None
    if known is None:
        return False
    program = _program(*known)
    buffer = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: a count and, aligned, a pointer.
    described = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None)
    zero = ctypes.c_ulong(0)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero) != 0:
        return False
    mode = ctypes.c_ulong(_SECCOMP_MODE_FILTER)
    return bool(libc.prctl(_PR_SET_SECCOMP, mode, ctypes.c_char_p(described), zero, zero) == 0)


def _program(architecture: int, forbidden: tuple[int, ...]) -> bytes:
    """Another architecture's calls, and x32's, are forbidden as a whole: their numbers mean other things."""
    count = len(forbidden)
    lines = [
        (0x20, 0, 0, 4),  # load seccomp_data.arch
        (0x15, 0, count + 3, architecture),  # equal, or forbidden
        (0x20, 0, 0, 0),  # load seccomp_data.nr
        (0x35, count + 1, 0, _X32_BIT),  # at least: forbidden
        *((0x15, count - n, 0, number) for n, number in enumerate(forbidden)),
        (0x06, 0, 0, _ALLOW),
        (0x06, 0, 0, _EPERM),
    ]
    return b"".join(struct.pack("<HBBI", *line) for line in lines)


def _lower(what: int, value: int) -> None:
    _, hard = resource.getrlimit(what)
    limit_ = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(what, (limit_, limit_))
