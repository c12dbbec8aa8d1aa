"""Other names of nodes: what people say of a board. A node's own name always comes first."""

import re
from collections.abc import Mapping
from typing import Final

from shoal_fleet.errors import RequestError

_ALIAS: Final = re.compile(r"[\w](?:[\w .:_-]{0,61}[\w.])?")


def check_alias(alias: str) -> None:
    """Raise RequestError unless this may be another name of a node."""
    if not _ALIAS.fullmatch(alias):
        raise RequestError(
            f"{alias!r} is no alias: 1 to 63 letters, digits, blanks and '.:_-', no blank at an end"
        )


class Aliases:
    """Alias -> node, as it was committed."""

    def __init__(self, nodes: Mapping[str, str]) -> None:
        self._nodes = dict(nodes)

    def node(self, alias: str) -> str | None:
        """Whose name it is."""
        return self._nodes.get(alias)

    def of(self, node: str) -> list[str]:
        """The other names of a node."""
        return sorted(alias for alias, name in self._nodes.items() if name == node)

    def by_node(self) -> dict[str, list[str]]:
        """The other names of all nodes that have some."""
        found: dict[str, list[str]] = {}
        for alias, node in sorted(self._nodes.items()):
            found.setdefault(node, []).append(alias)
        return found

    def check_free(self, alias: str, node: str, nodes: Mapping[str, object]) -> None:
        """Raise RequestError when it cannot become a name of this node."""
        check_alias(alias)
        if alias in nodes:
            raise RequestError(f"{alias!r} is a node itself")
        owner = self._nodes.get(alias)
        if owner is not None and owner != node:
            raise RequestError(f"{alias!r} is a name of {owner}")

    def add(self, alias: str, node: str) -> None:
        """Behind a commit."""
        self._nodes[alias] = node

    def remove(self, alias: str) -> None:
        """Behind a commit."""
        self._nodes.pop(alias, None)
