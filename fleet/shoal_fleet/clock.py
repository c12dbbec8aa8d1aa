"""The controller's wall clock, in the unit of the contract."""

import time


def now_ms() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000
