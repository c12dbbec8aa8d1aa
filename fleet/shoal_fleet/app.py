"""Puts the controller together: the only place where its parts meet."""

import asyncio
import json
import os
import shutil
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Final, NoReturn

import structlog
import uvicorn

from shoal_broker.bus_errors import BrokerTableError, BusError
from shoal_broker.durable import write_durably
from shoal_broker.loopback import is_loopback
from shoal_broker.outbox import Outbox
from shoal_broker.session import Session, SessionConfig
from shoal_broker.store import Store
from shoal_contract.topics import Topics
from shoal_fleet import api
from shoal_fleet.access import URL_FILE, load_token
from shoal_fleet.alarms import Alarms
from shoal_fleet.api_certificate import ApiCertificate
from shoal_fleet.blob_store import BlobStore
from shoal_fleet.commands import Commands
from shoal_fleet.config import FleetConfig
from shoal_fleet.controller import Controller
from shoal_fleet.cuts import Cuts
from shoal_fleet.database import Database
from shoal_fleet.database_address import DatabaseAddress, configured
from shoal_fleet.deltas import Deltas
from shoal_fleet.errors import ConfigError, ListenError, StateError
from shoal_fleet.freezes import Freezes
from shoal_fleet.identity.assembly import open_identity
from shoal_fleet.identity.inventory import Inventory
from shoal_fleet.inbox import Inbox, Parts
from shoal_fleet.issuer import Issuer, load_signer, remember_signed_by, signed_by
from shoal_fleet.json_door import JsonDoor
from shoal_fleet.leadership import Leadership, WaitEndedError
from shoal_fleet.mandates import Mandates
from shoal_fleet.needs import Needs
from shoal_fleet.orders import Orders
from shoal_fleet.pipeline_check import PipelineCheck
from shoal_fleet.pipelines import Pipelines
from shoal_fleet.policies import Policies
from shoal_fleet.publisher import Publisher
from shoal_fleet.readings import Readings
from shoal_fleet.receipts import Receipts
from shoal_fleet.registry import Registry
from shoal_fleet.release_needs import ReleaseNeeds
from shoal_fleet.releases import Releases
from shoal_fleet.rollout_plans import RolloutPlans
from shoal_fleet.rollout_views import RolloutViews
from shoal_fleet.rollouts import Rollouts
from shoal_fleet.tables import FleetBase, ReadingsBase
from shoal_fleet.trust.distribution import Distribution
from shoal_fleet.update_costs import UpdateCosts
from shoal_fleet.wanted import WantedStates

log = structlog.get_logger(__name__)

BACKOFF_INITIAL_S: Final = 0.1
BACKOFF_MAX_S: Final = 5.0
"""The controller is one client beside thousands: it may knock often."""

LEAVE_S: Final = 2
RETRY_S: Final = 2.0


async def run(
    config: FleetConfig,
    state_dir: Path,
    *,
    stop: asyncio.Event,
    on_ready: Callable[[str], None] = lambda _: None,
) -> None:
    """Run the controller until `stop` is set; `on_ready` gets the API's address.

    Raises:
        ConfigError: the listening address, the password file or a file for TLS cannot be used.
        StateError: the state directory cannot be used.
    """
    try:
        async with running(config, state_dir, stop=stop) as (_, url):
            on_ready(url)
            await stop.wait()
    except WaitEndedError as exc:
        log.info("controller ends", reason=str(exc))


@asynccontextmanager
async def running(
    config: FleetConfig, state_dir: Path, *, stop: asyncio.Event | None = None
) -> AsyncIterator[tuple[Controller, str]]:
    """The controller and the address of its API, for as long as the context lasts.

    Raises:
        WaitEndedError: `stop` was set while another controller led.
    """
    async with AsyncExitStack() as stack:
        leadership = await _lead(stack, config, stop or asyncio.Event())
        _prepare(state_dir)
        token = load_token(state_dir)
        certificate = ApiCertificate.load(config.listen, state_dir)
        listener = stack.enter_context(_listen(config))
        controller = await _open(stack, config, state_dir, leadership)
        host, port = listener.getsockname()[:2]
        scheme = "http" if certificate is None else "https"
        url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
        if certificate is None and not is_loopback(config.listen.host):
            log.warning("the API is spoken to in the clear", url=url)
        server = _Server(
            uvicorn.Config(
                api.build(controller, token=token),
                log_config=None,
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=LEAVE_S,
                ssl_context_factory=None
                if certificate is None
                else lambda _config, _default: certificate.context,
            )
        )
        async with asyncio.TaskGroup() as tasks:
            owned = [
                tasks.create_task(_persevere(name, work), name=f"controller.{name}")
                for name, work in {
                    "wanted": controller.wanted.run,
                    "publisher": controller.publisher.run,
                    "rollouts": controller.rollouts.run,
                    "prepare": controller.rollouts.prepare,
                    "commands": controller.commands.sweep,
                    "receipts": controller.receipts.run,
                    "alarms": controller.alarms.watch,
                    "webhook": controller.alarms.deliver,
                    "mirror": controller.door.mirror.run,
                    "policies": controller.policies.run,
                    "distribution": controller.distribution.run,
                    **({} if controller.identity is None else controller.identity.work),
                    **({} if certificate is None else {"certificate": certificate.run}),
                }.items()
            ]
            if leadership is not None:
                owned.append(tasks.create_task(leadership.watch(), name="controller.leadership"))
            serving = tasks.create_task(server.serve(sockets=[listener]), name="controller.api")
            try:
                _write(state_dir / URL_FILE, url.encode() + b"\n")
                key = controller.issuer.public_key
                log.info("controller runs", url=url, state_dir=str(state_dir), command_key=key)
                yield controller, url
            finally:
                server.should_exit = True
                for task in owned:
                    task.cancel()
                await asyncio.wait([serving], timeout=LEAVE_S + 1)
                serving.cancel()
                await controller.registry.flush()


