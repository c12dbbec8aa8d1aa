"""What can be set on the embedded broker, and what may not be. Reads no file and no environment.

As a TOML file it is `config_file`'s business; what happens at each limit is told in docs/broker.md.
"""

import math
import typing
from enum import Enum, auto
from pathlib import Path
from typing import Annotated

import msgspec

from shoal_broker import bus_errors
from shoal_broker.errors import ConfigError
from shoal_broker.loopback import is_loopback
from shoal_broker.packet_text import DEFAULT_MAX_PACKET_BYTES
from shoal_broker.server.access_rules import AccessRules
from shoal_broker.server.bridge.table import BridgeTable, check_names
from shoal_broker.topic_filter import check_topic
from shoal_contract import toml

LARGEST_PORT = 65_535
LARGEST_WINDOW = 65_535
NEVER_EXPIRES = 0xFFFFFFFF

AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]


class Limits(toml.Table, frozen=True, kw_only=True):
    """[limits]: how much the broker takes upon itself. 0 messages or bytes a second: any number."""

    max_packet_bytes: Annotated[int, msgspec.Meta(ge=256, le=64 << 20)] = DEFAULT_MAX_PACKET_BYTES
    max_connections: AtLeastOne = 10_000
    max_connections_per_address: NotNegative = 0
    """0: as many as there may be in all."""
    max_connects_per_s: NotNegative = 0
    """Of one address."""
    max_messages_per_s: NotNegative = 0
    """Published by one client."""
    max_bytes_per_s: NotNegative = 0
    """Sent by one client."""
    max_sessions: AtLeastOne = 20_000
    """Connected clients and those that are remembered while they are away."""
    max_subscriptions: AtLeastOne = 1_000
    """A session."""
    max_subscription_bytes: NotNegative = 256 << 20
    """All sessions: filters, and what their levels take in memory."""
    max_queued_messages: AtLeastOne = 10_000
    """A session, waiting or sent and not yet acknowledged."""
    max_queued_bytes: NotNegative = 16 << 20
    """A session, likewise."""
    max_queued_bytes_total: NotNegative = 256 << 20
    """All sessions; a message that waits for several counts once."""
    max_in_flight: Annotated[int, msgspec.Meta(ge=1, le=LARGEST_WINDOW)] = 256
    """QoS 1 and 2 messages sent to one client and not yet acknowledged; its receive maximum counts too."""
    receive_max: Annotated[int, msgspec.Meta(ge=1, le=LARGEST_WINDOW)] = 1_024
    """QoS 1 and 2 messages of one client that are not yet answered for good; announced."""
    max_retained_messages: NotNegative = 100_000
    max_retained_bytes: NotNegative = 256 << 20
    max_topic_aliases: Annotated[int, msgspec.Meta(ge=0, le=LARGEST_WINDOW)] = 32
    """Of one client, and as many towards it if it takes them."""
    max_keep_alive_s: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 0
    """Announced to a client that wants a longer one or none; 0: what the client says."""
    max_session_expiry_s: Annotated[int, msgspec.Meta(ge=0, le=NEVER_EXPIRES)] = NEVER_EXPIRES
    """Announced to a client that wants longer; all ones: for ever."""
    write_buffer_bytes: Annotated[int, msgspec.Meta(ge=1)] = 256 << 10
    """A connection with more than this waiting to be sent gets no further messages until it is less."""
    connect_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 10.0
    """From the first byte of TCP to the CONNECT, TLS included."""


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """PEM files of a listener that speaks TLS 1.3."""

    cert_file: Path
    key_file: Path
    client_ca_file: Path | None = None
    """Clients must have a certificate of this authority; its CN is who they are."""
    crl_file: Path | None = None
    """Certificates that the authority has revoked."""


class Login(Enum):
    """How a client shows who it is."""

    ANYBODY = auto()
    """It does not: it has no identity and no rules."""
    PASSWORD = auto()
    CERTIFICATE = auto()
    INSIDE = auto()
    """It is a part of this process."""


class Listener(msgspec.Struct, frozen=True, kw_only=True):
    """An address to listen on."""

    host: str = "127.0.0.1"
    port: int = 1883
    """0: any free port."""
    tls: Tls | None = None
    no_auth: bool = False
    """Anybody who reaches it may connect, and use every topic."""
    websocket: bool = False
    """MQTT over WebSocket, at /mqtt."""
    origins: tuple[str, ...] = ()
    """Of web pages that may connect ("*": all); none: pages of the same host. Programs may always."""

    @property
    def name(self) -> str:
        """What the metrics call it."""
        scheme = ("ws" if self.websocket else "mqtt") + ("s" if self.tls is not None else "")
        return f"{scheme}:{self.port}"

    @property
    def asks_for_certificate(self) -> bool:
        """Whether a client shows by its certificate who it is."""
        return self.tls is not None and self.tls.client_ca_file is not None


