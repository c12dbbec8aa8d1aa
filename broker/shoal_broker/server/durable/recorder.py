"""Records what the core changes, for the next batch: the journal of a durable broker. Pure.

Knows which stored message is needed by whom: it is stored once, and deleted with the last who needs it.
"""

from __future__ import annotations

from shoal_broker.server.durable.pending import Pending, Stored
from shoal_broker.server.durable.session_recorder import SessionRecorder
from shoal_broker.server.messages import Message
from shoal_broker.server.sessions import Session


class Recorder:
    """A Journal."""

    def __init__(self, pending: Pending, *, next_session: int = 1) -> None:
        self.pending = pending
        self.accepting = True
        self._next_session = next_session
        self._stored: dict[int, Stored] = {}
        """By the identity of the message, which is kept alive here."""
        self._retained: dict[str, Stored] = {}

    def session(self, session: Session) -> SessionRecorder:
        """As Journal."""
        number = self._next_session
        self._next_session += 1
        return SessionRecorder(self, session, number)

    def retained(self, message: Message) -> None:
        """As Journal. What the broker says of itself ($SYS) is not stored."""
        if message.topic.startswith("$"):
            return
        self.cleared(message.topic)
        stored = self._retained[message.topic] = self.need(message)
        self.pending.retain(stored)

    def cleared(self, topic: str) -> None:
        """As Journal."""
        stored = self._retained.pop(topic, None)
        if stored is not None:
            self.pending.unretain(stored)
            self.pending.mark()
            self.need_no_more(stored)

    def need(self, message: Message) -> Stored:
        """Somebody needs the message, or one more."""
        stored = self._stored.get(id(message))
        if stored is None:
            stored = self._stored[id(message)] = self.pending.new_message(message)
        stored.needed_by += 1
        return stored

    def need_no_more(self, stored: Stored) -> None:
        """One less needs it."""
        stored.needed_by -= 1
        if not stored.needed_by:
            del self._stored[id(stored.message)]
            self.pending.drop_message(stored)

    def restored(self, stored: Stored) -> None:
        """Know a message that is in the file already; `need` counts who needs it."""
        self._stored[id(stored.message)] = stored

    def forget_unneeded(self, stored: Stored) -> None:
        """Delete a message that was in the file and that nobody needs."""
        if not stored.needed_by:
            del self._stored[id(stored.message)]
            self.pending.drop_message(stored)

    def restored_retained(self, message: Message) -> None:
        """Know that it is retained, and stored as such."""
        self._retained[message.topic] = self.need(message)
