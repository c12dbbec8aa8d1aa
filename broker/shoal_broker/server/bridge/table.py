"""`[[bridge]]` of the broker's configuration file: the upstream broker, and which topics go which way.

Its address, TLS and identity are the keys of every `[broker]` table. Reads nothing by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, ClassVar

import msgspec

from shoal_broker.broker_table import BrokerTable
from shoal_broker.bus_errors import BrokerTableError, TopicError
from shoal_broker.errors import ConfigError
from shoal_broker.link import Transport
from shoal_broker.topic_filter import SHARE_PREFIX, check_filter
from shoal_contract import toml

AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Direction(StrEnum):
    """Which way messages go."""

    OUT = "out"
    """From here to the upstream broker."""
    IN = "in"
    BOTH = "both"


class BridgedTopics(toml.Table, frozen=True, kw_only=True):
    """[[bridge.topic]]: `filter` stands behind a prefix on either side; only the prefix is exchanged."""

    filter: str
    direction: Direction
    qos: Annotated[int, msgspec.Meta(ge=0, le=1)] = 1
    """At most; a message of QoS 0 stays one."""
    local_prefix: str = ""
    remote_prefix: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for prefix in (self.local_prefix, self.remote_prefix):
            if "+" in prefix or "#" in prefix:
                raise ConfigError(f"{prefix!r} cannot be a prefix: the wildcards go into `filter`")
            if (prefix + self.filter).startswith(SHARE_PREFIX):
                raise ConfigError("a bridge shares its topics with nobody: no $share")
            try:
                check_filter(prefix + self.filter)
            except TopicError as exc:
                raise ConfigError(str(exc)) from exc
        if self.goes_out and (self.remote_prefix + self.filter).startswith("$"):
            raise ConfigError(
                f"{self.remote_prefix + self.filter!r}: topics with $ belong to the upstream broker:"
                " give a remote_prefix"
            )
        if self.comes_in and (self.local_prefix + self.filter).startswith("$"):
            raise ConfigError(
                f"{self.local_prefix + self.filter!r}: topics with $ belong to this broker:"
                " give a local_prefix"
            )

    @property
    def goes_out(self) -> bool:
        """Whether messages go to the upstream broker."""
        return self.direction != Direction.IN

    @property
    def comes_in(self) -> bool:
        """Whether messages come from the upstream broker."""
        return self.direction != Direction.OUT


class BridgeTable(BrokerTable, frozen=True, kw_only=True):
    """One upstream broker. Raises ConfigError when the keys do not go together.

    `client_id`: who we are there, `name` without it. With `queue_file` what goes out waits in that
    SQLite file, within the limits given, the oldest leaving first; without, in the broker's own
    queue for the bridge, within [limits], and publishers are told when that is full.
    """

    table: ClassVar[str] = "bridge"

    name: str
    client_id: str | None = None
    topic: tuple[BridgedTopics, ...]
    queue_file: str | None = None
    max_queued_messages: AtLeastOne | None = None
    max_queued_bytes: AtLeastOne | None = None
    max_age_s: AtLeastOne | None = None
    announce_upstream: bool = True
    """Tell the upstream broker, too, whether the bridge stands: $SYS/broker/connection/<client id>/state."""
    transport: Transport = "codec"

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"[bridge] name {self.name!r}: 1 to 64 letters, digits, '.', '_', '-'"
            )
        if self.transport != "codec":
            raise ConfigError(f"[bridge] {self.name}: bridges have no transport but 'codec'")
        try:
            self.check_encrypted()
        except BrokerTableError as exc:
            raise ConfigError(str(exc)) from exc
        if not self.topic:
            raise ConfigError(
                f"[bridge] {self.name}: no [[bridge.topic]], nothing would go over it"
            )
        for way in ("goes_out", "comes_in"):
            self._check_filters([topic for topic in self.topic if getattr(topic, way)], way)
        if self.queue_file is None:
            for key in ("max_queued_messages", "max_queued_bytes", "max_age_s"):
                if getattr(self, key) is not None:
                    raise ConfigError(
                        f"[bridge] {self.name}: {key} is a limit of the queue_file, and none is given"
                    )

    def _check_filters(self, topics: list[BridgedTopics], way: str) -> None:
        side = "local_prefix" if way == "goes_out" else "remote_prefix"
        filters = [getattr(topic, side) + topic.filter for topic in topics]
        twice = [each for each in filters if filters.count(each) > 1]
        if twice:
            raise ConfigError(f"[bridge] {self.name}: {twice[0]!r} {way.replace('_', ' ')} twice")

    @property
    def upstream_id(self) -> str:
        """Our client id at the upstream broker."""
        return self.client_id or self.name


def check_names(bridges: Iterable[BridgeTable]) -> None:
    """Raise ConfigError when two have the same name."""
    names = [bridge.name for bridge in bridges]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(f"[bridge] {twice[0]}: two bridges have this name")
