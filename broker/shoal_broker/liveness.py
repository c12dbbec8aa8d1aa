"""Is a connection alive, or does it only look so? Pings, and the limits of patience.

TCP notices a dead modem after minutes, and paho after two keepalives; a board's commands wait
meanwhile. A timer and no task: a process may hold ten thousand connections. What happens then
(reconnect, backoff) is the session's business.
"""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Self

from shoal_broker.bus_errors import LinkError
from shoal_broker.link import Link, SessionConfig
from shoal_broker.pump import SendWindow

# Early enough for the broker, which counts to 1.5 keepalives, and late enough to be cheap.
PING_SHARE_OF_KEEPALIVE = 0.75
HALF_OPEN_KEEPALIVES = 1.5
WATCH_MIN_S = 0.02


class Watch:
    """Pings when the line is quiet, and aborts `link` when it is silent or takes nothing.

    It watches for as long as the context lasts.
    """

    __slots__ = (
        "_ack_timeout_s",
        "_link",
        "_ping_after_s",
        "_pinged_s",
        "_silence_s",
        "_timer",
        "_window",
    )

    def __init__(self, link: Link, window: SendWindow, config: SessionConfig) -> None:
        keepalive_s = link.greeting.keepalive_s or config.keepalive_s
        self._link = link
        self._window = window
        self._ack_timeout_s = config.ack_timeout_s
        self._silence_s = config.half_open_timeout_s or HALF_OPEN_KEEPALIVES * keepalive_s
        self._ping_after_s = min(PING_SHARE_OF_KEEPALIVE * keepalive_s, self._silence_s / 2)
        self._pinged_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        """Begin."""
        self._look()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        now_s = time.monotonic()
        link = self._link
        stuck_s = self._window.stuck_s
        if now_s - link.last_inbound_s >= self._silence_s:
            link.abort(LinkError(f"nothing from the broker for {self._silence_s:g} s"))
            return
        if stuck_s >= self._ack_timeout_s:
            link.abort(LinkError(f"the broker acknowledged nothing for {self._ack_timeout_s:g} s"))
            return
        due_s = min(link.last_inbound_s, link.last_outbound_s) + self._ping_after_s
        if due_s <= now_s and self._pinged_s + self._ping_after_s <= now_s:
            link.ping()
            self._pinged_s = now_s
        wake_s = min(
            link.last_inbound_s + self._silence_s,
            max(due_s, self._pinged_s + self._ping_after_s),
            # Whatever is sent meanwhile cannot be overdue before that.
            now_s + self._ack_timeout_s - stuck_s,
        )
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(WATCH_MIN_S, wake_s - now_s), self._look)
