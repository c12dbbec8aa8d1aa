"""A node's pipelines over a real broker and store, with a router that answers as told, and another program beside."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from tests.shoal_agent.until import until

from shoal_agent.background import Background
from shoal_agent.config import PipelinesTable
from shoal_agent.devices import DeviceLink
from shoal_agent.inference.router import Router
from shoal_agent.inference.served import Inferred, Served
from shoal_agent.pipelines.assembly import Surroundings
from shoal_agent.pipelines.ledger import Ledger
from shoal_agent.pipelines.pipeline import Pipeline
from shoal_agent.pipelines.roster import Roster, filters_of
from shoal_agent.pipelines.subscribed import Subscribed
from shoal_broker.outbox import Outbox
from shoal_broker.server import Broker
from shoal_broker.session import Session, SessionConfig
from shoal_broker.store import Store
from shoal_contract import messages
from shoal_contract.messages import Answer, Reading
from shoal_contract.pipelines import PipelineTable
from shoal_contract.release import ReleaseSpec
from shoal_contract.topics import Topics

RELEASE = bytes(range(32))


class RouterSimulator:
    """Answers every item with `label`, or raises what `errors` holds, one after the other.

    Attributes:
        hold: cleared, nothing is answered until it is set.
        outputs: what tensors are answered with.
    """

    def __init__(self) -> None:
        self.label = "damp"
        self.errors: list[Exception] = []
        self.asked: list[bytes] = []
        self.tensors: list[dict] = []
        self.outputs: dict = {}
        self.hold = asyncio.Event()
        self.hold.set()

    async def classify(self, model, items, *, deadline_s):
        self.asked += items
        await self.hold.wait()
        if self.errors:
            raise self.errors.pop(0)
        return Served([Answer(self.label, 0.75)], RELEASE, "board-9")

    async def infer(self, model, inputs, *, outputs, priority, deadline_s):
        self.tensors.append(inputs)
        if self.errors:
            raise self.errors.pop(0)
        return Inferred({name: self.outputs[name] for name in outputs}, RELEASE, "board-9")


class PipelinedSite:
    """`seen` is what another program on the broker heard; `specs` the releases that serve."""

    def __init__(
        self, roster: Roster, router: RouterSimulator, session: Session, other: Session
    ) -> None:
        self.roster = roster
        self.router = router
        self.session = session
        self.other = other
        self.specs: dict[str, ReleaseSpec] = {}
        self.store: Store
        self.seen: list[tuple[str, bytes]] = []
        self.told = 0

    @property
    def pipelines(self) -> list[Pipeline]:
        return self.roster.running()

    async def say(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        await self.other.publish(topic, payload, durable=False, retain=retain)

    async def heard(self, count: int) -> list[tuple[str, bytes]]:
        await until(lambda: len(self.seen) >= count, timeout_s=10)
        return self.seen

    def readings(self) -> list[Reading]:
        return [
            messages.decode_as(payload, Reading)
            for topic, payload in self.seen
            if topic.startswith("shoal/n/n1/t/")
        ]

    async def until_subscribed(self, *filters: str) -> None:
        """Return when just these filters are noted, and the broker has granted them."""
        async with asyncio.timeout(5):
            while await self._filters() != set(filters):  # noqa: ASYNC110 - only asking tells
                await asyncio.sleep(0.005)
        granted = self.session._dispatcher.subscriptions
        await until(
            lambda: all(name in granted and granted[name].is_granted for name in filters),
            timeout_s=5,
        )

    async def _filters(self) -> set[str]:
        rows = await self.store.read(lambda db: db.execute("SELECT filter FROM filters").fetchall())
        return {row[0] for row in rows}

    def reason(self, stream: str) -> str:
        return next(state.reason for state in self.roster.states() if state.stream == stream)


@asynccontextmanager
async def pipelined(
    broker: Broker,
    folder: Path,
    *tables: PipelineTable,
    specs: dict[str, ReleaseSpec] | None = None,
    allowed: PipelinesTable | None = None,
    fleets: Sequence[messages.PipelineWanted] = (),
    devices: dict[str, DeviceLink] | None = None,
    router: Router | None = None,
) -> AsyncIterator[PipelinedSite]:
    """With a router it is a real one that answers, and `made.router` tells nothing."""
    simulator = RouterSimulator()
    known = dict(specs or {})
    async with Store.open(folder / "agent.db") as store:
        subscribed = await Subscribed.load(store, filters_of(tables, fleets))
        async with (
            Session.open(
                SessionConfig(host="127.0.0.1", port=broker.port, client_id="n1"),
                outbox=await Outbox.load(store),
                subscriptions=subscribed.subscriptions,
            ) as session,
            Session.open(
                SessionConfig(host="127.0.0.1", port=broker.port, client_id="other")
            ) as other,
            Background.open() as tasks,
        ):
            around = Surroundings(
                node="n1",
                topics=Topics(),
                session=session,
                router=router or simulator,
                devices=devices or {},
                subscribed=subscribed,
                ledger=await Ledger.load(store),
                tasks=tasks,
                spec_of=known.get,
            )
            made: PipelinedSite

            def tell() -> None:
                made.told += 1

            roster = Roster(around, allowed or PipelinesTable(), on_change=tell)
            made = PipelinedSite(roster, simulator, session, other)
            made.specs, made.store = known, store
            await roster.open(tables, fleets)

            async def hear(message) -> None:
                made.seen.append((message.topic, message.payload))

            await other.wait_connected(5)
            await session.wait_connected(5)
            await other.subscribe("verdict/#", hear)
            await other.subscribe("shoal/n/n1/t/#", hear)
            yield made