class BrokerConfig(Limits, frozen=True, kw_only=True):
    """Settings of one broker. Raises ConfigError when a value makes no sense."""

    host: str = "127.0.0.1"
    port: int = 1883
    """0: any free port."""
    tls: Tls | None = None
    no_auth: bool = False
    """Anybody who reaches `host` may connect; must be said when `host` is not loopback."""
    websocket_port: int | None = None
    """Speak MQTT over WebSocket, too, like `host` in all else; 0: any free port."""
    websocket_origins: tuple[str, ...] = ()
    more_listeners: tuple[Listener, ...] = ()
    """Beside those that the fields above describe."""

    password_file: Path | None = None
    """Clients must give a user name and password from this file, except where they show a certificate."""
    access: AccessRules = AccessRules()
    """Holds for clients that are authenticated."""

    sys_interval_s: float = 10.0
    """How often `$SYS/broker/...` is published, while anybody listens; 0: never."""
    response_topics: str = ""
    """Who asks for response information is told `<this>/<client id>`; empty: nothing."""
    durable_dir: Path | None = None
    """Keep sessions, queues and retained messages in a file here, too. None: in memory only."""
    bridges: tuple[BridgeTable, ...] = ()
    """To upstream brokers."""

    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None
    """Serve Prometheus `/metrics` here; 0: any free port."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        _check_ranges(self)
        _check_port("metrics_port", self.metrics_port)
        _check_topics(self)
        check_names(self.bridges)
        asked = False
        for listener in self.listeners:
            _check_port("port", listener.port)
            if listener.no_auth and listener.asks_for_certificate:
                raise ConfigError("client certificates and no authentication exclude each other")
            asked |= not listener.no_auth and not listener.asks_for_certificate
        if self.password_file is not None and not asked:
            raise ConfigError(
                "a password file and no authentication exclude each other: no listener asks for it"
            )
        for listener in self.listeners:
            self._check_open_door(listener)

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """Every address to listen on."""
        first = Listener(host=self.host, port=self.port, tls=self.tls, no_auth=self.no_auth)
        if self.websocket_port is None:
            return (first, *self.more_listeners)
        second = msgspec.structs.replace(
            first, port=self.websocket_port, websocket=True, origins=self.websocket_origins
        )
        return (first, second, *self.more_listeners)

    def login_at(self, listener: Listener) -> Login:
        """How clients of `listener` show who they are."""
        if listener.asks_for_certificate:
            return Login.CERTIFICATE
        if self.password_file is not None and not listener.no_auth:
            return Login.PASSWORD
        return Login.ANYBODY

    def _check_open_door(self, listener: Listener) -> None:
        if listener.no_auth or self.login_at(listener) is not Login.ANYBODY:
            return
        if not is_loopback(listener.host):
            raise ConfigError(
                f"{listener.host} can be reached from other machines: give a password file or an "
                "authority for clients' certificates, or say that nobody needs one "
                "(--password-file FILE, --tls-client-ca FILE or --no-auth)"
            )
        if any(self.login_at(other) is not Login.ANYBODY for other in self.listeners):
            raise ConfigError(
                f"{listener.host}:{listener.port} lets anybody in beside a listener that asks who "
                "a client is: say so (no_auth = true), or give a password file"
            )


def _check_port(name: str, port: int | None) -> None:
    if port is not None and not 0 <= port <= LARGEST_PORT:
        raise ConfigError(f"{name} is {port}; a port is 0 to {LARGEST_PORT}")


def _check_topics(config: BrokerConfig) -> None:
    if not 0 <= config.sys_interval_s < math.inf:
        raise ConfigError(f"sys_interval_s is {config.sys_interval_s}; it is at least 0")
    topics = config.response_topics
    if topics:
        try:
            check_topic(topics)
        except bus_errors.TopicError as exc:
            raise ConfigError(f"response_topics: {exc}") from exc
        if topics.startswith("$"):
            raise ConfigError(f"response_topics is {topics}; clients cannot publish below $")


def _check_ranges(limits: Limits) -> None:
    """The ranges of Limits, for those that do not come from a file."""
    for name, kind in typing.get_type_hints(Limits, include_extras=True).items():
        value = getattr(limits, name)
        (allowed,) = kind.__metadata__
        lowest = allowed.ge if allowed.ge is not None else allowed.gt
        too_low = value < lowest or (allowed.gt is not None and value == lowest)
        if too_low or (allowed.le is not None and value > allowed.le):
            at_least = "more than" if allowed.gt is not None else "at least"
            at_most = "" if allowed.le is None else f" and at most {allowed.le}"
            raise ConfigError(f"{name} is {value}; it is {at_least} {lowest}{at_most}")
