"""The agent's configuration file: TOML -> frozen values. Every key is described in docs/agent.md."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from shoal_agent.errors import ConfigError
from shoal_broker.broker_table import BrokerTable
from shoal_broker.bus_errors import BrokerTableError
from shoal_contract import envelope, toml, topics
from shoal_contract.errors import ContractError, KeyTextError

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]


class PeersTable(toml.Table, frozen=True, kw_only=True):
    """[peers]: help among neighbours. `interfaces` are addresses to announce on; none is all."""

    enabled: bool = True
    host: str = "0.0.0.0"
    port: Port = 0
    interfaces: tuple[str, ...] = ()
    upstream: str | None = None


class TrustTable(toml.Table, frozen=True, kw_only=True):
    """[trust]: `command_keys` are the public keys (base64) whose commands count; none: all commands do."""

    command_keys: tuple[str, ...] = ()


class MetricsTable(toml.Table, frozen=True, kw_only=True):
    """[metrics]: where Prometheus reads; without the table nothing listens."""

    host: str = "127.0.0.1"
    port: Port = 9750


class InferenceTable(toml.Table, frozen=True, kw_only=True):
    """[inference]: limits of the engine."""

    queue_limit: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 64
    max_batch: Annotated[int, msgspec.Meta(ge=1, le=256)] = 16


class DeviceTable(toml.Table, frozen=True, kw_only=True):
    """[[device]]: a microcontroller behind the bridge, named by its Unix socket."""

    name: str
    socket: str


class CommandTable(toml.Table, frozen=True, kw_only=True):
    """[pipeline.command]: what a result makes the device do.

    SET [channel, value, seq of the sample, first four bytes of the release id]; the value is the
    label itself or, with "number", the integer that the label spells.
    """

    channel: Annotated[int, msgspec.Meta(ge=0, le=255)]
    value: Literal["number", "text"] = "number"


class PipelineTable(toml.Table, frozen=True, kw_only=True):
    """[[pipeline]]: device samples -> model -> reading on `stream`, and a command back.

    `keep_s`, `keep_bytes`: how long, and how much of the stream, waits for an uplink; the oldest goes first.
    """

    stream: str
    device: str
    channel: Annotated[int, msgspec.Meta(ge=0, le=255)]
    model: str
    deadline_s: Annotated[float, msgspec.Meta(gt=0, le=60)] = 2.0
    keep_s: Annotated[float, msgspec.Meta(ge=1, le=400 * 86400)] | None = None
    keep_bytes: Annotated[int, msgspec.Meta(ge=4096, le=1 << 40)] | None = None
    command: CommandTable | None = None


class AgentConfig(toml.Table, frozen=True, kw_only=True):
    """The whole file."""

    node: str
    state_dir: str
    broker: BrokerTable
    root: str = "shoal"
    role: Literal["node", "upstream"] = "node"
    report_every_s: Annotated[float, msgspec.Meta(ge=1, le=86400)] = 600.0
    trust: TrustTable = TrustTable()
    peers: PeersTable = PeersTable()
    metrics: MetricsTable | None = None
    inference: InferenceTable = InferenceTable()
    device: tuple[DeviceTable, ...] = ()
    pipeline: tuple[PipelineTable, ...] = ()

    @property
    def command_keys(self) -> tuple[bytes, ...]:
        """The public keys whose commands count."""
        return tuple(envelope.parse_key(text) for text in self.trust.command_keys)

    @property
    def upstream(self) -> tuple[str, int] | None:
        """The configured upstream node's peer address."""
        if self.peers.upstream is None:
            return None
        host, _, port = self.peers.upstream.rpartition(":")
        return host, int(port)


def load(path: Path) -> AgentConfig:
    """Read and check a configuration file.

    Raises:
        ConfigError: one line that names the file and the key.
    """
    try:
        config = toml.decode(path.read_bytes(), AgentConfig, source=str(path))
        _check(config)
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}") from exc
    except ContractError as exc:
        message = str(exc)
        raise ConfigError(message if str(path) in message else f"{path}: {message}") from exc
    except ConfigError as exc:
        raise ConfigError(f"{path}: {exc}") from exc
    return config


def redacted(config: AgentConfig) -> dict[str, object]:
    """The configuration in effect as plain values, for an operator to read; no secrets."""
    plain: dict[str, object] = msgspec.to_builtins(config)
    return plain


def _check(config: AgentConfig) -> None:
    topics.check_node_id(config.node)
    topics.Topics(config.root)
    try:
        config.broker.tls()
    except BrokerTableError as exc:
        raise ConfigError(str(exc)) from exc
    try:
        _ = config.command_keys
    except KeyTextError as exc:
        raise ConfigError(f"[trust] command_keys: {exc}") from exc
    names = [device.name for device in config.device]
    for name in names:
        topics.check_leaf(name)
    if len(set(names)) != len(names):
        raise ConfigError("[[device]] names must be distinct")
    for pipeline in config.pipeline:
        topics.check_leaf(pipeline.stream)
        topics.check_leaf(pipeline.model)
        if pipeline.device not in names:
            raise ConfigError(f"[[pipeline]] device {pipeline.device!r} is not a [[device]]")
    sources = [(pipeline.device, pipeline.channel) for pipeline in config.pipeline]
    if len(set(sources)) != len(sources):
        raise ConfigError("two [[pipeline]] tables read the same device and channel")
    if config.peers.upstream is not None:
        host, _, port = config.peers.upstream.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) <= 65535:  # noqa: PLR2004 - ports
            raise ConfigError(f"[peers] upstream {config.peers.upstream!r} must be host:port")
