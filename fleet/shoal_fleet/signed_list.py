"""Which releases are signed for which group, as the controller last read it. Pure; `trust.listing` reads it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from shoal_contract.errors import TopicError
from shoal_contract.release_targets import groups_for, path_of
from shoal_contract.topics import EVERYBODY


@dataclass(frozen=True, slots=True)
class SignedList:
    """What boards with the releases' root would run.

    Attributes:
        digests: for every group that has a list, path -> sha256 of each release in it.
        unreadable: why it is not known; then nothing counts as signed.
    """

    digests: Mapping[str, Mapping[str, bytes | None]] = field(default_factory=dict)
    unreadable: str = ""

    def has(self, model: str, release: bytes, group: str | None) -> bool:
        """Whether a board with this label `group` would run it.

        What a board without a label (None) takes stands in its own configuration: there any list does.
        """
        among = self.digests if group is None else groups_for([group])
        return any(self._lists(one, model, release) for one in among)

    def why_not(self, model: str, release: bytes, group: str | None) -> str:
        """Why such a board would refuse it, in words; empty: it would not."""
        if self.unreadable:
            return f"the update metadata cannot be read: {self.unreadable}"
        if self.has(model, release, group):
            return ""
        return f"nobody has signed it for {group or EVERYBODY}"

    def _lists(self, group: str, model: str, release: bytes) -> bool:
        try:
            path = path_of(group, model, release)
        except TopicError:
            return False
        return self.digests.get(group, {}).get(path) == release
