"""What the core tells the shell besides bytes: for the log, and where a password must be checked."""

from dataclasses import dataclass

from shoal_broker.server.connection import Connection


@dataclass(frozen=True, slots=True)
class AuthenticationWanted:
    """Check this and answer with `BrokerCore.authenticated`; until then the client waits."""

    connection: Connection
    user_name: str
    password: bytes


@dataclass(frozen=True, slots=True)
class ClientConnected:
    """CONNECT was accepted."""

    peer: str
    client_id: str
    mqtt_version: str
    user_name: str | None
    clean_start: bool
    session_present: bool
    keep_alive_s: int


@dataclass(frozen=True, slots=True)
class ClientRefused:
    """No CONNECT came, or it was refused with `reason_code` (None: closed without a word)."""

    peer: str
    reason_code: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class ClientGone:
    """A connected client is gone: it said so, we sent it away with `reason_code`, or it was lost."""

    peer: str
    client_id: str
    reason_code: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class ClientDenied:
    """The first thing that a connected client may not do (`publish`, `subscribe`), by the access rules."""

    client_id: str
    identity: str
    action: str
    topic: str


Event = AuthenticationWanted | ClientConnected | ClientRefused | ClientGone | ClientDenied
