"""Topics to which nobody has subscribed: how long their messages wait, all of one topic equally long.

A broker says so in its PUBACK (0x10): the message is gone, and its receiver about to come, or to come
back. What waits for one topic leaves together, and so in its order. Pure.
"""

from dataclasses import dataclass

FIRST_S = 1.0
LONGEST_S = 60.0


@dataclass(slots=True)
class _Absence:
    delay_s: float
    until_s: float


class Absences:
    """The topics without a subscriber, as far as the broker said."""

    def __init__(self) -> None:
        self._by_topic: dict[str, _Absence] = {}

    def met(self, topic: str, now_s: float) -> float:
        """Nobody was there: until when to wait. Longer each time that it is tried in vain."""
        absence = self._by_topic.get(topic)
        if absence is None:
            absence = self._by_topic[topic] = _Absence(FIRST_S, now_s + FIRST_S)
        elif absence.until_s <= now_s:
            absence.delay_s = min(LONGEST_S, 2 * absence.delay_s)
            absence.until_s = now_s + absence.delay_s
        return absence.until_s

    def until_s(self, topic: str) -> float:
        """Until when its messages wait; a time that has passed: they need not."""
        absence = self._by_topic.get(topic)
        return 0.0 if absence is None else absence.until_s

    def ended(self, topic: str) -> None:
        """Somebody is there."""
        self._by_topic.pop(topic, None)

    def forget(self) -> None:
        """Whatever was known is no longer so."""
        self._by_topic.clear()
