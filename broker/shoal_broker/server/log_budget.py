"""How many lines of a kind may go into the log: a storm of clients must not fill the disk. Pure.

What is left out is counted, and said in one line when there is room again.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Budget:
    """At most `burst` lines at once and `per_s` for long."""

    burst: int
    per_s: float


@dataclass(slots=True)
class _Account:
    lines: float
    at_s: float
    left_out: int = 0


class LogBudget:
    """The budgets of several events. Time comes in as seconds on a monotonic clock."""

    def __init__(self, budgets: Mapping[str, Budget], now_s: float) -> None:
        self._budgets = budgets
        self._accounts = {event: _Account(budget.burst, now_s) for event, budget in budgets.items()}

    def may_log(self, event: str, now_s: float) -> bool:
        """Whether this line may be written; one that may not is counted."""
        account = self._refilled(event, now_s)
        if account.lines < 1:
            account.left_out += 1
            return False
        account.lines -= 1
        return True

    def left_out(self, now_s: float, *, at_last: bool = False) -> Iterator[tuple[str, int]]:
        """Which events were left out how often, once there is room for a line about it, or `at_last`."""
        for event in self._budgets:
            account = self._refilled(event, now_s)
            if account.left_out and (at_last or account.lines >= 1):
                account.lines -= 1
                count, account.left_out = account.left_out, 0
                yield event, count

    def _refilled(self, event: str, now_s: float) -> _Account:
        budget, account = self._budgets[event], self._accounts[event]
        account.lines = min(budget.burst, account.lines + (now_s - account.at_s) * budget.per_s)
        account.at_s = now_s
        return account
