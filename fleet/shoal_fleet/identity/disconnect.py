"""How a node's connection is ended at the broker: what `revocations` asks of whoever can do it."""

from typing import Protocol


class Disconnect(Protocol):
    """Ends the connection of a node that was revoked, on whatever broker there is."""

    async def __call__(self, node: str) -> None:
        """Return when the node is cut off, or when nothing more can be done about it; the log says which."""
        ...


async def by_the_list_alone(node: str) -> None:
    """For a broker that watches the list of revoked certificates itself, as the embedded one does."""
