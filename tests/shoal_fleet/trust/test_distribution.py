"""What the controller keeps at the broker: on a real broker, with an outbox on the disk."""

import shutil
from contextlib import AsyncExitStack

import pytest
from tests.shoal_agent.until import until
from tests.support.signed_repository import Key, SignedRepository

from shoal_broker.outbox import Outbox
from shoal_broker.server import Broker, BrokerConfig
from shoal_broker.session import Session, SessionConfig
from shoal_broker.store import Store
from shoal_contract.topics import Topics, UpdateTopic
from shoal_fleet.errors import StateError
from shoal_fleet.trust import installing, places
from shoal_fleet.trust.distribution import Distribution
from shoal_fleet.trust.repository import Repository

TOPICS = Topics()


class Site:
    """A controller's distribution, and a node that sees everything below u/."""

    def __init__(self, offline, state_dir, session, seen) -> None:
        self.offline = offline
        self.state_dir = state_dir
        self.session = session
        self.seen = seen
        self.there = Repository(places.metadata_dir(state_dir))
        self.distribution = Distribution(state_dir, session, TOPICS)

    def install(self) -> None:
        self.there.directory.mkdir(parents=True, exist_ok=True)
        installing.install(self.offline.repository, self.there)
        self.offline.online_key_file(places.online_key_file(self.state_dir))

    async def sync(self) -> list[str]:
        sent = await self.distribution.sync(self.offline.now)
        await until(lambda: not len(self.session.outbox))
        return sent

    async def retained(self) -> dict[str, bytes]:
        """What a node that comes now is told."""
        self.seen.clear()
        await self.session.ask_again(TOPICS.update("x").replace("/x", "/+"))
        # What is published now comes behind what was retained.
        await self.session.publish(TOPICS.update("end"), b"x", durable=False)
        await until(lambda: "end" in self.seen)
        del self.seen["end"]
        return dict(self.seen)


@pytest.fixture
async def site(tmp_path):
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        broker = await enter(Broker.open(BrokerConfig(host="127.0.0.1", port=0)))
        outbox = await Outbox.load(await enter(Store.open(tmp_path / "outbox.db")))
        seen: dict[str, bytes] = {}

        async def take(message):
            address = TOPICS.parse(message.topic)
            assert isinstance(address, UpdateTopic)
            if message.payload:
                seen[address.name] = message.payload
            else:
                seen.pop(address.name, None)

        config = SessionConfig(host="127.0.0.1", port=broker.port, client_id="controller")
        session = await enter(
            Session.open(config, outbox=outbox, subscriptions={f"{TOPICS.root}/u/+": take})
        )
        await session.wait_connected(5)
        yield Site(SignedRepository(tmp_path / "tuf"), tmp_path / "fleet", session, seen)


async def test_without_a_trust_directory_there_is_nothing_to_do(site):
    assert await site.sync() == []
    assert not site.state_dir.exists()


async def test_everything_that_a_node_needs_is_retained_the_timestamp_last(site):
    site.install()
    sent = await site.sync()
    assert sent[-1] == "timestamp.json"
    assert set(await site.retained()) == {
        "1.root.json", "1.targets.json", "1.group-all.json", "1.group-bergen.json",
        "1.group-oslo.json", "1.snapshot.json", "timestamp.json",
    }  # fmt: skip
    assert site.distribution.sent_bytes == sum(map(len, site.seen.values()))


async def test_a_restart_says_nothing_twice(site):
    site.install()
    await site.sync()
    again = Distribution(site.state_dir, site.session, TOPICS)
    assert await again.sync(site.offline.now) == []


async def test_a_day_costs_a_timestamp(site):
    site.install()
    await site.sync()
    site.offline.later(days=1, hours=1)
    assert await site.sync() == ["timestamp.json"]


async def test_a_release_that_was_signed_goes_out_at_once(site):
    site.install()
    await site.sync()
    site.offline.release("oslo", ("digits", b"a manifest"))
    site.install()
    assert await site.sync() == ["2.group-oslo.json", "2.snapshot.json", "timestamp.json"]


async def test_old_versions_leave_the_broker_and_roots_stay(site):
    for number in range(4):
        site.install()
        await site.sync()
        site.offline.release("oslo", ("digits", str(number).encode()))
        site.offline.rotate_root()
    site.install()
    await site.sync()
    names = set(await site.retained())
    assert {name for name in names if "root" in name} == {f"{n}.root.json" for n in range(1, 6)}
    assert {name for name in names if "oslo" in name} == {"4.group-oslo.json", "5.group-oslo.json"}
    assert len({name for name in names if "snapshot" in name}) == 2
    assert site.there.versions("snapshot") == [4, 5]


async def test_a_broker_that_forgot_is_told_everything_again(site):
    site.install()
    sent = await site.sync()
    site.distribution.forget()
    assert await site.sync() == sent


async def test_a_wrong_or_missing_online_key_is_said(site):
    site.install()
    places.online_key_file(site.state_dir).unlink()
    with pytest.raises(StateError, match="online key"):
        await site.sync()
    site.offline.online = Key()
    site.install()
    with pytest.raises(StateError, match="not the one that the root names"):
        await site.sync()


async def test_what_runs_out_is_an_alarm(site):
    site.install()
    await site.sync()
    assert site.distribution.alarms == ()
    site.offline.later(days=350)
    await site.sync()
    assert any(alarm.startswith("root: runs out in 15") for alarm in site.distribution.alarms)
    assert any(alarm.startswith("group-oslo: runs out") for alarm in site.distribution.alarms)
    assert not any(alarm.startswith("timestamp") for alarm in site.distribution.alarms)


async def test_a_directory_that_vanished_is_no_crash(site):
    site.install()
    await site.sync()
    shutil.rmtree(site.there.directory)
    await site.sync()
