"""What the exit codes of every Shoal command mean."""

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes."""

    OK = 0
    FAILED = 1
    """Refused or failed."""
    USAGE = 2
    UNREACHABLE = 3
    TIMED_OUT = 4
    INTERRUPTED = 130
