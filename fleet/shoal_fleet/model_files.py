"""Which model files boards have, by what they report, and on how many of them each is. Pure."""

from collections import Counter
from collections.abc import Iterable
from typing import Final

from shoal_fleet.registry import Node

NO_MODEL: Final = b""
"""Stands for boards that have no file of this model, or do not say which."""


def model_files(nodes: Iterable[Node], model: str) -> Counter[bytes]:
    """Boards by the digest of the model file that they serve."""
    counts: Counter[bytes] = Counter()
    for node in nodes:
        state = node.model(model)
        counts[NO_MODEL if state is None else state.model_file] += 1
    return counts
