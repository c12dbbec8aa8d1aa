"""Puts the agent together: the only place where its parts meet."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from shoal_agent import __version__, hardware
from shoal_agent.background import Background
from shoal_agent.belonging import Belonging
from shoal_agent.built_in import BuiltIn
from shoal_agent.commands import Commands
from shoal_agent.config import AgentConfig
from shoal_agent.devices import DeviceLink
from shoal_agent.errors import ConfigError
from shoal_agent.fetch import BlobFetcher
from shoal_agent.files import ContentStore
from shoal_agent.identity import connecting
from shoal_agent.identity.store import IdentityStore
from shoal_agent.inbox import Inbox, Parts
from shoal_agent.inference.calibrations import Calibrations, hardware_key
from shoal_agent.inference.engine import Engine
from shoal_agent.inference.router import Router
from shoal_agent.journal import Journal
from shoal_agent.peers.client import PeerClient
from shoal_agent.peers.credentials import Credentials
from shoal_agent.peers.permission import known_as, permitted
from shoal_agent.peers.server import PeerServer
from shoal_agent.peers.sharing import Sharing
from shoal_agent.pipelines.assembly import Surroundings
from shoal_agent.pipelines.fleet import FleetPipelines
from shoal_agent.pipelines.ledger import Ledger
from shoal_agent.pipelines.roster import Roster, filters_of
from shoal_agent.pipelines.subscribed import Subscribed
from shoal_agent.policies import Policies
from shoal_agent.probation import Probation
from shoal_agent.release_tree import running_home, running_version
from shoal_agent.reporter import Reporter
from shoal_agent.self_update.following import SelfUpdate
from shoal_agent.sources.choice import choose
from shoal_agent.staging import Staging
from shoal_agent.trust import Trust
from shoal_agent.update import Updater
from shoal_agent.updater.notices import Notices
from shoal_agent.updater.remembered import RememberedFloors
from shoal_agent.updater.signed_releases import SignedReleases
from shoal_agent.wanted import WantedState
from shoal_broker.bus_errors import BrokerTableError
from shoal_broker.durable import sync_directory
from shoal_broker.link import Connect
from shoal_broker.logs import RecentLines
from shoal_broker.loopback import is_loopback
from shoal_broker.outbox import Outbox
from shoal_broker.session import Session, SessionConfig
from shoal_broker.store import Store
from shoal_broker.transports import connect_with
from shoal_contract.messages import InferReply, InferRequest
from shoal_contract.topics import EVERYBODY, Topics

if TYPE_CHECKING:
    from shoal_agent.identity.keeper import Keeper
    from shoal_agent.local_api.inside import LocalApi
    from shoal_agent.peers.discovery import Discovery

log = structlog.get_logger()

_ANNOUNCE_EVERY_S = 0.5


async def _not_yet(_: AgentConfig | str) -> None:
    """Nothing runs that could follow."""


@dataclass(slots=True)
class Agent:
    """A running agent.

    Attributes:
        peer_port: where peers reach it; None without peers.
        local_api: what programs ask models through; None without one.
        stop: set it to end `run`.
        restart_wanted: an operator asked for a restart.
        reload: gives it a configuration that was read again, or the reason why none could be.
    """

    peer_port: int | None
    stop: asyncio.Event
    local_api: LocalApi | None = None
    restart_wanted: bool = False
    reload: Callable[[AgentConfig | str], Awaitable[None]] = field(default=_not_yet)

    def restart(self) -> None:
        """Stop, and say that it is to start again."""
        self.restart_wanted = True
        self.stop.set()


async def run(
    config: AgentConfig,
    *,
    recent: RecentLines,
    stop: asyncio.Event,
    on_ready: Callable[[Agent], None] = lambda _: None,
) -> bool:
    """Run until `stop` is set; True when an operator asked for a restart."""
    async with running(config, recent=recent, stop=stop) as agent:
        on_ready(agent)
        await stop.wait()
    return agent.restart_wanted


@asynccontextmanager
async def running(
    config: AgentConfig, *, recent: RecentLines, stop: asyncio.Event
) -> AsyncIterator[Agent]:
    """Everything an agent is, for as long as the context lasts.

    Raises:
        ConfigError: an address, a file or a directory in the configuration cannot be used.
        StoreError: the journal cannot be used.
    """
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        topics = Topics(config.root)
        state_dir = stack.enter_context(_claimed(Path(config.state_dir)))
        store = await enter(Store.open(state_dir / "agent.db"))
        trust, wanted_topic = Trust(config.command_keys), topics.wanted(config.node)
        journal = await Journal.load(
            store, open_wanted=partial(trust.open_as_root, topic=wanted_topic)
        )
        outbox = await Outbox.load(store)
        content = _content_store(state_dir)
        reporter = Reporter(config, topics=topics)
        engine = await enter(
            Engine.open(
                queue_limit=config.inference.queue_limit,
                max_batch=config.inference.max_batch,
                settings=config.worker,
                reserve_bytes=config.inference.reserve_bytes,
                keep=config.inference.keep,
                may_pause=config.inference.may_pause,
                on_change=reporter.changed,
                calibrations=Calibrations(
                    state_dir / "calibration.json",
                    hardware=hardware_key(hardware.read(state_dir), config.worker),
                ),
            )
        )
        router, client, discovery, peer_port = await _open_peers(stack, config, engine, content)
        agent = Agent(peer_port=peer_port, stop=stop)

        inbox = Inbox(topics, config.node, trust)
        notices = Notices(topics, is_followed=config.trust.root_file is not None)
        identity, keeper = IdentityStore(state_dir), _keeper(config, state_dir)
        fleet = await FleetPipelines.load(store, await journal.wanted())
        subscribed = await Subscribed.load(
            store, filters_of(config.pipeline, [*fleet.first, *fleet.wanted])
        )
        session = await enter(
            Session.open(
                _session_config(config, identity),
                outbox=outbox,
                will=reporter.will(),
                subscriptions={
                    topics.commands(config.node): inbox.command,
                    topics.group_commands(EVERYBODY): inbox.command,
                    wanted_topic: inbox.wanted,
                    topics.every_model(config.node): inbox.inference,
                    **notices.subscriptions,
                    **subscribed.subscriptions,
                },
                on_connected=reporter.on_connected,
                connect=_connect(config, identity, keeper),
            )
        )
        stack.push_async_callback(reporter.say_goodbye, session)
        fetcher = BlobFetcher(
            session,
            topics,
            config.node,
            content,
            config.allowance,
            **choose(config, client, discovery)._asdict(),
        )
        signed = await _signed_releases(config, state_dir, store, session, notices)
        updater = Updater(
            journal=journal,
            content=content,
            staging=Staging(content, fetcher),
            engine=engine,
            on_change=reporter.changed,
            signed=signed,
            probation=await Probation.load(store),
            keep=config.inference.keep,
        )
        itself = _self_update(
            config, journal, content, updater, session, signed, Staging(content, fetcher), reporter
        )
        devices = {
            device.name: await enter(DeviceLink.open(device.name, device.socket))
            for device in config.device
        }
        roster = Roster(
            Surroundings(
                node=config.node,
                topics=topics,
                session=session,
                router=router,
                devices=devices,
                subscribed=subscribed,
                ledger=await Ledger.load(store),
                tasks=await enter(Background.open()),
                spec_of=updater.spec,
            ),
            config.pipelines,
            on_change=reporter.note,
        )
        # With what ran last; what is wanted follows when it is known which releases serve.
        await roster.open(config.pipeline, fleet.first)
        agent.reload = partial(_reload, roster, config)
        built_in = BuiltIn(
            config=config,
            recent=recent,
            journal=journal,
            devices=devices,
            updater=updater,
            router=router,
            roster=roster,
        )
        belonging = Belonging(session, topics, inbox.command)
        policies = Policies(
            journal=journal, trust=trust, topics=topics, node=config.node, belonging=belonging
        )
        await policies.restore()
        operations = built_in.declare(restart=agent.restart)
        policies.declare(operations)
        commands = Commands(
            journal=journal,
            operations=operations,
            results_topic=topics.results(config.node),
            outbox_changed=session.outbox_changed,
            clock_ms=lambda: time.time_ns() // 1_000_000,
            trust=trust,
        )
        policies.attach(commands)
        if config.metrics is not None:
            # Prometheus's client and its web server cost 1.5 MiB: only for who reads them.
            from shoal_agent import metrics  # noqa: PLC0415

            collector = metrics.AgentCollector(
                session=session,
                outbox=outbox,
                engine=engine,
                router=router,
                commands=commands,
                inbox=inbox,
                trust=trust,
                fetcher=fetcher,
                devices=devices,
                pipelines=roster.running,
                keeper=keeper,
                local_api=lambda: agent.local_api,
                signed=signed,
            )
            stack.enter_context(metrics.serve(config.metrics, collector))
        await updater.restore()
        await commands.recover()
        if (wanted := await journal.wanted()) is not None:
            await belonging.follow(wanted)
        await roster.follow_fleet(fleet.wanted)
        inbox.open(
            Parts(
                commands=commands,
                outbox=outbox,
                belonging=belonging,
                wanted=WantedState(journal, trust, topic=wanted_topic),
                updater=updater,
                router=router,
                session=session,
                pipelines=fleet,
                roster=roster,
            )
        )
        agent.local_api = await _open_local_api(stack, config, engine, router)
        background = await enter(Background.open())
        jobs = {
            "commands": commands.run(),
            "updater": updater.run(),
            "updater.probation": updater.watch(),
            "reporter": reporter.run(
                session,
                updater,
                discovery,
                lambda: (roster.states(), fleet.version),
                list if itself is None else itself.states,
            ),
            "self_update": None if itself is None else itself.run(),
            "identity": None if keeper is None else keeper.run(session.reconnect),
            "updater.signatures": None if signed is None else signed.follow(updater.wake),
            "peers.announce": None if discovery is None else _announce(discovery, engine),
        }
        for name, job in jobs.items():
            if job is not None:
                background.start(job, name=name)
        log.info("agent runs", node=config.node, version=__version__)
        yield agent
        await updater.ended_on_purpose()


async def _open_peers(
    stack: AsyncExitStack, config: AgentConfig, engine: Engine, content: ContentStore
) -> tuple[Router, PeerClient, Discovery | None, int | None]:
    """The router and, unless peers are switched off, everything that makes it more than local."""
    identity = known_as(config)
    credentials = None if identity is None else Credentials(identity)
    client = await stack.enter_async_context(
        PeerClient.open(root=config.root, node=config.node, credentials=credentials)
    )
    asks, answers = permitted(config, has_identity=identity is not None)
    if not answers:
        router = Router(
            node=config.node,
            engine=engine,
            discovery=None,
            client=client,
            upstream=config.upstream if asks else None,
        )
        return router, client, None, None

    # zeroconf is 3 MiB, most of them of the files it is compiled to.
    from shoal_agent.peers.discovery import Discovery  # noqa: PLC0415

    async def answer(request: InferRequest) -> InferReply:
        return await router.answer(request)

    # What the fleet's boards run is for boards that can prove that they are of it.
    shares = config.peers.share and (identity is not None or is_loopback(config.peers.host))
    sharing = Sharing(
        content,
        bytes_per_s=config.peers.share_bytes_per_s,
        is_strained=lambda: any(facts.waiting for facts in engine.describe()),
    )

    try:
        server = await stack.enter_async_context(
            PeerServer.open(
                config.peers.host,
                config.peers.port,
                answer,
                root=config.root,
                node=config.node,
                credentials=credentials,
                share=sharing.answer if shares else None,
            )
        )
    except OSError as exc:
        address = f"{config.peers.host}:{config.peers.port}"
        raise ConfigError(f"[peers] cannot listen on {address}: {exc.strerror}") from exc
    discovery = await stack.enter_async_context(
        Discovery.open(
            node=config.node,
            root=config.root,
            port=server.port,
            role=config.role,
            interfaces=config.peers.interfaces or None,
            tls=identity is not None,
            shares=shares,
        )
    )
    router = Router(
        node=config.node,
        engine=engine,
        discovery=discovery,
        client=client,
        upstream=config.upstream if asks else None,
    )
    return router, client, discovery, server.port


async def _signed_releases(
    config: AgentConfig, state_dir: Path, store: Store, session: Session, notices: Notices
) -> SignedReleases | None:
    """Who says which releases may run here; None: every one may."""
    if config.trust.root_file is None:
        return None
    return SignedReleases(
        root_file=Path(config.trust.root_file),
        source=config.trust.metadata,
        groups=config.trust.release_groups,
        directory=state_dir / "metadata",
        floors=await RememberedFloors.load(store),
        session=session,
        notices=notices,
    )


def _self_update(
    config: AgentConfig,
    journal: Journal,
    content: ContentStore,
    updater: Updater,
    session: Session,
    signed: SignedReleases | None,
    staging: Staging,
    reporter: Reporter,
) -> SelfUpdate | None:
    """None: this agent runs from no release tree, or there is nobody whose signature could move it."""
    home = running_home()
    if home is None or signed is None:
        return None

    def serving() -> list[str]:
        states = updater.states()
        return [one.model for one in states if one.release and one.residence != "broken"]

    return SelfUpdate(
        home=home,
        tree=running_version(),
        state_dir=Path(config.state_dir),
        journal=journal,
        content=content,
        staging=staging,
        require_signed=signed.require_for,
        serving=serving,
        connected=lambda: session.connected,
        on_change=reporter.note,
    )


async def _open_local_api(
    stack: AsyncExitStack, config: AgentConfig, engine: Engine, router: Router
) -> LocalApi | None:
    """Listening, or None when it is not configured."""
    if config.local_api is None:
        return None
    # HTTP and WebSocket only for who asks over them.
    from shoal_agent.local_api.server import serve  # noqa: PLC0415
    from shoal_agent.local_api.service import Service  # noqa: PLC0415

    service = Service(engine, router, deadline_s=config.local_api.deadline_s)
    api = await stack.enter_async_context(serve(config.local_api, service))
    log.info("local API listens", host=config.local_api.host, port=api.port)
    return api


async def _reload(roster: Roster, config: AgentConfig, new: AgentConfig | str) -> None:
    """Follow the pipelines of a file that was read again; what else has changed needs a restart."""
    if isinstance(new, str):
        log.error("configuration not read again", reason=new)
        await roster.complain(new)
        return
    others = [
        name
        for name in config.__struct_fields__
        if name != "pipeline" and getattr(config, name) != getattr(new, name)
    ]
    if others:
        log.warning("only pipelines are read again: the rest needs a restart", changed=others)
    missing = {device.name for device in new.device} - {device.name for device in config.device}
    for table in new.pipeline:
        wanted = {table.device, table.command.device if table.command else None}
        if wanted & missing:
            await roster.complain(f"{table.stream}: its [[device]] is new and needs a restart")
            return
    await roster.follow_file(new.pipeline)


async def _announce(discovery: Discovery, engine: Engine) -> None:
    """Tell the neighbours which models serve here, soon after that changes."""
    announced: list[str] | None = None
    while True:
        models = engine.offered()
        if models != announced:
            await discovery.announce(models)
            announced = models
        await asyncio.sleep(_ANNOUNCE_EVERY_S)


@contextmanager
def _claimed(state_dir: Path) -> Iterator[Path]:
    """Make the state directory and keep every other agent out of it."""
    try:
        if not state_dir.is_dir():
            state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            sync_directory(state_dir.parent)
        lock = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise ConfigError(f"state_dir {state_dir} cannot be used: {exc.strerror}") from exc
    with os.fdopen(lock):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise ConfigError(f"another agent runs on state_dir {state_dir}") from exc
        yield state_dir


def _content_store(state_dir: Path) -> ContentStore:
    try:
        return ContentStore(state_dir)
    except OSError as exc:
        raise ConfigError(f"state_dir {state_dir} cannot be used: {exc.strerror}") from exc


def _keeper(config: AgentConfig, state_dir: Path) -> Keeper | None:
    """Who gets the certificate; None: nobody, or another program."""
    if config.enrolment is None:
        return None
    # What it needs is needed by who enrols only.
    from shoal_agent.identity.keeper import Keeper  # noqa: PLC0415

    board = hardware.read(state_dir)
    line = f"{board.model}, {board.os}, {board.machine}"
    return Keeper(config.enrolment, node=config.node, state_dir=state_dir, hardware=line)


def _connect(config: AgentConfig, identity: IdentityStore, keeper: Keeper | None) -> Connect | None:
    """The way to the broker; None: the transport's own."""
    if keeper is None or not connecting.uses_identity(config, identity):
        return None
    return connecting.once_enrolled(connect_with(config.broker.transport), keeper.enrolled)


def _session_config(config: AgentConfig, identity: IdentityStore) -> SessionConfig:
    try:
        return connecting.session_config(config, identity)
    except BrokerTableError as exc:
        raise ConfigError(str(exc)) from exc
