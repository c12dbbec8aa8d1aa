"""What can be set on the embedded broker, and what may not be. Reads no file and no environment."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from shoal_broker.errors import ConfigError
from shoal_broker.packet_text import DEFAULT_MAX_PACKET_BYTES

SMALLEST_MAX_PACKET_BYTES = 256
LARGEST_MAX_PACKET_BYTES = 64 << 20
LARGEST_PORT = 65_535
LARGEST_WINDOW = 65_535


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerConfig:
    """Settings of one broker. Raises ConfigError when a value makes no sense.

    What happens at each limit is told in docs/broker.md.
    """

    host: str = "127.0.0.1"
    port: int = 1883
    """0: any free port."""
    password_file: Path | None = None
    """Clients must give a user name and password from this file. None: anybody may connect."""
    no_auth: bool = False
    """Anybody who reaches `host` may connect; must be said when `host` is not loopback."""

    max_packet_bytes: int = DEFAULT_MAX_PACKET_BYTES
    max_connections: int = 10_000
    max_sessions: int = 20_000
    """Connected clients and those that are remembered while they are away."""
    max_subscriptions: int = 1_000
    """A session."""
    max_queued_messages: int = 10_000
    """A session, waiting or sent and not yet acknowledged."""
    max_queued_bytes: int = 16 << 20
    """A session, likewise."""
    max_in_flight: int = 256
    """QoS 1 messages sent to one client and not yet acknowledged; its receive maximum counts too."""
    max_retained_messages: int = 100_000
    max_retained_bytes: int = 256 << 20
    max_topic_aliases: int = 32
    write_buffer_bytes: int = 256 << 10
    """A connection with more than this waiting to be sent gets no further messages until it is less."""
    connect_timeout_s: float = 10.0

    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None
    """Serve Prometheus `/metrics` here; 0: any free port."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name in ("port", "metrics_port"):
            port = getattr(self, name)
            if port is not None and not 0 <= port <= LARGEST_PORT:
                raise ConfigError(f"{name} is {port}; a port is 0 to {LARGEST_PORT}")
        if not SMALLEST_MAX_PACKET_BYTES <= self.max_packet_bytes <= LARGEST_MAX_PACKET_BYTES:
            raise ConfigError(
                f"max_packet_bytes is {self.max_packet_bytes}; it is "
                f"{SMALLEST_MAX_PACKET_BYTES} to {LARGEST_MAX_PACKET_BYTES}"
            )
        if not 1 <= self.max_in_flight <= LARGEST_WINDOW:
            raise ConfigError(f"max_in_flight is {self.max_in_flight}; it is 1 to {LARGEST_WINDOW}")
        if not 0 <= self.max_topic_aliases <= LARGEST_WINDOW:
            raise ConfigError(
                f"max_topic_aliases is {self.max_topic_aliases}; it is 0 to {LARGEST_WINDOW}"
            )
        for name in ("max_connections", "max_sessions", "max_subscriptions", "max_queued_messages"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it is at least 1")
        if self.no_auth and self.password_file is not None:
            raise ConfigError("a password file and no authentication exclude each other")
        if not self.no_auth and self.password_file is None and not is_loopback(self.host):
            raise ConfigError(
                f"{self.host} can be reached from other machines: give a password file, "
                "or say that nobody needs one (--password-file FILE or --no-auth)"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`. Names but localhost are taken for reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
