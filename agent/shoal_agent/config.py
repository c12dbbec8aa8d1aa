"""The agent's configuration file: TOML -> frozen values. Every key is described in docs/agent.md."""

import re
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from shoal_agent.errors import ConfigError, PathError
from shoal_agent.identity.config import EnrolmentTable
from shoal_agent.identity.config import check as check_enrolment
from shoal_agent.inference.settings import WorkerSettings
from shoal_agent.pipelines.values import Format, parse_path
from shoal_broker.broker_table import BrokerTable
from shoal_broker.bus_errors import BrokerTableError, TopicError
from shoal_broker.topic_filter import check_filter, check_topic, matches
from shoal_contract import envelope, release_targets, toml, topics
from shoal_contract.errors import ContractError, KeyTextError
from shoal_contract.release import Encoding

# {1}: what stood in place of a wildcard.
_WILDCARD = re.compile(r"\{\d\}")

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Channel = Annotated[int, msgspec.Meta(ge=0, le=255)]


class PeersTable(toml.Table, frozen=True, kw_only=True):
    """[peers]: help among neighbours. `interfaces` are addresses to announce on; none is all.

    With an identity neighbours are asked and answered over mutual TLS; `plaintext` allows to do without
    one. `crl_file`: certificates that count no more.
    """

    enabled: bool = True
    host: str = "0.0.0.0"
    port: Port = 0
    interfaces: tuple[str, ...] = ()
    upstream: str | None = None
    plaintext: bool = False
    crl_file: str | None = None


class TrustTable(toml.Table, frozen=True, kw_only=True):
    """[trust]: `command_keys` are the public keys (base64) whose commands count; none: all commands do.

    `root_file`: with it a release runs only when it is signed for one of `release_groups` (none: the groups of the
    wanted state), or for all. `metadata`: where the signatures come from: "broker", an http(s) address, or a directory.
    """

    command_keys: tuple[str, ...] = ()
    root_file: str | None = None
    release_groups: tuple[str, ...] = ()
    metadata: str = "broker"


class MetricsTable(toml.Table, frozen=True, kw_only=True):
    """[metrics]: where Prometheus reads; without the table nothing listens."""

    host: str = "127.0.0.1"
    port: Port = 9750


class LocalApiTable(toml.Table, frozen=True, kw_only=True):
    """[local_api]: Open Inference Protocol for programs of this machine; without the table nothing listens.

    `token_file`: who asks must know its word; needed where `host` is not loopback. `deadline_s` is of
    requests that name none.
    """

    host: str = "127.0.0.1"
    port: Port = 9751
    token_file: str | None = None
    max_body_bytes: Annotated[int, msgspec.Meta(ge=1024, le=1 << 28)] = 8 << 20
    max_connections: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 32
    deadline_s: Annotated[float, msgspec.Meta(gt=0, le=60)] = 5.0


class InferenceTable(toml.Table, frozen=True, kw_only=True):
    """[inference]: limits of the engine, and how its worker runs models."""

    queue_limit: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 256
    max_batch: Annotated[int, msgspec.Meta(ge=1, le=256)] = 32
    worker: Literal["process", "thread"] = "process"
    threads: Annotated[int, msgspec.Meta(ge=0, le=64)] = 1
    nice: Annotated[int, msgspec.Meta(ge=0, le=19)] = 0
    cpus: tuple[Annotated[int, msgspec.Meta(ge=0, le=4095)], ...] = ()
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    run_timeout_s: Annotated[float, msgspec.Meta(gt=0, le=600)] = 10.0
    reserve_bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)] = 33554432
    keep: tuple[str, ...] = ()
    may_pause: bool = False


class DeviceTable(toml.Table, frozen=True, kw_only=True):
    """[[device]]: a microcontroller behind the bridge, named by its Unix socket."""

    name: str
    socket: str


