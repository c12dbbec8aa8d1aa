"""Signed releases as an agent asks for them: a real broker, a real journal, the real child."""

import hashlib
import subprocess
import sys
from contextlib import AsyncExitStack

import pytest
from tests.shoal_agent.until import until
from tests.support.signed_repository import SignedRepository

from shoal_agent.background import Background
from shoal_agent.errors import UnsignedReleaseError, UnverifiedReleaseError
from shoal_agent.updater import signed_releases
from shoal_agent.updater.notices import Notices
from shoal_agent.updater.remembered import RememberedFloors
from shoal_agent.updater.retained import retained
from shoal_agent.updater.signed_releases import SignedReleases
from shoal_broker.server import Broker, BrokerConfig
from shoal_broker.session import Session, SessionConfig
from shoal_broker.store import Store
from shoal_contract.topics import Topics

MANIFEST = b"a manifest"
RELEASE = hashlib.sha256(MANIFEST).digest()
TOPICS = Topics()


class Site:
    """A broker that retains what the repository has published, and one node's SignedReleases."""

    def __init__(self, repository, session, notices, node, store) -> None:
        self.repository = repository
        self.session = session
        self.notices = notices
        self.store = store
        self.node = node
        self.signed: SignedReleases
        self.given: list[tuple[str, int]] = []

    async def publish(self, *names: str, files: dict[str, bytes] | None = None) -> None:
        """These files (all) of the repository, the timestamp last, as the controller does."""
        files = files or self.repository.files()
        wanted = names or tuple(sorted(files, key=lambda name: name == "timestamp.json"))
        before = self.notices._timestamp
        for name in wanted:
            await self.session.publish(TOPICS.update(name), files[name], retain=True, durable=False)
        if "timestamp.json" in wanted and files["timestamp.json"] != before:
            await until(lambda: self.notices._timestamp == files["timestamp.json"])

    async def kind(self, release: bytes = RELEASE, groups: tuple[str, ...] = ("oslo",)) -> str:
        try:
            await self.signed.require("digits", release, groups)
        except UnsignedReleaseError as exc:
            return f"unsigned: {exc}"
        except UnverifiedReleaseError as exc:
            return f"unverified: {exc}"
        return "signed"


@pytest.fixture
async def site(tmp_path, monkeypatch):
    monkeypatch.setattr("shoal_agent.updater.retained.ABSENT_S", 0.1)
    repository = SignedRepository(tmp_path / "repository")
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        broker = await enter(Broker.open(BrokerConfig(host="127.0.0.1", port=0)))
        notices = Notices(TOPICS, is_followed=True)
        where = {"host": "127.0.0.1", "port": broker.port}
        controller = await enter(Session.open(SessionConfig(client_id="hub", **where)))
        node = await enter(
            Session.open(
                SessionConfig(client_id="n1", **where), subscriptions=notices.subscriptions
            )
        )
        await controller.wait_connected(5)
        store = await enter(Store.open(tmp_path / "agent.db"))
        made = Site(repository, controller, notices, node, store)
        give = notices.give

        async def counted(session, name):
            given = await give(session, name)
            made.given.append((name, len(given.data or b"")))
            return given

        monkeypatch.setattr(notices, "give", counted)
        made.signed = SignedReleases(
            root_file=repository.root_file,
            source="broker",
            groups=(),
            directory=tmp_path / "metadata",
            floors=await RememberedFloors.load(store),
            session=node,
            notices=notices,
            clock_s=lambda: float(repository.now_s),
            spread_s=0.0,
        )
        yield made


async def test_a_signed_release_is_taken_and_an_unsigned_one_is_not(site):
    site.repository.release("oslo", ("digits", MANIFEST))
    await site.publish()
    assert await site.kind() == "signed"
    assert await site.kind(bytes(32)) == (
        "unsigned: nobody has signed the release 000000000000 for oslo, all"
    )
    assert site.signed.refused == 1


