"""Whose turn it is when several models have work: by what each has cost, not by turns. Pure.

Start-time fair queueing: of the models whose most urgent request is in the highest class, the one that has used
least goes next. A model that was idle begins where the others are: it saves nothing up.
"""

from collections.abc import Mapping


class Turns:
    """Costs by release, in seconds of the worker."""

    def __init__(self) -> None:
        self._used: dict[bytes, float] = {}
        self._now = 0.0

    def next(self, classes: Mapping[bytes, int]) -> bytes:
        """The release whose turn it is.

        Args:
            classes: of each release that has work, the class of its most urgent request, ageing included.
        """
        highest = max(classes.values())
        candidates = [release for release, rank in classes.items() if rank == highest]
        # Of all, not of the highest class alone: who was overtaken is not to lose what it has not used.
        self._now = min(self._start(release) for release in classes)
        return min(candidates, key=self._start)

    def charge(self, release: bytes, seconds: float) -> None:
        """It has cost, or is going to cost, so much; less than 0 corrects an earlier guess."""
        self._used[release] = self._start(release) + seconds

    def forget(self, release: bytes) -> None:
        """It is gone."""
        self._used.pop(release, None)

    def _start(self, release: bytes) -> float:
        return max(self._used.get(release, 0.0), self._now)
