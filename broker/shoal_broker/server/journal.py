"""What the core tells of its changes to state that is to survive the process. A port: nothing is written here.

A session that is to be remembered has a `SessionJournal`; any other has None, and so has every session of
a broker that keeps everything in memory: there a change costs one comparison. Calls come after the
change, never fail and never wait; what must not be said before it is on the disk is the shell's business.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from shoal_broker.server.messages import Delivery, Message
    from shoal_broker.server.sessions import Session
    from shoal_broker.server.subscriptions import Subscription


class SessionJournal(Protocol):
    """The changes of one session."""

    def connected(self) -> None:
        """CONNECT was accepted: interval, clocks and will are new."""

    def changed(self) -> None:
        """Interval, clocks or will changed, and nobody was promised anything."""

    def ended(self) -> None:
        """The session and everything in it is forgotten."""

    def subscribed(self, pattern: str, subscription: Subscription) -> None:
        """A subscription is new or has new options."""

    def unsubscribed(self, pattern: str) -> None:
        """A subscription is gone, and with it the retained messages that were due for it."""

    def owes(self, pattern: str, messages: Iterable[Message]) -> None:
        """These retained messages, and no others, are due for the subscription."""

    def gave(self, pattern: str, message: Message) -> None:
        """One of them is not due any more: `sent` comes next, or it had expired."""

    def queued(self, delivery: Delivery) -> None:
        """A message of QoS 1 or 2 waits."""

    def sent(self, packet_id: int, delivery: Delivery) -> None:
        """It is on its way under this packet id."""

    def settled(self, delivery: Delivery) -> None:
        """It was acknowledged, or dropped."""

    def released(self, packet_id: int, delivery: Delivery) -> None:
        """PUBREC came: the message is not needed any more, PUBREL is due."""

    def completed(self, packet_id: int) -> None:
        """PUBCOMP came."""

    def received(self, packet_id: int) -> None:
        """A QoS 2 message of the client was taken: it is not to be taken again before PUBREL."""

    def finished(self, packet_id: int) -> None:
        """PUBREL came for it."""


class Journal(Protocol):
    """The changes of the broker."""

    @property
    def accepting(self) -> bool:
        """False while nothing can be written: then nobody may be promised anything."""

    def session(self, session: Session) -> SessionJournal:
        """Begin to remember a session that holds nothing yet."""

    def retained(self, message: Message) -> None:
        """It is the retained message of its topic."""

    def cleared(self, topic: str) -> None:
        """The topic has no retained message any more."""
