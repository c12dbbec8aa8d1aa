"""The core's events as log lines, as many as their budgets allow. Decides nothing."""

from __future__ import annotations

from typing import Final

import structlog

from shoal_broker.server.events import ClientConnected, ClientDenied, ClientGone, ClientRefused
from shoal_broker.server.log_budget import Budget, LogBudget

CONNECTED, REFUSED = "client connected", "client refused"
DENIED, GONE = "client denied", "client gone"

# A fleet that comes back at once is worth its lines; who is refused comes again and again. Lines are
# of 300 bytes or so: a storm without end writes some 5 MB an hour.
BUDGETS: Final = {
    CONNECTED: Budget(burst=1_000, per_s=2),
    REFUSED: Budget(burst=50, per_s=1),
    DENIED: Budget(burst=50, per_s=1),
    GONE: Budget(burst=1_000, per_s=2),
}
MAX_LOGGED_CHARACTERS = 200
"""Of what a client chooses and no other limit holds: its user name, a topic."""

Event = ClientConnected | ClientRefused | ClientDenied | ClientGone

log = structlog.get_logger("shoal_broker")


class EventLog:
    """Writes what happened to clients."""

    def __init__(self, now_s: float) -> None:
        self._budget = LogBudget(BUDGETS, now_s)

    def write(self, event: Event, now_s: float) -> None:
        """One line, or none when there were too many."""
        match event:
            case ClientConnected():
                if self._budget.may_log(CONNECTED, now_s):
                    log.info(
                        CONNECTED,
                        client=event.client_id,
                        peer=event.peer,
                        mqtt=event.mqtt_version,
                        user=event.user_name and event.user_name[:MAX_LOGGED_CHARACTERS],
                        clean_start=event.clean_start,
                        session_present=event.session_present,
                        keep_alive_s=event.keep_alive_s,
                    )
            case ClientRefused():
                if self._budget.may_log(REFUSED, now_s):
                    log.warning(
                        REFUSED,
                        peer=event.peer,
                        reason_code=event.reason_code,
                        reason=event.reason,
                    )
            case ClientDenied():
                if self._budget.may_log(DENIED, now_s):
                    log.warning(
                        DENIED,
                        client=event.client_id,
                        user=event.identity,
                        action=event.action,
                        topic=event.topic[:MAX_LOGGED_CHARACTERS],
                    )
            case ClientGone():
                if self._budget.may_log(GONE, now_s):
                    log.info(
                        GONE,
                        client=event.client_id,
                        peer=event.peer,
                        reason_code=event.reason_code,
                        reason=event.reason,
                    )

    def sweep(self, now_s: float, *, at_last: bool = False) -> None:
        """Say what was left out, once there is room, or `at_last`."""
        for event, count in self._budget.left_out(now_s, at_last=at_last):
            log.warning("log lines left out", left_out=event, count=count)
