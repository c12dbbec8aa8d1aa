"""Which releases need which: whether a node has what a release requires, and that nothing waits in a circle. Pure.

The catalogue is asked by `release_needs`; what `[requires]` may say is `shoal_contract.requirements`' business.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from shoal_contract.messages import Phase
from shoal_contract.requirements import Requirement
from shoal_fleet.registry import Node


@dataclass(frozen=True, slots=True)
class Needs:
    """A release as far as dependencies go."""

    model: str
    version: str
    requires: tuple[Requirement, ...] = ()

    @property
    def title(self) -> str:
        """`name@version`."""
        return f"{self.model}@{self.version}"


def missing(requires: Iterable[Requirement], node: Node) -> str:
    """What the node does not serve of it, in words; empty: it has all."""
    for requirement in requires:
        state = node.model(requirement.model)
        if state is None or state.phase is not Phase.SERVING or not state.version:
            return f"needs {requirement}, has none"
        if not requirement.is_met_by(state.version):
            return f"needs {requirement}, has {state.version}"
    return ""


def circle(release: Needs, catalogue: Sequence[Needs]) -> list[str]:
    """Titles of releases that wait for each other, so that `release` could never go out; empty: there is a way.

    A requirement is fulfilled by any release within its bounds that can go out itself. One that no release
    fulfils yet is no circle: the release may come.
    """
    everything = {item.title: item for item in (*catalogue, release)}
    can_go: set[str] = set()
    while True:
        more = {
            item.title
            for item in everything.values()
            if item.title not in can_go
            and all(
                not (found := _fulfilling(requirement, everything)) or not can_go.isdisjoint(found)
                for requirement in item.requires
            )
        }
        if not more:
            break
        can_go |= more
    if release.title in can_go:
        return []
    # Each of them waits for one that cannot go either: following that comes back some time.
    path: list[str] = []
    at = release.title
    while at not in path:
        path.append(at)
        at = next(
            found[0]
            for requirement in everything[at].requires
            if (found := _fulfilling(requirement, everything)) and can_go.isdisjoint(found)
        )
    return [*path[path.index(at) :], at]


def _fulfilling(requirement: Requirement, everything: Mapping[str, Needs]) -> list[str]:
    return sorted(
        title
        for title, item in everything.items()
        if item.model == requirement.model and requirement.is_met_by(item.version)
    )
