"""Finds what a test's programs left behind: every descendant inherits a mark in its environment."""

import os
import secrets
import time
from pathlib import Path

VARIABLE = "SHOAL_TEST_MARK"


def new_mark() -> str:
    """A value for VARIABLE that no other process has."""
    return secrets.token_hex(8)


def marked(mark: str) -> dict[int, str]:
    """Command lines by pid of the living processes that carry the mark."""
    wanted = f"{VARIABLE}={mark}".encode()
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            if wanted not in (entry / "environ").read_bytes().split(b"\0"):
                continue
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # it has just ended, or is somebody else's
        found[int(entry.name)] = command
    return found


def none_left(mark: str, *, within_s: float) -> dict[int, str]:
    """What still lives after at most that time: nothing, when all is well."""
    deadline = time.monotonic() + within_s
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left
