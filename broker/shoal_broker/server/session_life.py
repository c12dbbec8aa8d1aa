"""How sessions begin, go on without a connection, and end: expiry, wills, what others get of it. No I/O."""

from shoal_broker.server.config import BrokerConfig
from shoal_broker.server.counters import Counters, Dropped
from shoal_broker.server.messages import from_will
from shoal_broker.server.reserved import is_own_state
from shoal_broker.server.router import Router
from shoal_broker.server.sessions import NEVER_EXPIRES, NOTHING, Session


class SessionLife:
    """Adds sessions to the router, and takes them away."""

    def __init__(self, config: BrokerConfig, router: Router, counters: Counters) -> None:
        self._config = config
        self._router = router
        self._counters = counters

    def new(self, client_id: str) -> Session | None:
        """Create the session of a client id that has none; None at the limit."""
        if len(self._router.sessions) >= self._config.max_sessions:
            return None
        return self._router.add_session(client_id)

    def connected(self, session: Session) -> None:
        """The session has a connection, and an interval that says whether it is to be remembered."""
        if self._router.journal is None:
            return
        if session.is_persistent:
            if session.journal is None:
                session.journal = self._router.journal.session(session)
            session.journal.connected()
        elif session.journal is not None:
            session.journal.ended()
            session.journal = None

    def left(self, session: Session, now_s: float, *, with_will: bool) -> None:
        """The session has no connection any more: start its clocks, or end it."""
        session.connection = None
        session.repeats = NOTHING
        for lost in session.best_effort:
            session.held_bytes -= lost.message.size_bytes
        if session.best_effort:
            self._counters.dropped[Dropped.OFFLINE_QOS0] += len(session.best_effort)
            session.best_effort = NOTHING
        if session.will is not None:
            if with_will:
                session.will_due_at_s = now_s + session.will.will_delay_interval
            else:
                session.will = None
        interval_s = session.expiry_interval_s
        session.expires_at_s = None if interval_s == NEVER_EXPIRES else now_s + interval_s
        if session.journal is not None:
            session.journal.changed()
        self.run_clocks(session, now_s)

    def run_clocks(self, session: Session, now_s: float) -> None:
        """Send a will that is due, end a session that has expired."""
        if session.connection is not None:
            return
        if session.expires_at_s is not None and session.expires_at_s <= now_s:
            self.end(session, now_s)
        elif session.will_due_at_s is not None and session.will_due_at_s <= now_s:
            self._publish_will(session, now_s)

    def end(self, session: Session, now_s: float) -> None:
        """Forget the session: its will goes out, its share of shared work goes to the others."""
        self._router.sessions.pop(session.client_id, None)
        for subscription in session.subscriptions.values():
            self._router.subscriptions.remove(subscription)
        if session.will_due_at_s is not None:
            self._publish_will(session, now_s)
        for delivery, may_move in session.unacknowledged():
            group = delivery.group
            if (
                group is None
                or not may_move
                or not group.members
                or delivery.message.has_expired(now_s)
            ):
                self._counters.dropped[Dropped.SESSION_ENDED] += 1
            else:
                self._router.share(group, delivery.message, now_s)
        # Last: what the others get of it is stored already.
        if session.journal is not None:
            session.journal.ended()
            session.journal = None
        session.subscriptions.clear()
        session.forget_messages()

    def _publish_will(self, session: Session, now_s: float) -> None:
        will, session.will, session.will_due_at_s = session.will, None, None
        if session.journal is not None:
            session.journal.changed()
        if will is None:
            return
        # Checked at CONNECT, but the rules may be others by now.
        is_own = is_own_state(will.topic, session.client_id)
        if not is_own and session.rights is not None and not session.rights.may_write(will.topic):
            self._counters.dropped[Dropped.NOT_AUTHORIZED] += 1
        else:
            self._router.publish(
                from_will(will, session.client_id, now_s, self._router.ledger), now_s
            )
