"""`$SYS/broker/...`: what the broker says of itself, under the names that Mosquitto uses. No I/O.

Nothing is counted up and nothing is sent while nobody subscribes below `$SYS`.
"""

import math
from collections.abc import Iterator

from shoal_broker.codec import PublishPacket
from shoal_broker.server.counters import Counters
from shoal_broker.server.messages import from_publish
from shoal_broker.server.router import STATUS_ROOT, Router

SHORTEST_INTERVAL_S = 1.0
"""Who subscribes gets figures no older than this, and cannot have them made more often."""


class StatusTopics:
    """Announces changed figures every `interval_s`; 0: never, and nothing is retained either."""

    def __init__(
        self, interval_s: float, router: Router, counters: Counters, *, version: str, durable: bool
    ) -> None:
        self._interval_s = interval_s
        self._router = router
        self._counters = counters
        self._version = version
        self._durable = durable
        self._started_at_s: float | None = None
        self._announced_at_s = -math.inf

    def tick(self, now_s: float) -> None:
        """Announce what has changed, if it is time and anybody listens."""
        if self._started_at_s is None:
            self._started_at_s = now_s
        if self._interval_s and self._router.subscriptions.has_branch(STATUS_ROOT):
            self._announce(now_s, self._interval_s)

    def refresh(self, now_s: float) -> None:
        """Somebody subscribes: let it find figures of now."""
        if self._interval_s:
            self._announce(now_s, min(SHORTEST_INTERVAL_S, self._interval_s))

    def _announce(self, now_s: float, age_s: float) -> None:
        if now_s - self._announced_at_s < age_s:
            return
        self._announced_at_s = now_s
        for name, value in self._figures(now_s):
            topic, payload = f"{STATUS_ROOT}/broker/{name}", str(value).encode()
            known = self._router.status.get(topic)
            if known is None or known.content.payload != payload:
                packet = PublishPacket(topic, payload, retain=True)
                self._router.announce(from_publish(packet, topic, "", len(payload), now_s), now_s)

    def _figures(self, now_s: float) -> Iterator[tuple[str, int | str]]:
        router, counters = self._router, self._counters
        sessions = router.sessions.values()
        connected = held_messages = held_bytes = 0
        for session in sessions:
            connected += session.connected
            held_messages += session.held_messages
            held_bytes += session.held_bytes
        uptime_s = 0.0 if self._started_at_s is None else now_s - self._started_at_s
        yield "version", f"shoal-broker version {self._version}"
        yield "durable", "yes" if self._durable else "no"
        yield "uptime", f"{int(uptime_s)} seconds"
        yield "clients/total", len(sessions)
        yield "clients/connected", connected
        yield "clients/disconnected", len(sessions) - connected
        yield "messages/received", counters.received_packets
        yield "messages/sent", counters.sent_packets
        yield "publish/messages/received", counters.messages_in
        yield "publish/messages/sent", counters.messages_out
        yield "publish/messages/dropped", sum(counters.dropped.values())
        yield "bytes/received", counters.received_bytes
        yield "bytes/sent", counters.sent_bytes
        yield "subscriptions/count", len(router.subscriptions)
        yield "retained messages/count", len(router.retained)
        yield "store/messages/count", held_messages
        yield "store/messages/bytes", held_bytes
