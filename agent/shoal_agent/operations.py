"""The table of a node's operations: what is declared, and what runs.

What is declared here is what `shoal ops NODE` lists and what arguments are checked against. An operation
raises OperationError (or another AgentError) with a reason that its issuer can read.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from shoal_contract.operations import Operation

Tell = Callable[[int, str], Awaitable[None]]
"""Say how far one is: percent, and what goes on."""

Run = Callable[[dict[str, Any], Tell], Awaitable[object]]


class Operations:
    """The operations of one node, by name."""

    def __init__(self) -> None:
        self._declared: dict[str, Operation] = {}
        self._runs: dict[str, Run] = {}
        self._afters: dict[str, Callable[[], None]] = {}

    def add(
        self, operation: Operation, run: Run, *, after: Callable[[], None] | None = None
    ) -> None:
        """Declare an operation; `after` is called when its success is durable."""
        self._declared[operation.name] = operation
        self._runs[operation.name] = run
        if after is not None:
            self._afters[operation.name] = after

    def find(self, name: str) -> Operation | None:
        """The declaration, or None."""
        return self._declared.get(name)

    def declared(self) -> list[Operation]:
        """Every declaration, by name."""
        return [self._declared[name] for name in sorted(self._declared)]

    async def run(self, name: str, arguments: dict[str, Any], tell: Tell) -> object:
        """Do it, with checked arguments; the result is plain CBOR values."""
        return await self._runs[name](arguments, tell)

    def after(self, name: str) -> None:
        """What is to happen once the answer of a successful run is on the disk."""
        if name in self._afters:
            self._afters[name]()