async def test_only_what_changed_travels(site, record_property):
    """What a node fetches: at first contact, for a new release, and while nothing happens."""
    site.repository.release("oslo", ("digits", MANIFEST))
    await site.publish()
    assert await site.kind() == "signed"
    first = dict(site.given)
    site.given.clear()
    site.repository.later(days=2)
    site.repository.renew()
    await site.publish("timestamp.json")
    assert await site.kind() == "signed"
    idle = dict(site.given)
    site.given.clear()
    site.repository.release("oslo", ("digits", b"next"))
    await site.publish()
    assert await site.kind(hashlib.sha256(b"next").digest()) == "signed"
    new = dict(site.given)
    for what, files in (("first contact", first), ("idle", idle), ("new release", new)):
        print(f"{what}: {sum(files.values())} bytes {files}")
    record_property("idle_bytes", sum(idle.values()))
    assert {name for name, size in idle.items() if size} == {"timestamp.json"}
    assert {name for name, size in new.items() if size} == {
        "timestamp.json", "3.snapshot.json", "3.group-oslo.json",
    }  # fmt: skip


async def test_the_floors_outlive_the_metadata_files_and_the_process(site, tmp_path):
    site.repository.release("oslo", ("digits", MANIFEST))
    old = site.repository.files()
    site.repository.later(days=2)
    site.repository.release("oslo", ("digits", b"next"))
    await site.publish()
    assert await site.kind() == "signed"
    for path in (tmp_path / "metadata").glob("*.json"):
        path.write_bytes(b"") if not path.is_symlink() else path.unlink()
    site.signed._floors = await RememberedFloors.load(site.store)
    await site.publish(files=old)
    refused = await site.kind()
    assert refused.startswith("unverified: the signed metadata cannot be relied on")
    assert "is older than" in refused
    assert site.signed.unverified == 1


async def test_without_metadata_at_the_broker_nothing_is_signed(site):
    assert "timestamp.json is not there" in await site.kind()


async def test_without_a_connection_nothing_is_said_for_good(site, monkeypatch):
    monkeypatch.setattr("shoal_agent.updater.notices.FILE_TIMEOUT_S", 0.2)
    nowhere = SessionConfig(host="127.0.0.1", port=1, client_id="n2")
    async with Session.open(nowhere) as session:
        site.signed._session = session
        assert (await site.kind()).startswith("unverified: ")


async def test_the_configured_groups_count_and_not_those_of_the_wanted_state(site):
    site.repository.release("bergen", ("digits", MANIFEST))
    await site.publish()
    assert await site.kind(groups=("bergen",)) == "signed"
    site.signed._groups = ("oslo",)
    assert (await site.kind(groups=("bergen",))).startswith("unsigned")


async def test_a_group_with_a_strange_name_is_a_reason_and_no_crash(site):
    assert (await site.kind(groups=("a/b",))).startswith("unverified")


async def test_new_metadata_wakes_whoever_waits_for_it(site):
    await site.publish()
    woken = []
    async with Background.open() as background:
        background.start(site.signed.follow(lambda: woken.append(1)), name="follow")
        await until(lambda: len(woken) == 1)
        site.repository.release("oslo", ("digits", MANIFEST))
        await site.publish()
        await until(lambda: len(woken) == 2)
    assert await site.kind() == "signed"


async def test_a_child_that_dies_or_talks_nonsense_is_a_reason(site, tmp_path):
    for text in ("exit 3", "echo nonsense", "head -c 300000 /dev/zero", 'echo \'{"type":"ask"}\''):
        fake = tmp_path / "fake"
        fake.write_text(f"#!/bin/sh\n{text}\n")
        fake.chmod(0o755)
        site.signed._python = str(fake)
        assert (await site.kind()).startswith("unverified: "), text


async def test_a_child_that_hangs_is_ended(site, tmp_path, monkeypatch):
    monkeypatch.setattr(signed_releases, "CHILD_TIMEOUT_S", 0.2)
    fake = tmp_path / "fake"
    fake.write_text("#!/bin/sh\nexec sleep 60\n")
    fake.chmod(0o755)
    site.signed._python = str(fake)
    assert "no verdict" in await site.kind()


async def test_nothing_retained_is_nothing_and_a_message_is_found(site):
    assert await retained(site.node, TOPICS.update("9.root.json"), timeout_s=2) is None
    await site.publish()
    data = await retained(site.node, TOPICS.update("1.root.json"), timeout_s=2)
    assert data == site.repository.files()["1.root.json"]


def test_the_agent_itself_never_loads_what_the_child_is_for():
    foreign = "{'tuf', 'securesystemslib', 'cryptography', 'urllib3', 'nacl'}"
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys, shoal_agent.app, shoal_agent.updater.signed_releases; print({foreign} & set(sys.modules))",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == "set()\n"
