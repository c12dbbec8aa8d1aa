"""What can go wrong on the bus, grouped by whose fault it is. No behaviour.

`BusError` is the root: catching it catches everything the session, the outbox and the store raise
on purpose. `Redeliver` stands apart: it is not a failure but a subscriber's answer.
"""

from __future__ import annotations


class BusError(Exception):
    """Root of everything that the bus raises on purpose."""


# --- the network or the broker


class LinkError(BusError):
    """The connection cannot be made or is gone. The session reconnects by itself."""


class TrustError(LinkError):
    """One end does not take the other for what it says it is. Waiting alone does not cure it.

    The session raises an alarm and asks again slowly.
    """


class IdentityRefusedError(TrustError):
    """The broker refuses who we are: with the `reason_code` of a CONNACK or with a TLS `alert`.

    The other one is None. An alert is spelled as in RFC 8446 but with blanks: "certificate expired".
    """

    def __init__(
        self, message: str, *, reason_code: int | None = None, alert: str | None = None
    ) -> None:
        super().__init__(message)
        self.reason_code = reason_code
        self.alert = alert


class BrokerNotTrustedError(TrustError):
    """We do not accept the broker's certificate; `reason` is OpenSSL's."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class TlsFilesError(TrustError):
    """What the configuration calls `key` cannot be used for TLS; `path` is its file, if it has one.

    Seen when a program starts it is a wrong configuration; later, a renewal that went wrong.
    """

    def __init__(self, message: str, *, key: str, path: str | None = None) -> None:
        super().__init__(message)
        self.key = key
        self.path = path


class CertificateFactsError(BusError):
    """A file does not hold the certificate, or the list of revoked ones, that it should; says why."""


class BrokerTableError(BusError):
    """A `[broker]` table that cannot be used; the message names the key and its file."""


class NotConnectedError(LinkError):
    """A publish or request that cannot wait was made while the broker is away."""


class AnswerTimeoutError(BusError):
    """No acknowledgement or no reply within `timeout_s`; the message may still have arrived."""

    def __init__(self, message: str, *, timeout_s: float) -> None:
        super().__init__(message)
        self.timeout_s = timeout_s


class RefusedByBrokerError(BusError):
    """The broker answered a publish or subscribe with an MQTT 5 `reason_code` >= 0x80."""

    def __init__(self, message: str, *, reason_code: int) -> None:
        super().__init__(message)
        self.reason_code = reason_code


# --- the caller


class PlaintextError(BusError):
    """What is said to a broker on another machine would go there unencrypted, and nobody allowed that."""


class TopicError(BusError):
    """Not a topic name or topic filter of MQTT 5, or a filter that is taken already."""


class MessageTooLargeError(BusError):
    """A message above the broker's maximum packet size or above the outbox's byte limit."""

    def __init__(self, message: str, *, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(message)
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes


class OutboxFullError(BusError):
    """The outbox holds as much as it may and nothing in it can be dropped."""

    def __init__(self, message: str, *, rows: int, size_bytes: int) -> None:
        super().__init__(message)
        self.rows = rows
        self.size_bytes = size_bytes


# --- the environment


class StoreError(BusError):
    """The SQLite file at `path` cannot be opened, read or written; the message says what to do."""

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(message)
        self.path = path


class TransportMissingError(BusError):
    """The library below `transport` is not installed; the message says what to install."""

    def __init__(self, message: str, *, transport: str) -> None:
        super().__init__(message)
        self.transport = transport


# --- not an error


class Redeliver(Exception):  # noqa: N818 - an answer, not an error
    """Raised by a subscriber: not done, not acknowledged; the broker is to send it again."""
