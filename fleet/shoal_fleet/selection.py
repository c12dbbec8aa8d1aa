"""Which nodes a group expression names, and in which order a rollout offers. Pure."""

import hashlib
import re
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from shoal_contract.errors import TopicError
from shoal_contract.topics import EVERYBODY, check_leaf
from shoal_fleet.errors import RequestError

GROUP_LABEL: Final = "group"
MAX_LABELS: Final = 32

_KEY = re.compile(r"[a-z0-9][a-z0-9_.-]{0,31}")
_VALUE = re.compile(r"[A-Za-z0-9_.:/-]{1,64}")


def parse_group(text: str) -> dict[str, str]:
    """The labels that a node of the group must have: `site=oslo,hw=rpi4`; a bare word is `group=word`.

    An empty text names all nodes, and so does `all`.

    Raises:
        RequestError: a part is neither.
    """
    wanted: dict[str, str] = {}
    if text.strip() == EVERYBODY:
        return wanted
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        key, equals, value = part.partition("=")
        if not equals:
            key, value = GROUP_LABEL, key
        check_label(key, value)
        if wanted.setdefault(key, value) != value:
            raise RequestError(f"group {text!r} asks for two values of {key}")
    return wanted


def check_label(key: str, value: str) -> None:
    """Raise RequestError unless this may be a label."""
    if not _KEY.fullmatch(key):
        raise RequestError(f"{key!r} is not a label: 1 to 32 of a-z, 0-9, '.', '_' and '-'")
    if not _VALUE.fullmatch(value):
        raise RequestError(
            f"{value!r} is not a label's value: 1 to 64 of letters, digits and '._:/-'"
        )
    if key == GROUP_LABEL:
        if value == EVERYBODY:
            raise RequestError(f"{EVERYBODY!r} is the group that every node is in")
        try:
            check_leaf(value)
        except TopicError as exc:
            raise RequestError(f"group: {exc}") from exc


def topic_group(group: Mapping[str, str]) -> str | None:
    """The group whose topic reaches just these nodes; None: no topic does."""
    if not group:
        return EVERYBODY
    return group.get(GROUP_LABEL) if len(group) == 1 else None


def belongs(labels: Mapping[str, str], group: Mapping[str, str]) -> bool:
    """Whether a node with these labels is in the group."""
    return all(labels.get(key) == value for key, value in group.items())


def stratify(nodes: Iterable[tuple[str, Sequence[str]]], *, seed: str) -> list[str]:
    """The nodes in the order in which they are offered a release: one of each stratum in turn.

    So the first wave meets every kind of hardware, rare ones too, and within a kind every site, within
    a site every kind of link. The rest of the order is drawn by `seed`: it is not always the same boards
    that go first.

    Args:
        nodes: (node, strata), each node once; strata from what matters most to what matters least, the
            same number for all.
        seed: the same seed and nodes give the same order.
    """
    return _in_turns([(node, tuple(strata)) for node, strata in nodes], seed)


def _in_turns(nodes: list[tuple[str, tuple[str, ...]]], seed: str) -> list[str]:
    if not nodes or not nodes[0][1]:
        return sorted((node for node, _ in nodes), key=lambda node: _draw(seed, node))
    strata: dict[str, list[tuple[str, tuple[str, ...]]]] = defaultdict(list)
    for node, (stratum, *rest) in nodes:
        strata[stratum].append((node, tuple(rest)))
    queues = deque(
        deque(_in_turns(members, seed))
        for _, members in sorted(strata.items(), key=lambda item: _draw(seed, item[0]))
    )
    order: list[str] = []
    while queues:
        queue = queues.popleft()
        order.append(queue.popleft())
        if queue:
            queues.append(queue)
    return order


def _draw(seed: str, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{name}".encode()).digest()