async def _persevere(name: str, work: Callable[[], Awaitable[NoReturn]]) -> NoReturn:
    """A disk that is full for a while stops no part of the controller for good."""
    while True:
        try:
            await work()
        except (StateError, BusError) as exc:
            log.error("controller waits", part=name, reason=str(exc))  # noqa: TRY400 - the message says it all
            await asyncio.sleep(RETRY_S)


class _Server(uvicorn.Server):
    """Uvicorn without its own signal handlers: `cli` decides when to stop."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


async def _lead(
    stack: AsyncExitStack, config: FleetConfig, stop: asyncio.Event
) -> Leadership | None:
    """None: the database is a file of this controller's own."""
    if config.database.url is None:
        return None
    address = _database(config, Path())
    return await stack.enter_async_context(Leadership.gained(address, stop=stop))


def _database(config: FleetConfig, file: Path) -> DatabaseAddress:
    table = config.database
    if table.url is None:
        return DatabaseAddress.file(file)
    return configured(table.url, password_file=table.password_file, ca_file=table.ca_file)


async def _open(
    stack: AsyncExitStack, config: FleetConfig, state_dir: Path, leadership: Leadership | None
) -> Controller:
    enter = stack.enter_async_context
    topics = Topics(config.root)
    issuer = Issuer(load_signer(state_dir) if config.sign_commands else None)
    database = await enter(Database.open(_database(config, state_dir / "fleet.db"), FleetBase))
    if leadership is not None:
        await leadership.begin_term(database)
    # With SQLite a file of its own: readings are many, and must not wait for anybody's decisions.
    readings_file = await enter(
        Database.open(_database(config, state_dir / "readings.db"), ReadingsBase)
    )
    outbox = await Outbox.load(await enter(Store.open(state_dir / "outbox.db")))
    inbox = Inbox(topics)
    door = JsonDoor(topics, config.door)
    session = await enter(
        Session.open(
            _session_config(config),
            outbox=outbox,
            subscriptions={**inbox.subscriptions, **door.subscriptions},
            on_connected=inbox.connected,
        )
    )
    store = BlobStore(Path(config.blobs_dir or state_dir / "blobs"), database)
    registry = await Registry.load(database)
    releases = Releases(database, store, scratch=state_dir / "scratch")
    deltas = Deltas(database, store, scratch=state_dir / "scratch")
    pipelines = await Pipelines.load(database)
    wanted = WantedStates(
        database,
        session,
        topics,
        registry=registry,
        releases=releases,
        deltas=deltas,
        pipelines=pipelines,
        issuer=issuer,
    )
    await _say_anew_with_a_new_key(wanted, issuer, state_dir)
    registry.on_new = lambda _: wanted.changed()
    blobs_wanted = asyncio.Event()
    freezes, release_needs = await Freezes.load(database), ReleaseNeeds(releases)
    distribution = Distribution(state_dir, session, topics)
    rollouts = Rollouts(
        database,
        registry=registry,
        releases=releases,
        deltas=deltas,
        wanted=wanted,
        blobs_wanted=blobs_wanted,
        is_listening=lambda: session.connected,
        needs=release_needs,
        freezes=freezes,
        listed=distribution.listed,
    )
    await rollouts.load()
    sources = (wanted.pending, rollouts.expecting)
    publisher = Publisher(
        database,
        session,
        topics,
        store=store,
        needs=Needs(sources, registry=registry, releases=releases, deltas=deltas),
        cuts=Cuts(
            database, session, topics, store=store, wanted=wanted, chunk_bytes=config.chunk_bytes
        ),
        wake=blobs_wanted,
        retained_bytes_max=config.retained_bytes_max,
    )
    orders = Orders(database, session, outbox, topics, issuer=issuer)
    mandates = await Mandates.load(database, issuer)
    policies = Policies(
        database, topics, book=mandates, registry=registry, orders=orders, issuer=issuer
    )
    mandates.on_change = policies.wake
    alarms = Alarms(
        registry,
        silent_after_s=config.silent_after_s,
        webhook_url=config.webhook_url,
        is_listening=lambda: session.connected,
    )
    # Without [identity], too: who was revoked stays out.
    inventory = await Inventory.load(database)
    inbox.is_revoked = inventory.is_revoked
    identity = await open_identity(
        stack,
        config.identity,
        state_dir=state_dir,
        database=database,
        inventory=inventory,
        registry=registry,
        wanted=wanted,
        alarms=alarms,
        reserved=(config.broker.client_id, *(table.user for table in config.door)),
        broker=session.config,
    )
    update_costs = UpdateCosts(registry=registry, releases=releases, deltas=deltas)
    controller = Controller(
        config=config,
        version=version("shoal"),
        database=database,
        session=session,
        inbox=inbox,
        door=door,
        registry=registry,
        alarms=alarms,
        issuer=issuer,
        orders=orders,
        commands=Commands(database, session, outbox, topics, issuer=issuer),
        readings=Readings(readings_file, kept=config.readings_kept),
        receipts=Receipts(session, topics, issuer=issuer),
        releases=releases,
        deltas=deltas,
        wanted=wanted,
        publisher=publisher,
        rollouts=rollouts,
        rollout_views=RolloutViews(
            database, registry=registry, releases=releases, deltas=deltas, rollouts=rollouts
        ),
        rollout_plans=RolloutPlans(
            database, registry=registry, costs=update_costs, needs=release_needs, freezes=freezes
        ),
        freezes=freezes,
        mandates=mandates,
        policies=policies,
        pipelines=pipelines,
        pipeline_check=PipelineCheck(pipelines, releases, wanted.of),
        update_costs=update_costs,
        distribution=distribution,
        inventory=inventory,
        identity=identity,
    )
    await orders.recover()
    await door.open(
        database,
        session,
        registry=registry,
        orders=controller.orders,
        commands=controller.commands,
    )
    inbox.open(
        Parts(
            registry=registry,
            orders=controller.orders,
            commands=controller.commands,
            readings=controller.readings,
            receipts=controller.receipts,
            rollouts=rollouts,
            publisher=publisher,
            wanted=wanted,
            mirror=door.mirror,
            policies=policies,
            distribution=distribution,
        )
    )
    return controller


