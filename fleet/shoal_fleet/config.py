"""The controller's configuration: a TOML file into frozen tables. It reads no environment."""

import re
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

import msgspec

from shoal_broker import broker_table
from shoal_broker.bus_errors import BrokerTableError
from shoal_broker.link import Transport
from shoal_broker.loopback import is_loopback
from shoal_contract import blobs, toml
from shoal_contract.errors import ContractError
from shoal_contract.messages import CHUNK_BYTES
from shoal_contract.topics import Topics, check_user
from shoal_fleet import database_address
from shoal_fleet.errors import ConfigError, RequestError
from shoal_fleet.identity.config import IdentityTable
from shoal_fleet.identity.config import check as check_identity
from shoal_fleet.selection import parse_group

DEFAULT_PORT: Final = 8750

_OPS = re.compile(r"\*|[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*(?:\.\*)?")

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
ChunkBytes = Annotated[
    int, msgspec.Meta(ge=blobs.SMALLEST_CHUNK_BYTES, le=blobs.LARGEST_CHUNK_BYTES)
]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=365 * 86400)]


class BrokerTable(broker_table.BrokerTable, frozen=True, kw_only=True):
    """[broker]: the controller's own defaults; where several share the load each has its own `client_id`."""

    host: str = "127.0.0.1"
    client_id: str = "shoal-controller"
    transport: Transport = "codec"


class ListenTable(toml.Table, frozen=True, kw_only=True):
    """[listen]: where the API listens; port 0 takes a free one.

    `cert_file`, `key_file`: speak TLS 1.3. `plaintext` allows other machines to do without.
    """

    host: str = "127.0.0.1"
    port: Port = DEFAULT_PORT
    cert_file: str | None = None
    key_file: str | None = None
    plaintext: bool = False


class DatabaseTable(toml.Table, frozen=True, kw_only=True):
    """[database]: a PostgreSQL in place of the files `fleet.db` and `readings.db`.

    The password is the first line of its file, or in the URL. `ca_file` switches TLS on, `plaintext`
    allows to do without to other machines.
    """

    url: str | None = None
    password_file: str | None = None
    ca_file: str | None = None
    plaintext: bool = False


class DoorTable(toml.Table, frozen=True, kw_only=True):
    """[[door]]: a client of the broker that commands and reads in JSON.

    `ops`: what it may command: names, `device.*` for all that begin so, `*` for all. `nodes`: which
    nodes it commands and sees, a group; empty: every node. `telemetry`: whether readings, presence
    and state of these nodes are mirrored for it.
    """

    user: str
    nodes: str
    ops: tuple[str, ...] = ()
    telemetry: bool = False


class FleetConfig(toml.Table, frozen=True, kw_only=True):
    """The whole file.

    `sign_commands`: what goes to nodes is signed with the key in the state directory.
    `silent_after_s`: a node that says nothing for longer raises an alarm; an agent with nothing to say
    reports every 600 s. `webhook_url`: alarms are
    posted there as JSON. `readings_kept`: the newest this many readings stay in the database.
    `chunk_bytes`: blobs are cut to this, or smaller where the broker takes less.
    `blobs_dir`: where blobs lie, for controllers that share them; else `blobs` in the state directory.
    `retained_bytes_max`: no more of blobs is kept at the broker at any time.
    """

    root: str = "shoal"
    state_dir: str | None = None
    sign_commands: bool = True
    silent_after_s: Seconds = 1500.0
    webhook_url: str | None = None
    readings_kept: Annotated[int, msgspec.Meta(ge=1)] = 1_000_000
    chunk_bytes: ChunkBytes = CHUNK_BYTES
    retained_bytes_max: Annotated[int, msgspec.Meta(ge=0)] = 128 << 20
    blobs_dir: str | None = None
    log_format: Literal["auto", "json", "console"] = "auto"
    broker: BrokerTable = BrokerTable()
    listen: ListenTable = ListenTable()
    database: DatabaseTable = DatabaseTable()
    door: tuple[DoorTable, ...] = ()
    identity: IdentityTable | None = None


def load(path: Path) -> FleetConfig:
    """The configuration in this file.

    Raises:
        ConfigError: it cannot be read, or a key or value is wrong; names file and key.
    """
    try:
        config = toml.decode(path.read_bytes(), FleetConfig, source=str(path))
        check(config)
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}") from exc
    except ContractError as exc:
        raise ConfigError(str(exc)) from exc
    except ConfigError as exc:
        raise ConfigError(f"{path}: {exc}") from exc
    return config


def check(config: FleetConfig) -> FleetConfig:
    """The configuration itself, when its values can be used.

    Raises:
        ConfigError: names the key.
    """
    try:
        Topics(config.root)
    except ContractError as exc:
        raise ConfigError(f"[root] {exc}") from exc
    try:
        config.broker.tls()
        config.broker.check_encrypted()
    except BrokerTableError as exc:
        raise ConfigError(str(exc)) from exc
    _check_listen(config.listen)
    _check_database(config.database)
    if config.webhook_url is not None:
        try:
            url = urlsplit(config.webhook_url)
            usable = url.scheme in {"http", "https"} and bool(url.hostname)
        except ValueError:
            usable = False
        if not usable:
            raise ConfigError(f"[webhook_url] {config.webhook_url!r} is not an http(s) address")
    _check_door(config.door)
    if config.identity is not None:
        check_identity(config.identity)
    return config


def _check_listen(table: ListenTable) -> None:
    if (table.cert_file is None) != (table.key_file is None):
        missing = "cert_file" if table.cert_file is None else "key_file"
        raise ConfigError(f"[listen] {missing} is missing: TLS needs both, cert_file and key_file")
    if table.cert_file is None and not table.plaintext and not is_loopback(table.host):
        raise ConfigError(
            f"[listen] host {table.host} is for other machines, and the token would come from there"
            " in the clear: set cert_file and key_file, or plaintext = true"
        )


def _check_database(table: DatabaseTable) -> None:
    if table.url is None:
        if table != DatabaseTable():
            raise ConfigError("[database] url is missing: the other keys are for it")
        return
    host = database_address.parse(table.url).host
    # Without a host it is a socket of this machine.
    if host and table.ca_file is None and not table.plaintext and not is_loopback(host):
        raise ConfigError(
            f"[database] {host} is another machine, and nothing would be encrypted on the way:"
            " set ca_file (TLS), or plaintext = true"
        )


def _check_door(tables: tuple[DoorTable, ...]) -> None:
    for table in tables:
        try:
            check_user(table.user)
            parse_group(table.nodes)
        except (ContractError, RequestError) as exc:
            raise ConfigError(f"[[door]] {table.user!r}: {exc}") from exc
        for pattern in table.ops:
            if not _OPS.fullmatch(pattern):
                raise ConfigError(
                    f"[[door]] {table.user!r}: {pattern!r} in ops is no operation, nor 'name.*' or '*'"
                )
    users = [table.user for table in tables]
    if len(set(users)) < len(users):
        raise ConfigError("[[door]] users must be distinct")
