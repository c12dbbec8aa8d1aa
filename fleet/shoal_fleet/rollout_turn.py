"""One step of the rollout engine under way: what has changed so far lies over the roster. It decides nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from shoal_fleet.rollout_roster import Roster
from shoal_fleet.rollout_state import Action, Deed, Member, Note, Rollout

NO_FIGURES: Final[Mapping[str, float | str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step makes of a rollout: `changes` belong into the roster, `actions` are to be done."""

    rollout: Rollout
    changes: Mapping[str, Member]
    actions: tuple[Action, ...]

    @property
    def is_empty(self) -> bool:
        """No node stands elsewhere and nothing is to be done; the status may have changed."""
        return not self.changes and not self.actions


class Turn:
    """A step. The rules set what the rollout becomes: `status`, `reason`, `wave` and so on.

    Attributes:
        newly_failed: who failed in this step.
        actions: what is to be done, in order.
    """

    def __init__(self, rollout: Rollout, roster: Roster, now_ms: int) -> None:
        self.before = rollout
        self.roster = roster
        self.now_ms = now_ms
        self.changes: dict[str, Member] = {}
        self.counts = roster.counts
        self.status = rollout.status
        self.reason = rollout.reason
        self.wave = rollout.wave
        self.wave_size = rollout.wave_size
        self.approved_by = rollout.approved_by
        self.freeze = rollout.freeze
        self.newly_failed: list[str] = []
        self.actions: list[Action] = []

    def outcome(self) -> Outcome:
        """What has come of it."""
        before = self.before
        after = Rollout(
            options=before.options,
            status=self.status,
            reason=self.reason,
            wave=self.wave,
            wave_size=self.wave_size,
            unheard_ms=before.unheard_ms,
            by=before.by,
            approved_by=self.approved_by,
            freeze=self.freeze,
        )
        return Outcome(after, self.changes, tuple(self.actions))

    def member(self, node: str) -> Member | None:
        """Where the node stands now."""
        return self.changes.get(node) or self.roster.members.get(node)

    def put(self, node: str, member: Member) -> None:
        """The node stands there from now on."""
        if not self.changes:
            self.counts = self.counts.copy()
        before = self.member(node)
        if before is not None:
            self.counts.add(before, -1)
        self.changes[node] = member
        self.counts.add(member)

    @property
    def is_frozen(self) -> bool:
        """A freeze keeps it from opening waves and giving leases."""
        return (
            self.freeze is not None
            and not self.before.options.overrides_freeze
            and self.freeze.holds_at(self.now_ms)
        )

    def figures(self, **more: float | str) -> dict[str, float | str]:
        """What every decision about the whole rests on."""
        return {
            "wave": self.wave,
            "started": self.counts.all_started,
            "failed": self.counts.all_failures,
            **more,
        }

    def note(
        self,
        deed: Deed,
        text: str,
        figures: Mapping[str, float | str] = NO_FIGURES,
        *,
        by: str = "",
    ) -> None:
        """A decision is made."""
        self.actions.append(Note(text, deed, figures, by))
