"""What a child process does to itself before it touches foreign bytes: limits, and no life after the agent's. Linux."""

import contextlib
import ctypes
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_OOM_SCORE: Final = "600"
"""Before the agent and before its models: it comes back by itself."""
_NICER: Final = 5


def confine(parent: int, *, memory_bytes: int) -> None:
    """End with the parent, take no more memory than this, write no file, yield to everything else.

    To be called before anything large is imported.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)  # it died before the line above
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the group; the agent decides
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, encoding="ascii")
    _limit(resource.RLIMIT_AS, memory_bytes)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_CORE, 0)
    with contextlib.suppress(OSError):  # a unit may forbid it
        os.nice(_NICER)
    # Before numpy is imported: its BLAS starts a thread a core, for matrices we do not multiply.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"


def _limit(what: int, size_bytes: int) -> None:
    _, hard = resource.getrlimit(what)
    limit = size_bytes if hard == resource.RLIM_INFINITY else min(size_bytes, hard)
    resource.setrlimit(what, (limit, limit))
