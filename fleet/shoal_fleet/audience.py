"""Whom something is meant for: a group, or the nodes for which a label expression holds. Pure.

A group has the nodes with its labels now and later. An expression is asked once: who it names then is meant.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from shoal_fleet import label_expression
from shoal_fleet.errors import RequestError
from shoal_fleet.label_expression import EVERYONE, Expression
from shoal_fleet.registry import Node
from shoal_fleet.selection import belongs, parse_group


@dataclass(frozen=True, slots=True)
class Audience:
    """Some of the nodes. Build it with `Audience.parse`.

    Attributes:
        group, where: what a person wrote; one of them is empty.
    """

    group: str
    where: str
    labels: tuple[tuple[str, str], ...] = ()
    expression: Expression = EVERYONE

    @classmethod
    def parse(cls, *, group: str = "", where: str = "") -> Self:
        """What a person named; nothing names everybody.

        Raises:
            RequestError: both, or one that is none.
        """
        if group.strip() and where.strip():
            raise RequestError("a group and an expression: one of them names the nodes")
        labels = tuple(sorted(parse_group(group).items()))
        return cls(group, where.strip(), labels, label_expression.parse(where))

    @property
    def is_settled(self) -> bool:
        """Who is meant does not change any more when labels do."""
        return bool(self.where)

    @property
    def text(self) -> str:
        """What it is called in a message."""
        if self.where:
            return f"no node is where {self.where}"
        return f"no node is in the group {self.group!r}" if self.group else "no nodes yet"

    def has(self, node: Node) -> bool:
        """Whether the node is meant, by its labels now."""
        if self.where:
            return label_expression.holds(self.expression, labels_of(node))
        return belongs(node.labels, dict(self.labels))

    def among(self, nodes: Iterable[Node]) -> list[Node]:
        """Those that are meant.

        Raises:
            RequestError: nobody is.
        """
        found = [node for node in nodes if self.has(node)]
        if not found:
            raise RequestError(self.text)
        return found


def labels_of(node: Node) -> dict[str, str]:
    """What an expression asks: the labels, the name as `node`, and without a label `hw` the board's model."""
    found = dict(node.labels)
    if node.reported is not None:
        found.setdefault("hw", node.reported.hardware.model)
    found["node"] = node.name
    return found