async def _say_anew_with_a_new_key(wanted: WantedStates, issuer: Issuer, state_dir: Path) -> None:
    """Nodes ask for the signature on what the broker retains whenever they read it."""
    key = issuer.public_key or ""
    if signed_by(state_dir) != key:
        await wanted.say_all_again()
        remember_signed_by(state_dir, key)


def _session_config(config: FleetConfig) -> SessionConfig:
    try:
        broker = config.broker.session(config.broker.client_id)
    except BrokerTableError as exc:
        raise ConfigError(str(exc)) from exc
    return replace(broker, backoff_initial_s=BACKOFF_INITIAL_S, backoff_max_s=BACKOFF_MAX_S)


def _prepare(state_dir: Path) -> None:
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        scratch = state_dir / "scratch"
        # What a kill left of uploads and deltas under way.
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(exist_ok=True, mode=0o700)
    except OSError as exc:
        raise StateError(f"{state_dir}: {exc.strerror}") from exc


@contextmanager
def _listen(config: FleetConfig) -> Iterator[socket.socket]:
    host, port = config.listen.host, config.listen.port
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address, family=family)
        # Accepted connections inherit it. asyncio would set it only on sockets that name their protocol,
        # and a request would take 40 ms longer.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except UnicodeError as exc:
        raise ConfigError(f"cannot listen on {host!r}: it is no host name") from exc
    except OSError as exc:
        raise ListenError(f"cannot listen on {host}:{port}: {exc.strerror}") from exc
    with listener:
        yield listener


def write_ready_file(path: Path, url: str) -> None:
    """Tell whoever waits for this file that the API answers.

    Raises:
        StateError: it cannot be written.
    """
    _write(path, json.dumps({"url": url, "pid": os.getpid()}).encode() + b"\n")


def _write(path: Path, content: bytes) -> None:
    try:
        write_durably(path, content)
    except OSError as exc:
        raise StateError(f"{path}: {exc.strerror}") from exc
