"""Tasks that live as long as a block of code. Knows nothing of what they do."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Self, TypeVar

T = TypeVar("T")


class Background:
    """Owns the tasks that an open resource needs behind the scenes.

    A task that fails ends the block (the failure comes out as an ExceptionGroup); leaving the block
    cancels the tasks; an exception of the block itself comes out as it is.
    """

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self._tasks: set[asyncio.Task[Any]] = set()

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator[Self]:
        """Tasks may be started until the block is left."""
        failure: Exception | None = None
        async with asyncio.TaskGroup() as group:
            background = cls(group)
            try:
                yield background
            except Exception as exc:  # noqa: BLE001 - raised again, outside of the group
                failure = exc
            finally:
                background._cancel()
        if failure is not None:
            raise failure

    def start(self, coroutine: Coroutine[Any, Any, Any], *, name: str) -> None:
        """Run this until it ends or the block is left."""
        _ = self.hold(coroutine, name=name)

    def hold(self, coroutine: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """The same, for who may want to cancel it."""
        task = self._group.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()
