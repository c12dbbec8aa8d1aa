"""Records what the core changes, for the next batch: the journal of a durable broker. Pure."""

from __future__ import annotations

from shoal_broker.server.durable.pending import Pending, Stored
from shoal_broker.server.durable.session_recorder import SessionRecorder
from shoal_broker.server.durable.stored_messages import StoredMessages
from shoal_broker.server.messages import Message
from shoal_broker.server.sessions import Session


class Recorder:
    """A Journal."""

    def __init__(self, pending: Pending, *, next_session: int = 1) -> None:
        self.pending = pending
        self.accepting = True
        self._next_session = next_session
        self.messages = StoredMessages(pending)
        self._retained: dict[str, Stored] = {}

    def session(self, session: Session) -> SessionRecorder:
        """As Journal."""
        number = self._next_session
        self._next_session += 1
        return SessionRecorder(self.pending, self.messages, session, number)

    def retained(self, message: Message) -> None:
        """As Journal. What the broker says of itself ($SYS) is not stored."""
        if message.topic.startswith("$"):
            return
        self.cleared(message.topic)
        stored = self._retained[message.topic] = self.messages.need(message)
        self.pending.retain(stored)

    def cleared(self, topic: str) -> None:
        """As Journal."""
        stored = self._retained.pop(topic, None)
        if stored is not None:
            self.pending.unretain(stored)
            self.pending.mark()
            self.messages.need_no_more(stored)

    def restored_retained(self, message: Message) -> None:
        """Know that it is retained, and stored as such."""
        self._retained[message.topic] = self.messages.need(message)
