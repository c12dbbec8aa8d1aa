"""Who the doctor tries the access rules as: a TOML file with a controller's and a node's identity.

Reads and checks it, and looks whether they are free. Who may do what, and whether the broker agrees, stands in `access_rules`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from shoal_broker.bus_errors import TlsFilesError
from shoal_broker.doctor.client import Target, connected
from shoal_broker.doctor.errors import DoctorError, DoctorFileError, UnreachableError
from shoal_broker.doctor.passwords import read_password
from shoal_broker.tls import client_context, configured
from shoal_contract import toml
from shoal_contract.access import Role
from shoal_contract.errors import FileFormatError, TopicError
from shoal_contract.topics import Topics, check_node_id

EXAMPLE = """\
root = "shoal"

[controller]                       # one made for the purpose: see docs/brokers.md
username = "shoal-doctor"
password_file = "controller.secret"

[node]
name = "doctor-1"
cert_file = "doctor-1.crt"
key_file = "doctor-1.key"
"""


# A session that is somebody else's goes on waiting for its owner.
SESSION_EXPIRY_S = 86_400


class _Credentials(toml.Table, frozen=True, kw_only=True):
    username: str | None = None
    password_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None


class ControllerTable(_Credentials, frozen=True, kw_only=True):
    """How to connect as a controller; `name` is its client id, where the broker wants a certain one."""

    name: str | None = None


class NodeTable(_Credentials, frozen=True, kw_only=True):
    """How to connect as a node; `name` is its id and its client id."""

    name: str


class IdentitiesFile(toml.Table, frozen=True, kw_only=True):
    """The whole file."""

    root: str = "shoal"
    controller: ControllerTable
    node: NodeTable


@dataclass(frozen=True, slots=True)
class Identity:
    """How to connect as somebody of this role."""

    role: Role
    client_id: str | None
    target: Target


@dataclass(frozen=True, slots=True)
class Identities:
    """Both, and the topics that they use. `node.client_id` is the node's id."""

    topics: Topics
    node_id: str
    controller: Identity
    node: Identity


def load(file: Path) -> IdentitiesFile:
    """The file, before any other that it names is read. Raises DoctorFileError."""
    try:
        found = toml.decode(file.read_bytes(), IdentitiesFile, source=str(file))
        Topics(found.root)
        check_node_id(found.node.name)
    except OSError as exc:
        raise DoctorFileError(f"{file} cannot be read: {exc.strerror}") from exc
    except FileFormatError as exc:
        raise DoctorFileError(str(exc)) from exc
    except TopicError as exc:
        raise DoctorFileError(f"{file}: {exc}") from exc
    return found


def read_identities(file: Path, target: Target, *, ca_file: str | None) -> Identities:
    """`target` says where the broker is. Files are looked for beside `file`.

    Raises DoctorFileError.
    """
    found = load(file)

    def identity(role: Role, options: ControllerTable | NodeTable) -> Identity:
        try:
            as_it = _target(target, options, beside=file.parent, ca_file=ca_file)
        except (TlsFilesError, DoctorFileError) as exc:
            raise DoctorFileError(f"{file}: [{role}] {exc}") from exc
        return Identity(role, options.name, as_it)

    return Identities(
        topics=Topics(found.root),
        node_id=found.node.name,
        controller=identity(Role.CONTROLLER, found.controller),
        node=identity(Role.NODE, found.node),
    )


def check_unused(identity: Identity) -> None:
    """Raise DoctorError when a session waits for it, and leave that as it is.

    Where the identity is the client id, a clean start would end somebody's session: look first.
    """
    try:
        with connected(
            identity.target,
            identity.role,
            clean=False,
            session_expiry_s=SESSION_EXPIRY_S,
            client_id=identity.client_id,
            takes=False,
        ) as client:
            in_use = client.session_present
    except UnreachableError as exc:
        raise UnreachableError(f"as the {identity.role}: {exc}") from exc
    if in_use:
        raise DoctorError(
            f"the {identity.role} identity is in use, its session waits on the broker: "
            "make one for the doctor alone"
        )


def _target(
    target: Target, options: ControllerTable | NodeTable, *, beside: Path, ca_file: str | None
) -> Target:
    password = None
    if options.password_file is not None:
        password = read_password(beside / options.password_file)
    tls = configured(
        ca_file=ca_file,
        cert_file=options.cert_file and str(beside / options.cert_file),
        key_file=options.key_file and str(beside / options.key_file),
        server_name=None,
    )
    if tls is not None:
        client_context(tls)
    return replace(target, username=options.username, password=password, tls=tls)
