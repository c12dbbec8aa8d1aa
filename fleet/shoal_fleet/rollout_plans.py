"""What a rollout would do, before it is started: members, waves, what nodes wait for, bytes, time. It changes nothing."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from shoal_fleet.admission import TZ_LABEL, closed
from shoal_fleet.answer_times import answer_s
from shoal_fleet.audience import Audience
from shoal_fleet.clock import now_ms
from shoal_fleet.database import Database
from shoal_fleet.dependencies import missing
from shoal_fleet.freezes import Freezes
from shoal_fleet.registry import Node, Registry
from shoal_fleet.release_needs import ReleaseNeeds
from shoal_fleet.releases import Release
from shoal_fleet.rollout_gate import coming_waves
from shoal_fleet.rollout_state import Options
from shoal_fleet.update_costs import UpdateCosts
from shoal_fleet.windows import parse_window, zone_of


class RolloutPlans:
    """Plans as the API shows them."""

    def __init__(
        self,
        database: Database,
        *,
        registry: Registry,
        costs: UpdateCosts,
        needs: ReleaseNeeds,
        freezes: Freezes,
    ) -> None:
        self._database = database
        self._registry = registry
        self._costs = costs
        self._needs = needs
        self._freezes = freezes

    async def of(self, release: Release, audience: Audience, options: Options) -> dict[str, Any]:
        """The plan: beside what `UpdateCosts` says, members, strata, waves, waiting nodes and time.

        Raises:
            RequestError: nobody is meant, or the window or time zone is none.
            ConflictError: the release waits for one that waits for it.
            StateError: a file of the release is gone from the store.
        """
        if options.window:
            parse_window(options.window)
            zone_of(options.tz)
        requires = await self._needs.check(release)
        cost = await self._costs.of(release, audience)
        members = [node for node in self._registry.nodes.values() if audience.has(node)]
        to_start = [node for node in members if not _serves(node, release)]
        waves = coming_waves(options, len(members), waiting=len(to_start))
        async with self._database.read() as session:
            wave_s = await answer_s(session)
        eta_s = None if wave_s is None else round(len(waves) * wave_s + cost["make_s"], 1)
        waits: Counter[str] = Counter()
        for node in to_start:
            if not node.online:
                waits["it is offline"] += 1
            elif why := _window(node, options) or missing(requires, node):
                waits[why] += 1
        return {
            **cost,
            "members": len(members),
            "requires": [str(requirement) for requirement in requires],
            "waves": waves,
            "wave_s": wave_s,
            "eta_s": eta_s,
            "strata": _strata(members),
            "waits": dict(waits.most_common()),
            "freeze": self._freezes.view(),
        }


def _serves(node: Node, release: Release) -> bool:
    state = node.model(release.name)
    return state is not None and state.release == release.id


def _window(node: Node, options: Options) -> str:
    if not options.window:
        return ""
    return closed(options, node.labels.get(TZ_LABEL, options.tz), now_ms())


def _strata(members: Sequence[Node]) -> list[dict[str, Any]]:
    """Which kinds of nodes there are, most first: the first wave has one of each in turn."""
    counts = Counter(node.strata for node in members)
    return [
        {"hardware": kind, "site": site, "link": link, "nodes": nodes}
        for (kind, site, link), nodes in counts.most_common()
    ]
