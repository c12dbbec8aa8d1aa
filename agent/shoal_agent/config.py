"""The agent's configuration file: TOML -> frozen values. Every key is described in docs/agent.md."""

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec

from shoal_agent.allowance import Allowance, Window
from shoal_agent.errors import ConfigError
from shoal_agent.identity.config import EnrolmentTable
from shoal_agent.identity.config import check as check_enrolment
from shoal_agent.inference.settings import WorkerSettings
from shoal_broker.broker_table import BrokerTable
from shoal_broker.bus_errors import BrokerTableError, TopicError
from shoal_broker.loopback import is_loopback
from shoal_broker.pipeline_topics import check_topics
from shoal_contract import envelope, pipelines, release_targets, toml, topics
from shoal_contract.errors import ContractError, KeyTextError
from shoal_contract.pipelines import PipelineTable

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]


class PeersTable(toml.Table, frozen=True, kw_only=True):
    """[peers]: help among neighbours. `interfaces` are addresses to announce on; none is all.

    With an identity neighbours are asked and answered over mutual TLS; `plaintext` allows to do without
    one. `ca_file`: their authority, where it is not the broker's. `crl_file`: certificates that count no more.
    `share`: hand out chunks of releases to them, no faster than `share_bytes_per_s` (0: any).
    """

    enabled: bool = True
    host: str = "0.0.0.0"
    port: Port = 0
    interfaces: tuple[str, ...] = ()
    upstream: str | None = None
    plaintext: bool = False
    ca_file: str | None = None
    crl_file: str | None = None
    share: bool = True
    share_bytes_per_s: Annotated[int, msgspec.Meta(ge=0, le=1 << 30)] = 4194304


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


class UpdatesTable(toml.Table, frozen=True, kw_only=True):
    """[updates]: when releases are fetched, how fast, and from whom.

    `bytes_per_s`: on the average; 0: as fast as they come. `window`: such as "22:00-05:30", local time; none: always.
    `sources`: in their order. `https`: addresses below which blobs lie, named by their sha256; `https_ca_file`: who
    vouches for those servers; none: whom the system believes.
    """

    bytes_per_s: Annotated[int, msgspec.Meta(ge=0, le=1 << 30)] = 0
    window: str | None = None
    sources: tuple[Literal["peers", "broker", "https"], ...] = ("peers", "broker", "https")
    https: tuple[str, ...] = ()
    https_ca_file: str | None = None


class DeviceTable(toml.Table, frozen=True, kw_only=True):
    """[[device]]: a microcontroller behind the bridge, named by its Unix socket."""

    name: str
    socket: str


class PipelinesTable(toml.Table, frozen=True, kw_only=True):
    """[pipelines]: what pipelines that come from the fleet may do here.

    `folders`: where they may read pictures and write files; none: nowhere.
    """

    from_fleet: bool = True
    folders: tuple[str, ...] = ()


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
    updates: UpdatesTable = UpdatesTable()
    device: tuple[DeviceTable, ...] = ()
    pipelines: PipelinesTable = PipelinesTable()
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
    def allowance(self) -> Allowance:
        """How fast, and when, releases are fetched.

        Raises:
            ConfigError: the window is none.
        """
        window = self.updates.window
        return Allowance(self.updates.bytes_per_s, None if window is None else Window.parse(window))

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


def has_certificate_by_itself(config: AgentConfig) -> bool:
    """Whether enrolment gave the board one, or is going to: the broker's table need not name it then."""
    return config.enrolment is not None or (Path(config.state_dir) / "identity").exists()


def _check(config: AgentConfig) -> None:
    topics.check_node_id(config.node)
    topics.Topics(config.root)
    _check_broker(config)
    try:
        _ = config.command_keys
    except KeyTextError as exc:
        raise ConfigError(f"[trust] command_keys: {exc}") from exc
    _check_releases(config.trust)
    _ = config.allowance
    _check_sources(config.updates)
    names = [device.name for device in config.device]
    for name in names:
        topics.check_leaf(name)
    if len(set(names)) != len(names):
        raise ConfigError("[[device]] names must be distinct")
    for pipeline in config.pipeline:
        pipelines.check(pipeline, names)
        try:
            check_topics(pipeline)
        except TopicError as exc:
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


def _check_sources(table: UpdatesTable) -> None:
    if "broker" not in table.sources or len(set(table.sources)) != len(table.sources):
        raise ConfigError("[updates] sources must name each source once, and broker among them")
    for address in table.https:
        try:
            parts = urlsplit(address)
            host, _ = parts.hostname or "", parts.port
        except ValueError as exc:
            raise ConfigError(f"[updates] https {address!r} is no address") from exc
        is_safe = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))
        has_more = parts.query or parts.fragment or parts.username or parts.password
        is_plain = address.isascii() and address.isprintable() and " " not in address
        if not host or not is_safe or has_more or not is_plain:
            raise ConfigError(
                f"[updates] https {address!r} must be like https://host/path, without user and query"
            )


def _check_broker(config: AgentConfig) -> None:
    broker = config.broker
    if config.enrolment is not None:
        check_enrolment(config.enrolment)
        if broker.ca_file is None:
            # The authority comes with the certificate; the broker's name may be another all the same.
            broker = msgspec.structs.replace(broker, server_name=None)
    try:
        broker.tls()
        if not has_certificate_by_itself(config):
            broker.check_encrypted()
    except BrokerTableError as exc:
        raise ConfigError(str(exc)) from exc


def _check_local_api(table: LocalApiTable | None) -> None:
    if table is None or table.token_file is not None:
        return
    from shoal_agent.local_api import access  # noqa: PLC0415 - only where it is configured

    if not access.is_loopback(table.host):
        raise ConfigError(f"[local_api] host {table.host} is not loopback: set token_file, too")
