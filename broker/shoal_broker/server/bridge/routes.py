"""Where a message of one broker goes on the other: prefixes exchanged, replies led back. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shoal_broker.server.bridge.table import BridgedTopics
from shoal_broker.topic_filter import matches


@dataclass(frozen=True, slots=True)
class Route:
    """One way of one entry of the table."""

    topic_filter: str
    """Behind both prefixes."""
    source_prefix: str
    target_prefix: str
    qos: int

    @property
    def source_filter(self) -> str:
        """What to subscribe to."""
        return self.source_prefix + self.topic_filter

    def target(self, topic: str) -> str:
        """The topic on the other side."""
        return self.target_prefix + topic.removeprefix(self.source_prefix)

    def source(self, topic: str) -> str | None:
        """The topic on this side whose messages arrive there as `topic`; None when none do."""
        if not matches(self.target_prefix + self.topic_filter, topic):
            return None
        return self.source_prefix + topic.removeprefix(self.target_prefix)


def outward(topics: Iterable[BridgedTopics]) -> list[Route]:
    """The routes to the upstream broker."""
    return [
        Route(topic.filter, topic.local_prefix, topic.remote_prefix, topic.qos)
        for topic in topics
        if topic.goes_out
    ]


def inward(topics: Iterable[BridgedTopics]) -> list[Route]:
    """The routes from the upstream broker."""
    return [
        Route(topic.filter, topic.remote_prefix, topic.local_prefix, topic.qos)
        for topic in topics
        if topic.comes_in
    ]


def reply_topic(response_topic: str | None, back: Sequence[Route]) -> str | None:
    """Where to reply on the other side, so that the reply comes back on `back` to `response_topic`.

    One that no route leads to stays as it is: whoever replies may know another way.
    """
    if response_topic is None:
        return None
    for route in back:
        if (found := route.source(response_topic)) is not None:
            return found
    return response_topic
