"""A neighbour's address, as it was announced or configured. Says nothing about whether it can be trusted."""

from dataclasses import dataclass
from typing import Literal

Role = Literal["node", "upstream"]


@dataclass(frozen=True, slots=True)
class Peer:
    """Where a node may be asked. An empty `node` is a configured address whose node id is not known."""

    node: str
    host: str
    port: int
    role: Role = "node"
    models: frozenset[str] = frozenset()
    shares: bool = False
    """It says that it hands out chunks of what it holds."""