class TopicTable(toml.Table, frozen=True, kw_only=True):
    """[pipeline.topic]: messages of any program as the source.

    `values` say where in a message ("json", "cbor") the model's numbers stand, in the model's order; a
    "raw" message is an item as it is. `encoding` is that of the release's [input].
    """

    filter: str
    format: Format = "json"
    values: tuple[str, ...] = ()
    encoding: Encoding = "f32"
    wait_s: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 10.0
    retained: bool = False


class CommandTable(toml.Table, frozen=True, kw_only=True):
    """[pipeline.command]: what a result makes a device do; without `device` the one that was measured.

    SET [channel, value, seq of the item, first four bytes of the release id]; the value is the
    label itself or, with "number", the integer that the label spells.
    """

    device: str | None = None
    channel: Channel
    value: Literal["number", "text"] = "number"


class PublishTable(toml.Table, frozen=True, kw_only=True):
    """[pipeline.publish]: the result for programs that know nothing of Shoal.

    In `topic`, {1} is what stood in place of the filter's first wildcard, {2} of its second ...
    """

    topic: str
    format: Literal["json", "label"] = "json"
    qos: Literal[0, 1] = 1
    retain: bool = False
    expiry_s: Annotated[float, msgspec.Meta(ge=1, le=400 * 86400)] | None = None


class FileTable(toml.Table, frozen=True, kw_only=True):
    """[pipeline.file]: the result as a line of JSON; a full file is renamed to PATH.1."""

    path: str
    max_bytes: Annotated[int, msgspec.Meta(ge=4096, le=1 << 40)] = 16 * 1024 * 1024


class PipelineTable(toml.Table, frozen=True, kw_only=True):
    """[[pipeline]]: what a device or a topic says -> model -> reading on `stream`, and what follows.

    `keep_s`, `keep_bytes`: how long, and how much of the stream, waits for an uplink; the oldest goes first.
    """

    stream: str
    device: str | None = None
    channel: Channel | None = None
    topic: TopicTable | None = None
    model: str
    deadline_s: Annotated[float, msgspec.Meta(gt=0, le=60)] = 2.0
    keep_s: Annotated[float, msgspec.Meta(ge=1, le=400 * 86400)] | None = None
    keep_bytes: Annotated[int, msgspec.Meta(ge=4096, le=1 << 40)] | None = None
    command: CommandTable | None = None
    publish: PublishTable | None = None
    file: FileTable | None = None


class AgentConfig(toml.Table, frozen=True, kw_only=True):
    """The whole file."""

    node: str
    state_dir: str
    broker: BrokerTable
    root: str = "shoal"
    role: Literal["node", "upstream"] = "node"
    report_every_s: Annotated[float, msgspec.Meta(ge=1, le=86400)] = 600.0
    trust: TrustTable = TrustTable()
    enrolment: EnrolmentTable | None = None
    peers: PeersTable = PeersTable()
    metrics: MetricsTable | None = None
    local_api: LocalApiTable | None = None
    inference: InferenceTable = InferenceTable()
    device: tuple[DeviceTable, ...] = ()
    pipeline: tuple[PipelineTable, ...] = ()

    @property
    def command_keys(self) -> tuple[bytes, ...]:
        """The public keys whose commands count."""
        return tuple(envelope.parse_key(text) for text in self.trust.command_keys)

    @property
    def worker(self) -> WorkerSettings:
        """How the inference worker runs models."""
        table = self.inference
        return WorkerSettings(
            kind=table.worker,
            threads=table.threads,
            nice=table.nice,
            cpus=table.cpus,
            providers=table.providers,
            run_timeout_s=table.run_timeout_s,
            optimised_dir=str(Path(self.state_dir) / "optimised"),
        )

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
    _check_broker(config)
    try:
        _ = config.command_keys
    except KeyTextError as exc:
        raise ConfigError(f"[trust] command_keys: {exc}") from exc
    _check_releases(config.trust)
    names = [device.name for device in config.device]
    for name in names:
        topics.check_leaf(name)
    if len(set(names)) != len(names):
        raise ConfigError("[[device]] names must be distinct")
    for pipeline in config.pipeline:
        topics.check_leaf(pipeline.stream)
        topics.check_leaf(pipeline.model)
        try:
            _check_source(pipeline, names)
            _check_sinks(pipeline, names)
        except (TopicError, PathError) as exc:
            raise ConfigError(f"[[pipeline]] {pipeline.stream}: {exc}") from exc
    sources = [
        (pipeline.device, pipeline.channel) for pipeline in config.pipeline if pipeline.device
    ]
    if len(set(sources)) != len(sources):
        raise ConfigError("two [[pipeline]] tables read the same device and channel")
    _check_local_api(config.local_api)
    if config.peers.upstream is not None:
        host, _, port = config.peers.upstream.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) <= 65535:  # noqa: PLR2004 - ports
            raise ConfigError(f"[peers] upstream {config.peers.upstream!r} must be host:port")


