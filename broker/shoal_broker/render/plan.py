"""What is to be rendered, checked: names, places and limits that every broker shares. No I/O."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final

from shoal_broker.errors import ConfigError
from shoal_contract.access import EVERY_NODE, Role
from shoal_contract.errors import TopicError
from shoal_contract.messages import CHUNK_BYTES, MAX_CHUNKS, MAX_MESSAGE_BYTES
from shoal_contract.topics import Topics, check_node_id

MAX_PACKET_BYTES: Final = MAX_MESSAGE_BYTES + 4096
"""The largest message with its topic, properties and header."""
MAX_QUEUED_MESSAGES: Final = 10_000
"""For one client. More than MAX_CHUNKS, so that all chunks of the largest blob fit."""
MAX_QUEUED_BYTES: Final = MAX_CHUNKS * CHUNK_BYTES
"""For one client: the largest blob."""
MAX_IN_FLIGHT: Final = 64
"""What a Session sends, and takes, before it waits for an acknowledgement."""
SESSION_EXPIRY_DAYS: Final = 7
NODE_ID_PATTERN: Final = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_BIND = re.compile(r"[A-Za-z0-9.:-]{1,253}")
_PATH = re.compile(r"/[A-Za-z0-9._/@+-]{0,400}")
_LARGEST_PORT = 65_535
_LONGEST_SAVE_S = 86_400


@dataclass(frozen=True, slots=True)
class RenderedFile:
    """A file to write, and the access mode it is to have."""

    name: str
    text: str
    mode: int = 0o640


@dataclass(frozen=True, slots=True)
class Rendering:
    """The files, and what a person does with them."""

    files: tuple[RenderedFile, ...]
    next_steps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Site:
    """A broker that is bridged to the one rendered and speaks for the nodes behind it.

    `nodes` may be empty: then it speaks for every node.
    """

    name: str
    nodes: tuple[str, ...] = ()

    @property
    def levels(self) -> tuple[str, ...]:
        """What stands at the node level of the topics it may use."""
        return self.nodes or (EVERY_NODE,)


@dataclass(frozen=True, slots=True)
class Upstream:
    """The broker to bridge to, and for which nodes (none named: for all)."""

    host: str
    port: int
    nodes: tuple[str, ...] = ()

    @property
    def levels(self) -> tuple[str, ...]:
        """What stands at the node level of the topics that are bridged."""
        return self.nodes or (EVERY_NODE,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything a rendering depends on. Raises ConfigError where something cannot work.

    Names are the common names (CN) of client certificates; whoever has a certificate and no name
    here is a node. `install_dir`, `certs_dir` and `data_dir` are places on the broker's machine.
    """

    topics: Topics = field(default_factory=Topics)
    bind: str = ""
    """The address to listen on; empty: every one."""
    port: int = 8883
    controllers: tuple[str, ...] = ("shoal-controller",)
    operators: tuple[str, ...] = ()
    observers: tuple[str, ...] = ()
    doors: tuple[str, ...] = ()
    """Clients of the JSON door."""
    sites: tuple[Site, ...] = ()
    upstream: Upstream | None = None
    install_dir: PurePosixPath
    certs_dir: PurePosixPath
    data_dir: PurePosixPath
    save_every_s: int | None = None
    """Mosquitto: seconds between two saves; None: at every change."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        _check_port("--port", self.port)
        if self.bind and not _BIND.fullmatch(self.bind):
            raise ConfigError(f"{self.bind!r} is no address to listen on")
        self._check_names()
        self._check_nodes()
        for path in (self.install_dir, self.certs_dir, self.data_dir):
            if not _PATH.fullmatch(str(path)):
                raise ConfigError(
                    f"{str(path)!r} is no absolute path that a configuration can name"
                )
        if self.save_every_s is not None and not 1 <= self.save_every_s <= _LONGEST_SAVE_S:
            raise ConfigError(
                f"--save-every-s is {self.save_every_s}; it is 1 to {_LONGEST_SAVE_S}"
            )

    def _check_names(self) -> None:
        names = [name for _, name in self.people_and_programs()]
        names += [site.name for site in self.sites]
        for name in names:
            if not _NAME.fullmatch(name):
                raise ConfigError(
                    f"{name!r} cannot be the name of a client: "
                    "1 to 64 letters, digits, '.', '_', '@', '-'"
                )
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ConfigError(f"{twice[0]} is named twice: a client has one role")
        if not self.controllers:
            raise ConfigError("a fleet without a controller commands nobody: give --controller")

    def _check_nodes(self) -> None:
        nodes = [node for site in self.sites for node in site.nodes]
        if self.upstream is not None:
            _check_port("the upstream's port", self.upstream.port)
            if not _HOST.fullmatch(self.upstream.host):
                raise ConfigError(f"{self.upstream.host!r} is no host name")
            nodes += self.upstream.nodes
        for node in nodes:
            try:
                check_node_id(node)
            except TopicError as exc:
                raise ConfigError(str(exc)) from exc

    def people_and_programs(self) -> Iterator[tuple[Role, str]]:
        """Every named client that is neither a node nor a site's broker, with its role."""
        for role, names in (
            (Role.CONTROLLER, self.controllers),
            (Role.OPERATOR, self.operators),
            (Role.OBSERVER, self.observers),
            (Role.DOOR, self.doors),
        ):
            for name in names:
                yield role, name


def _check_port(what: str, port: int) -> None:
    if not 1 <= port <= _LARGEST_PORT:
        raise ConfigError(f"{what} is {port}; a port is 1 to {_LARGEST_PORT}")
