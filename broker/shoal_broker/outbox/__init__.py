"""The durable outbox: messages that must leave, kept until the other side has them. See `queue`."""

from shoal_broker.outbox.queue import Outbox, OutboxStats
from shoal_broker.outbox.rows import Lane, OutboxMessage, OutboxRow, insert

__all__ = ["Lane", "Outbox", "OutboxMessage", "OutboxRow", "OutboxStats", "insert"]
