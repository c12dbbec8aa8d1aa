"""The numbers that topics go by towards one client, as many as it allows. Pure.

First come, first served: a number that is given stays. A client that hears more topics than it has
numbers for gains little from exchanging them (each exchange is 3 bytes more), and a known topic costs
one look-up.
"""

SHORTEST_TOPIC = 4
"""Characters; the property takes 3 bytes itself."""
LONGEST_TOPIC = 1_024
"""So that what is remembered for a client is small."""


class TopicAliases:
    """Given out in the order in which topics are first sent."""

    __slots__ = ("_limit", "_numbers")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._numbers: dict[str, int] = {}

    def known(self, topic: str) -> int | None:
        """The number that the client knows this topic by."""
        return self._numbers.get(topic)

    def next_for(self, topic: str) -> int | None:
        """The number that this topic, which has none, may be sent with; None: it gets none."""
        number = len(self._numbers) + 1
        if number > self._limit or not SHORTEST_TOPIC <= len(topic) <= LONGEST_TOPIC:
            return None
        return number

    def give(self, topic: str, number: int) -> None:
        """The topic goes out with its number."""
        self._numbers[topic] = number
