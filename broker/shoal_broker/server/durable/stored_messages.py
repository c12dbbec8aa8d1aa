"""Which stored message is needed by how many: it is stored once, and deleted with the last who needs it. Pure."""

from shoal_broker.server.durable.pending import Pending, Stored
from shoal_broker.server.messages import Message


class StoredMessages:
    """By the identity of the message, which is kept alive here."""

    def __init__(self, pending: Pending) -> None:
        self._pending = pending
        self._stored: dict[int, Stored] = {}

    def need(self, message: Message) -> Stored:
        """Somebody needs the message, or one more."""
        stored = self._stored.get(id(message))
        if stored is None:
            stored = self._stored[id(message)] = self._pending.new_message(message)
        stored.needed_by += 1
        return stored

    def need_no_more(self, stored: Stored) -> None:
        """One less needs it."""
        stored.needed_by -= 1
        self.forget_unneeded(stored)

    def restored(self, stored: Stored) -> None:
        """Know a message that is in the file already; `need` counts who needs it."""
        self._stored[id(stored.message)] = stored

    def forget_unneeded(self, stored: Stored) -> None:
        """Delete a message that nobody needs."""
        if not stored.needed_by:
            del self._stored[id(stored.message)]
            self._pending.drop_message(stored)