def _check_releases(table: TrustTable) -> None:
    for group in table.release_groups:
        release_targets.check_group(group)
    text = table.metadata
    if text != "broker" and not text.startswith(("http://", "https://", "/")):
        raise ConfigError(
            f'[trust] metadata {text!r} must be "broker", an http(s) address or an absolute path'
        )
    if table.root_file is None and (table.release_groups or text != "broker"):
        raise ConfigError("[trust] release_groups and metadata say nothing without root_file")


def _check_broker(config: AgentConfig) -> None:
    broker = config.broker
    if config.enrolment is not None:
        check_enrolment(config.enrolment)
        if broker.ca_file is None:
            # The authority comes with the certificate; the broker's name may be another all the same.
            broker = msgspec.structs.replace(broker, server_name=None)
    try:
        broker.tls()
        if not _has_certificate_by_itself(config):
            broker.check_encrypted()
    except BrokerTableError as exc:
        raise ConfigError(str(exc)) from exc


def _has_certificate_by_itself(config: AgentConfig) -> bool:
    """Whether enrolment gave the board one, or is going to: the broker's table need not name it then."""
    return config.enrolment is not None or (Path(config.state_dir) / "identity").exists()


def _check_source(pipeline: PipelineTable, devices: list[str]) -> None:
    topic, stream = pipeline.topic, pipeline.stream
    if (pipeline.device is None) == (topic is None):
        raise ConfigError(
            f"[[pipeline]] {stream}: either a device or [pipeline.topic] is its source"
        )
    if topic is None:
        if pipeline.device not in devices:
            raise ConfigError(f"[[pipeline]] device {pipeline.device!r} is not a [[device]]")
        if pipeline.channel is None:
            raise ConfigError(f"[[pipeline]] {stream}: a device needs its channel")
        return
    if pipeline.channel is not None:
        raise ConfigError(f"[[pipeline]] {stream}: a topic has no channel")
    check_filter(topic.filter)
    for text in topic.values:
        parse_path(text)
    if (topic.format == "raw") == bool(topic.values):
        wanted = "has no values" if topic.values else 'needs values, such as ["$.temperature"]'
        raise ConfigError(f"[pipeline.topic] {topic.filter}: {topic.format} {wanted}")


def _check_sinks(pipeline: PipelineTable, devices: list[str]) -> None:
    command, publish = pipeline.command, pipeline.publish
    if command is not None:
        if command.device is None and pipeline.device is None:
            raise ConfigError(f"[pipeline.command] of {pipeline.stream}: name the device")
        if command.device is not None and command.device not in devices:
            raise ConfigError(f"[pipeline.command] device {command.device!r} is not a [[device]]")
    if publish is not None:
        topic = _WILDCARD.sub("x", publish.topic)
        check_topic(topic)
        if pipeline.topic is not None and matches(pipeline.topic.filter, topic):
            raise ConfigError(
                f"[pipeline.publish] topic {publish.topic!r} would come back to its own pipeline"
            )


def _check_local_api(table: LocalApiTable | None) -> None:
    if table is None or table.token_file is not None:
        return
    from shoal_agent.local_api.access import is_loopback  # noqa: PLC0415 - only where it is configured

    if not is_loopback(table.host):
        raise ConfigError(f"[local_api] host {table.host} is not loopback: set token_file, too")
