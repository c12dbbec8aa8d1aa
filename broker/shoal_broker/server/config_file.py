"""The broker's configuration file: TOML -> BrokerConfig. Every key is described in docs/broker.md.

Files that it names are looked for beside it; they are read by who needs them.
"""

from pathlib import Path
from typing import Annotated

import msgspec

from shoal_broker.errors import ConfigError
from shoal_broker.server.access_rules import AccessRules
from shoal_broker.server.bridge.table import BridgeTable
from shoal_broker.server.config import BrokerConfig, Limits, Listener, Tls
from shoal_contract import toml
from shoal_contract.errors import FileFormatError

BRIDGE_FILES = ("ca_file", "cert_file", "key_file", "password_file", "queue_file")

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]


class ListenerTable(toml.Table, frozen=True, kw_only=True):
    """[[listener]]: an address; `cert_file` and `key_file` make it speak TLS."""

    host: str = "127.0.0.1"
    port: Port = 1883
    no_auth: bool = False
    websocket: bool = False
    origins: tuple[str, ...] = ()
    cert_file: str | None = None
    key_file: str | None = None
    client_ca_file: str | None = None
    crl_file: str | None = None


class MetricsTable(toml.Table, frozen=True, kw_only=True):
    """[metrics]: where Prometheus reads; without the table nothing listens."""

    host: str = "127.0.0.1"
    port: Port = 9751


class BrokerFile(toml.Table, frozen=True, kw_only=True):
    """The whole file."""

    listener: tuple[ListenerTable, ...] = (ListenerTable(),)
    password_file: str | None = None
    durable_dir: str | None = None
    access: AccessRules = AccessRules()
    limits: Limits = Limits()
    bridge: tuple[BridgeTable, ...] = ()
    metrics: MetricsTable | None = None
    sys_interval_s: Annotated[float, msgspec.Meta(ge=0)] = 10.0
    response_topics: str = ""


def load(path: Path) -> BrokerConfig:
    """Read and check a configuration file.

    Raises:
        ConfigError: one line that names the file and the key.
    """
    try:
        file = toml.decode(path.read_bytes(), BrokerFile, source=str(path))
        return _config(file, beside=path.parent)
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}") from exc
    except FileFormatError as exc:
        raise ConfigError(str(exc)) from exc
    except ConfigError as exc:
        raise ConfigError(f"{path}: {exc}") from exc


def tls_files(
    *,
    cert_file: Path | None = None,
    key_file: Path | None = None,
    client_ca_file: Path | None = None,
    crl_file: Path | None = None,
) -> Tls | None:
    """What these say together; None: no TLS. Raises ConfigError for one that needs another one."""
    if cert_file is None and key_file is None:
        if client_ca_file is not None or crl_file is not None:
            raise ConfigError("client certificates are for TLS: give cert_file and key_file, too")
        return None
    if cert_file is None or key_file is None:
        raise ConfigError("TLS needs both, cert_file and key_file")
    if crl_file is not None and client_ca_file is None:
        raise ConfigError("crl_file needs client_ca_file")
    return Tls(
        cert_file=cert_file, key_file=key_file, client_ca_file=client_ca_file, crl_file=crl_file
    )


def _config(file: BrokerFile, *, beside: Path) -> BrokerConfig:
    if not file.listener:
        raise ConfigError("a broker without a [[listener]] serves nobody")
    first, *more = (_listener(table, beside) for table in file.listener)
    if first.websocket:
        raise ConfigError("the first [[listener]] is for MQTT without WebSocket")
    metrics = file.metrics
    settings = BrokerConfig(
        host=first.host,
        port=first.port,
        tls=first.tls,
        no_auth=first.no_auth,
        more_listeners=tuple(more),
        password_file=_beside(beside, file.password_file),
        durable_dir=_beside(beside, file.durable_dir),
        access=file.access,
        sys_interval_s=file.sys_interval_s,
        response_topics=file.response_topics,
        bridges=tuple(_bridge(table, beside) for table in file.bridge),
        metrics_host="127.0.0.1" if metrics is None else metrics.host,
        metrics_port=None if metrics is None else metrics.port,
    )
    return msgspec.structs.replace(settings, **msgspec.structs.asdict(file.limits))


def _listener(table: ListenerTable, beside: Path) -> Listener:
    tls = tls_files(
        cert_file=_beside(beside, table.cert_file),
        key_file=_beside(beside, table.key_file),
        client_ca_file=_beside(beside, table.client_ca_file),
        crl_file=_beside(beside, table.crl_file),
    )
    if table.origins and not table.websocket:
        raise ConfigError("origins are for WebSocket: say websocket = true, too")
    return Listener(
        host=table.host,
        port=table.port,
        tls=tls,
        no_auth=table.no_auth,
        websocket=table.websocket,
        origins=table.origins,
    )


def _bridge(table: BridgeTable, beside: Path) -> BridgeTable:
    named = {key: getattr(table, key) for key in BRIDGE_FILES}
    return msgspec.structs.replace(
        table, **{key: str(beside / name) for key, name in named.items() if name is not None}
    )


def _beside(folder: Path, name: str | None) -> Path | None:
    return None if name is None else folder / name
