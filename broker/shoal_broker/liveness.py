"""Is a connection alive, or does it only look so? Pings, and the limits of patience.

TCP notices a dead modem after minutes, and paho after two keepalives; a board's commands wait
meanwhile. What happens then (reconnect, backoff) is the session's business.
"""

from __future__ import annotations

import asyncio
import time
from typing import NoReturn

from shoal_broker.bus_errors import LinkError
from shoal_broker.link import Link, SessionConfig
from shoal_broker.pump import SendWindow

# Early enough for the broker, which counts to 1.5 keepalives, and late enough to be cheap.
PING_SHARE_OF_KEEPALIVE = 0.75
HALF_OPEN_KEEPALIVES = 1.5
WATCH_MIN_S = 0.02


async def watch(link: Link, window: SendWindow, config: SessionConfig) -> NoReturn:
    """Ping when the line is quiet. Raises LinkError when it is silent or takes nothing."""
    keepalive_s = link.greeting.keepalive_s or config.keepalive_s
    silence_s = config.half_open_timeout_s or HALF_OPEN_KEEPALIVES * keepalive_s
    ping_after_s = min(PING_SHARE_OF_KEEPALIVE * keepalive_s, silence_s / 2)
    pinged_s = 0.0
    while True:
        now_s = time.monotonic()
        if now_s - link.last_inbound_s >= silence_s:
            raise LinkError(f"nothing from the broker for {silence_s:g} s")
        if window.stuck_s >= config.ack_timeout_s:
            raise LinkError(f"the broker acknowledged nothing for {config.ack_timeout_s:g} s")
        due_s = min(link.last_inbound_s, link.last_outbound_s) + ping_after_s
        if due_s <= now_s and pinged_s + ping_after_s <= now_s:
            link.ping()
            pinged_s = now_s
        wake_s = min(
            link.last_inbound_s + silence_s,
            max(due_s, pinged_s + ping_after_s),
            # Whatever is sent meanwhile cannot be overdue before that.
            now_s + config.ack_timeout_s - window.stuck_s,
        )
        await asyncio.sleep(max(WATCH_MIN_S, wake_s - now_s))
