"""What a node says of itself in mDNS TXT records (RFC 6763), built and strictly parsed. Pure.

Keys: v=1, root, node, role, models (comma-joined), tls=1 where mutual TLS is spoken, chunks=1 where chunks are handed out. All of it is a rumour:
anybody may say anything.
"""

import hashlib
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from typing import Final

from shoal_agent.peers.errors import WireError
from shoal_agent.peers.peer import Peer, Role
from shoal_contract import topics
from shoal_contract.errors import TopicError

SERVICE_TYPE: Final = "_shoal._tcp.local."
VERSION: Final = "1"
MAX_MODELS: Final = 64
MAX_ENTRY_BYTES: Final = 255
_ROLES: Final[dict[str, Role]] = {"node": "node", "upstream": "upstream"}


def instance_name(*, node: str, root: str) -> str:
    """The service's full name: readable, and another one in every fleet on the same network."""
    return f"{node[:40]}-{_fleet_digest(node=node, root=root)}.{SERVICE_TYPE}"


def host_name(*, node: str, root: str) -> str:
    """A host name of our own: the machine's real one belongs to its own mDNS responder."""
    return f"shoal-{_fleet_digest(node=node, root=root)}.local."


def build(
    *,
    node: str,
    root: str,
    role: str,
    models: Iterable[str],
    tls: bool = False,
    shares: bool = False,
) -> dict[str, str]:
    """The TXT entries; models that do not fit into one entry (255 bytes) are left out."""
    fitting = ""
    for model in sorted(models)[:MAX_MODELS]:
        longer = f"{fitting},{model}" if fitting else model
        if len("models=") + len(longer) > MAX_ENTRY_BYTES:
            break
        fitting = longer
    said = {"v": VERSION, "root": root, "node": node, "role": role, "models": fitting}
    if tls:
        said["tls"] = "1"
    if shares:
        said["chunks"] = "1"
    return said


def parse(
    instance: str,
    entries: Mapping[bytes, bytes | None],
    *,
    root: str,
    address: str | None,
    port: int | None,
    tls: bool = False,
) -> Peer | None:
    """The neighbour that an announcement describes; None if it belongs to another fleet, or speaks TLS where we do not.

    Args:
        instance: the service's full name.
        entries: its TXT entries.
        root: our topic root.
        address: the IPv4 address it gives.
        port: the port it gives.
        tls: whether we speak TLS with neighbours; the others are none.

    Raises:
        WireError: it is not a proper announcement.
    """
    if any(len(key) + len(value or b"") >= MAX_ENTRY_BYTES for key, value in entries.items()):
        raise WireError("an overlong TXT entry")
    if _text(entries, b"v") != VERSION:
        raise WireError("an announcement of another version")
    if _text(entries, b"root") != root:
        return None
    if (entries.get(b"tls") == b"1") != tls:
        return None
    role = _ROLES.get(_text(entries, b"role"))
    if role is None:
        raise WireError("an unknown role")
    names = [name for name in _text(entries, b"models").split(",") if name]
    if len(names) > MAX_MODELS:
        raise WireError(f"{len(names)} models; at most {MAX_MODELS} are allowed")
    try:
        node = topics.check_node_id(_text(entries, b"node"))
        models = frozenset(map(topics.check_leaf, names))
    except TopicError as exc:
        raise WireError(str(exc)) from exc
    if instance.lower() != instance_name(node=node, root=root):
        raise WireError("the service's name is not the node's")
    shares = entries.get(b"chunks") == b"1"
    return Peer(node, _checked(address), _checked_port(port), role, models, shares)


def _fleet_digest(*, node: str, root: str) -> str:
    return hashlib.sha256(f"{root}/{node}".encode()).hexdigest()[:16]


def _text(entries: Mapping[bytes, bytes | None], key: bytes) -> str:
    value = entries.get(key)
    if value is None:
        raise WireError(f"no TXT entry {key.decode()!r}")
    try:
        return value.decode("ascii")
    except UnicodeDecodeError as exc:
        raise WireError(f"TXT entry {key.decode()!r} is not ASCII") from exc


def _checked(address: str | None) -> str:
    try:
        parsed = IPv4Address(address or "")
    except ValueError as exc:
        raise WireError("no IPv4 address") from exc
    if parsed.is_multicast or parsed.is_unspecified or parsed.is_reserved:
        raise WireError(f"{parsed} is nobody's address")
    return str(parsed)


def _checked_port(port: int | None) -> int:
    if port is None or not 1 <= port <= 65535:  # noqa: PLR2004 - ports
        raise WireError("no port")
    return port
