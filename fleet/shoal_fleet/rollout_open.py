"""A rollout that is under way, as the controller holds it in memory. Pure."""

from dataclasses import dataclass

from shoal_contract.requirements import Requirement
from shoal_fleet.audience import Audience
from shoal_fleet.registry import Node
from shoal_fleet.releases import Release
from shoal_fleet.rollout_roster import Roster
from shoal_fleet.rollout_state import Rollout, Standing, Status


@dataclass(slots=True)
class OpenRollout:
    """A rollout that is not at its end."""

    id: int
    release: Release
    audience: Audience
    state: Rollout
    roster: Roster
    requires: tuple[Requirement, ...] = ()

    @property
    def rank(self) -> tuple[int, int]:
        """Of two rollouts the one with the smaller rank goes first: the higher priority, then the older."""
        return (-self.state.options.priority, self.id)

    @property
    def free_leases(self) -> int:
        """Leases of the open wave that nobody has claimed."""
        return max(0, self.state.wave_size - self.roster.counts.leases.get(self.state.wave, 0))

    def has_room_at(self, now_ms: int) -> bool:
        """Whether somebody waits and a lease can be given."""
        return (
            self.state.status is Status.RUNNING
            and not self.state.is_frozen_at(now_ms)
            and self.roster.counts.at(Standing.WAITING) > 0
            and self.free_leases > 0
        )

    def waits(self, node: str) -> bool:
        """Whether the node is a member without a lease."""
        member = self.roster.members.get(node)
        return member is not None and member.standing is Standing.WAITING

    def offers(self, node: str) -> bool:
        """Whether the node was offered the release and has not answered."""
        member = self.roster.members.get(node)
        return member is not None and member.standing is Standing.OFFERED

    def may_have(self, node: Node) -> bool:
        """Whether the node is meant still: the labels of a group's node may have changed."""
        return self.audience.is_settled or self.audience.has(node)

    def joins(self, node: Node) -> bool:
        """Whether the node belongs to it now and did not before."""
        return (
            node.name not in self.roster.members
            and not self.audience.is_settled
            and self.audience.has(node)
        )
