"""Runs one module of this package as a short-lived child: killable, so that nothing it reads can harm us."""

import asyncio
import sys
from dataclasses import dataclass
from typing import Final

from shoal_fleet.errors import StateError

MAX_OUTPUT_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended. `exit_code` None: it was killed because it took too long."""

    exit_code: int | None
    stdout: bytes
    complaint: str
    """The last line that it wrote to stderr."""


async def run_module(module: str, *args: str, timeout_s: float) -> Ended:
    """Run `python -m module args` to its end, or kill it after `timeout_s` or when cancelled.

    Raises:
        StateError: this machine cannot start another process now.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            *args,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as exc:
        raise StateError(f"cannot start {module}: {exc.strerror}") from exc
    timed_out = False
    stdout = stderr = b""
    try:
        async with asyncio.timeout(timeout_s):
            stdout, stderr = await process.communicate()
    except TimeoutError:
        timed_out = True
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    lines = stderr[-MAX_OUTPUT_BYTES:].decode("utf-8", "replace").strip().splitlines()
    return Ended(
        exit_code=None if timed_out else process.returncode,
        stdout=stdout[:MAX_OUTPUT_BYTES],
        complaint=lines[-1] if lines else "",
    )
