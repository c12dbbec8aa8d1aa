"""Rows that are through and still on the disk: deleted many in one write, each by one writer. Pure.

Where they are deleted is `queue`'s business; a row that is named here is no message any more.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

# Most rows deleted in one write: enough to make deletions free, few enough not to stall others.
BATCH = 256


class Deletions:
    """The rows to delete, and those that somebody deletes now."""

    def __init__(self) -> None:
        self._due: dict[int, None] = {}
        self._under_way: dict[int, None] = {}

    def __len__(self) -> int:
        """How many are due."""
        return len(self._due)

    def __contains__(self, row_id: int) -> bool:
        """Whether the row is to go, or going."""
        return row_id in self._due or row_id in self._under_way

    def add(self, row_id: int) -> None:
        """The row is through."""
        self._due[row_id] = None

    @contextmanager
    def claimed(self) -> Iterator[list[int]]:
        """Rows that the caller deletes within the block; due again when that fails."""
        claimed = list(itertools.islice(self._due, BATCH))
        for row_id in claimed:
            del self._due[row_id]
            self._under_way[row_id] = None
        try:
            yield claimed
        except BaseException:
            self._give_back(claimed)
            raise
        finally:
            for row_id in claimed:
                self._under_way.pop(row_id, None)

    def _give_back(self, row_ids: Iterable[int]) -> None:
        self._due |= dict.fromkeys(row_ids)
