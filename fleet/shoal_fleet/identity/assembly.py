"""Puts the parts of `[identity]` together for a controller; without the table there are none."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

import structlog
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from shoal_broker.link import SessionConfig
from shoal_contract.messages import Presence
from shoal_fleet.alarms import Alarms
from shoal_fleet.clock import now_ms
from shoal_fleet.database import Database
from shoal_fleet.errors import ConfigError, ListenError, RequestError
from shoal_fleet.identity import names
from shoal_fleet.identity.authority import Authority, key_pem, read_passphrase
from shoal_fleet.identity.config import CA_FOLDER, IdentityTable
from shoal_fleet.identity.disconnect import Disconnect, from_no_broker
from shoal_fleet.identity.disconnecting import Certified, TakeOver
from shoal_fleet.identity.door import BACKLOG, Door
from shoal_fleet.identity.door_certificate import DoorCertificate
from shoal_fleet.identity.enrolment import Enrolment
from shoal_fleet.identity.expiry import Expiry
from shoal_fleet.identity.inventory import Inventory
from shoal_fleet.identity.pending import Pending
from shoal_fleet.identity.revocations import Revocations
from shoal_fleet.identity.tokens import Tokens
from shoal_fleet.registry import Registry
from shoal_fleet.selection import GROUP_LABEL
from shoal_fleet.wanted import WantedStates

log = structlog.get_logger(__name__)

MOMENT_S: Final = 120.0
"""How long a certificate lasts with which a node's session is taken over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What the API speaks to. `work` runs beside the controller."""

    authority: Authority
    inventory: Inventory
    tokens: Tokens
    pending: Pending
    enrolment: Enrolment
    revocations: Revocations
    expiry: Expiry
    door: Door
    work: Mapping[str, Callable[[], Awaitable[NoReturn]]]


async def open_identity(
    stack: AsyncExitStack,
    table: IdentityTable | None,
    *,
    state_dir: Path,
    database: Database,
    inventory: Inventory,
    registry: Registry,
    wanted: WantedStates,
    alarms: Alarms,
    reserved: Collection[str],
    broker: SessionConfig,
) -> Identity | None:
    """The door is open until the stack is left; None without the table.

    Raises:
        AuthorityError: the authority's directory cannot be used.
        ListenError: the address is taken, or not this machine's.
    """
    if table is None:
        return None
    folder = state_dir / CA_FOLDER if table.ca_dir is None else Path(table.ca_dir)
    passphrase = (
        None if table.passphrase_file is None else read_passphrase(Path(table.passphrase_file))
    )
    authority = await asyncio.to_thread(Authority.load, folder, passphrase=passphrase)
    revocations = Revocations(
        database,
        authority,
        inventory,
        disconnect=_disconnecting(broker, authority, table.reload_command),
        forsake=_forsaking(database, registry, wanted),
        is_node=lambda name: name in registry.nodes,
    )
    fixed = {names.CONTROLLER, *reserved, *table.reserved}
    enrolment = Enrolment(
        database,
        authority,
        inventory,
        reserved=lambda: fixed | names.given(folder),
        groups_of=_groups_in(registry),
        admit=_admitting(registry),
        superseded=revocations.write_list,
        life_s=table.certificate_days * 86400,
    )
    await enrolment.recover()
    await revocations.write_list()
    certificate = DoorCertificate(authority, state_dir, table.names)
    await asyncio.to_thread(certificate.renew)
    listener = stack.enter_context(_listen(table))
    door = await stack.enter_async_context(
        Door.open(listener, certificate.context, enrolment, ca_pem=authority.pem)
    )
    expiry = Expiry(inventory, tell=alarms.tell)
    log.info("enrolment door is open", listen=table.listen, port=door.port, ca_pin=authority.pin)
    return Identity(
        authority=authority,
        inventory=inventory,
        tokens=Tokens(database),
        pending=Pending(database, inventory),
        enrolment=enrolment,
        revocations=revocations,
        expiry=expiry,
        door=door,
        work={
            "revocations": revocations.run,
            "expiry": expiry.run,
            "door certificate": certificate.run,
        },
    )


def _disconnecting(
    broker: SessionConfig, authority: Authority, reload_command: Sequence[str]
) -> Disconnect:
    if broker.tls is None:
        return from_no_broker
    return TakeOver(broker=broker, certify=_certifying(authority), reload_command=reload_command)


def _certifying(authority: Authority) -> Callable[[str], Awaitable[Certified]]:
    async def certify(node: str) -> Certified:
        """For the controller itself, to be a revoked node for a moment; known to nobody, and in no list."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = authority.certify(
            key.public_key(), name=node, hosts=[node], now_ms=now_ms(), life_s=MOMENT_S
        )
        return Certified(certificate.public_bytes(serialization.Encoding.PEM), key_pem(key))

    return certify


def _admitting(registry: Registry) -> Callable[[str, Mapping[str, str]], Awaitable[None]]:
    async def admit(node: str, labels: Mapping[str, str]) -> None:
        """A node with a certificate is in the registry before it says its first word."""
        try:
            if await registry.heard(node, retained=True) and labels:
                await registry.label(node, labels)
        except RequestError as exc:
            # The node has too many already. Its certificate is worth more than they are.
            log.error("labels of a token not given", node=node, reason=str(exc))  # noqa: TRY400 - the message says it all

    return admit


def _groups_in(registry: Registry) -> Callable[[str], Sequence[str]]:
    def groups_of(node: str) -> Sequence[str]:
        known = registry.nodes.get(node)
        group = None if known is None else known.labels.get(GROUP_LABEL)
        return () if group is None else (group,)

    return groups_of


def _forsaking(
    database: Database, registry: Registry, wanted: WantedStates
) -> Callable[[str], Awaitable[None]]:
    async def forsake(node: str) -> None:
        """Nothing is wanted of a revoked node, and its last word no longer counts."""
        if node in registry.nodes:
            gone = Presence(online=False, boot=bytes(4), since_ms=now_ms())
            await registry.presence(node, gone)
        models = await wanted.of(node)
        async with database.write() as change:
            for model in models:
                await wanted.want_none(change, node, model)
        wanted.changed()

    return forsake


def _listen(table: IdentityTable) -> socket.socket:
    host, port = table.address
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address, family=family, backlog=BACKLOG)
    except UnicodeError as exc:
        raise ConfigError(f"[identity] listen: {host!r} is no host name") from exc
    except OSError as exc:
        raise ListenError(f"[identity] cannot listen on {table.listen}: {exc.strerror}") from exc
