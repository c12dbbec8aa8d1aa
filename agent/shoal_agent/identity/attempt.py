"""One attempt to get a certificate, in a child of its own: the agent itself loads no X.509."""

import asyncio
import sys
from typing import Final

import msgspec

from shoal_agent.errors import IdentityError
from shoal_agent.identity.task import Outcome, Task

TIMEOUT_S: Final = 75.0
"""More than the child gives itself."""
MAX_OUTPUT_BYTES: Final = 65536

_MODULE: Final = "shoal_agent.identity.child"


async def attempt(task: Task) -> Outcome:
    """Start the child and wait for it; it is killed when it takes too long, or nobody waits any more.

    Raises:
        IdentityError: it could not be started, or died.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            _MODULE,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as exc:
        raise IdentityError(f"cannot start the process that enrols: {exc.strerror}") from exc
    try:
        async with asyncio.timeout(TIMEOUT_S):
            stdout, stderr = await process.communicate(msgspec.json.encode(task))
    except TimeoutError as exc:
        raise IdentityError(f"no end of an enrolment within {TIMEOUT_S:g} s") from exc
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        return msgspec.json.decode(stdout[:MAX_OUTPUT_BYTES], type=Outcome)
    except msgspec.DecodeError as exc:
        lines = stderr[-MAX_OUTPUT_BYTES:].decode("utf-8", "replace").strip().splitlines()
        why = lines[-1][:200] if lines else f"exit code {process.returncode}"
        raise IdentityError(f"the process that enrols died: {why}") from exc
