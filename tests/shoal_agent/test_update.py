"""The updater on a real broker, journal and content store; the engine is simulated where it is not the matter."""

import asyncio
import hashlib
import shutil
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.shoal_agent.inference import tiny_release
from tests.shoal_agent.until import until
from tests.support.hub import Hub, Release

import shoal_delta
from shoal_agent import update
from shoal_agent.background import Background
from shoal_agent.errors import UnsignedReleaseError, UnverifiedReleaseError
from shoal_agent.fetch import BlobFetcher
from shoal_agent.files import ContentStore
from shoal_agent.inference.engine import Admission, Engine
from shoal_agent.inference.errors import ModelRefusedError, NotAdmittedError, WorkerLostError
from shoal_agent.inference.served import ModelFacts
from shoal_agent.inference.signature import Signature
from shoal_agent.journal import Journal, Serving
from shoal_agent.probation import Probation
from shoal_agent.staging import Staging
from shoal_agent.update import Updater
from shoal_broker.bus_errors import StoreError
from shoal_broker.outbox import Outbox
from shoal_broker.server import Broker, BrokerConfig
from shoal_broker.session import Session, SessionConfig
from shoal_broker.store import Store
from shoal_contract import blobs, messages
from shoal_contract.messages import DeltaOffer, ModelWanted, Phase
from shoal_contract.release import ShadowTable, parse_manifest
from shoal_contract.topics import Topics
from shoal_fleet import digits

NODE = "n1"


@dataclass
class EngineSimulator:
    """Behaves as the engine does, without a worker.

    Attributes:
        refuses: releases that do not pass, with the reason.
        worker_lost: no worker can be started.
        forgets: admissions that are lost again before the switch.
        is_short: of memory.
        broken: releases that do not run any more, with the reason.
        disagrees: the reason why shadow runs do not pass.
    """

    refuses: dict[bytes, str] = field(default_factory=dict)
    worker_lost: bool = False
    forgets: int = 0
    is_short: bool = False
    broken: dict[bytes, str] = field(default_factory=dict)
    disagrees: str = ""
    shadowed: list[bytes] = field(default_factory=list)
    registered: list[bytes] = field(default_factory=list)
    admitted: list[bytes] = field(default_factory=list)
    _serving: dict[str, bytes] = field(default_factory=dict)

    async def admit(
        self,
        release: bytes,
        directory: Path,
        *,
        trial: bool = True,
        replaces: str = "",
        latency_factor: float = 0.0,
    ) -> Admission:
        if self.worker_lost:
            raise WorkerLostError("the worker does not start")
        if release in self.refuses:
            raise ModelRefusedError(self.refuses[release])
        if (directory / "model.onnx").read_bytes()[:1] == b"\xff":
            raise ModelRefusedError("the model file is damaged")
        self.admitted.append(release)
        return Admission(load_ms=0.1, p50_us=1, p95_us=2, golden_count=3)

    def is_memory_short(self) -> bool:
        return self.is_short

    def register(self, release: bytes, directory: Path, signature: Signature) -> None:
        assert signature.item_bytes
        assert (directory / "model.onnx").is_file()
        self.registered.append(release)
        self.admitted.append(release)

    async def shadow(self, model: str, release: bytes, table: ShadowTable) -> str:
        assert release in self.admitted
        assert table.requests == 7
        self.shadowed.append(release)
        if self.disagrees:
            raise ModelRefusedError(self.disagrees)
        return "all agree"

    async def switch(self, model: str, release: bytes) -> None:
        if self.forgets:
            self.forgets -= 1
            raise NotAdmittedError("the worker died of it meanwhile")
        assert release in self.admitted
        self._serving[model] = release

    async def remove(self, model: str) -> None:
        self._serving.pop(model, None)

    async def discard(self, release: bytes) -> None:
        self.admitted.remove(release)

    def serving(self, model: str) -> bytes | None:
        return self._serving.get(model)

    def describe(self) -> list[ModelFacts]:
        went = Admission(load_ms=0.1, p95_us=2, resident_bytes=5000, peak_bytes=7000)
        return [
            ModelFacts(
                model, "serving", 5000, 0, 1, 2, (), self.broken.get(release), went, answered=1
            )
            for model, release in self._serving.items()
        ]

    def models(self) -> list[str]:
        return sorted(self._serving)


class SignedSimulator:
    """Knows what is signed, as the updater child does; `lost` is why nothing can be said."""

    def __init__(self, *signed: tuple[str, bytes]) -> None:
        self.signed = set(signed)
        self.lost = ""
        self.asked = 0

    async def require(self, model: str, release: bytes, groups: list[str]) -> None:
        self.asked += 1
        if self.lost:
            raise UnverifiedReleaseError(self.lost)
        if (model, release) not in self.signed:
            raise UnsignedReleaseError(f"nobody has signed it for {groups}")


class Board:
    """What an updater needs, on the disk in `folder`."""

    def __init__(self, store, session, engine, folder, topics, signed=None, probation=None) -> None:
        self.journal = Journal(store)
        self.engine = engine
        self.content = ContentStore(folder)
        self.fetcher = BlobFetcher(session, topics, NODE, self.content)
        self.updater = Updater(
            journal=self.journal,
            content=self.content,
            staging=Staging(self.content, self.fetcher),
            engine=engine,
            on_change=self._changed,
            signed=signed,
            probation=probation,
        )
        self.phases: list[Phase] = []

    async def _changed(self) -> None:
        self.phases += [state.phase for state in self.updater.states()]

    async def take_wanted(self, message) -> None:
        await self.journal.set_wanted(message.payload)
        self.updater.wake()

    def state(self, model: str = "digits") -> messages.ModelState | None:
        found = [state for state in self.updater.states() if state.model == model]
        return found[0] if found else None

    def phase(self) -> Phase | None:
        state = self.state()
        return state.phase if state else None

    async def until_serving(self, release: Release) -> None:
        await until(lambda: self.engine.serving(release.spec.name) == release.id, timeout_s=45)

    async def steps(self) -> list[str]:
        return [step for _, _, step, _ in await self.journal.steps()]


@asynccontextmanager
async def board(folder: Path, port: int, engine, *, signed=None, **options):
    """A running updater; leaving is a power cut as far as it is concerned."""
    topics = Topics()
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        store = await enter(Store.open(folder / "agent.db"))
        await Journal.load(store)
        session = await enter(
            Session.open(
                SessionConfig(host="127.0.0.1", port=port, client_id=NODE),
                outbox=await Outbox.load(store),
            )
        )
        made = Board(store, session, engine, folder, topics, signed, await Probation.load(store))
        for name, value in options.items():
            setattr(made.updater._slots, name, value)
        await made.updater.restore()
        background = await enter(Background.open())
        background.start(made.updater.run(), name="updater")
        background.start(made.updater.watch(), name="updater.probation")
        await session.wait_connected(5)
        await session.subscribe(topics.wanted(NODE), made.take_wanted)
        yield made


@pytest.fixture
async def hub():
    async with (
        Broker.open(BrokerConfig(host="127.0.0.1", port=0)) as broker,
        Hub.open(broker.port, NODE) as hub,
    ):
        hub.port = broker.port
        yield hub


@pytest.fixture(scope="module")
def v1():
    return Release(digits.release_dir(1))


@pytest.fixture(scope="module")
def v2():
    return Release(digits.release_dir(2))


async def test_an_update_with_a_delta_fetches_the_delta_and_not_the_file(tmp_path, hub, v1, v2):
    async with board(tmp_path, hub.port, EngineSimulator()) as node:
        await hub.want(v1)
        await node.until_serving(v1)
        assert node.state().fetched_bytes == len(v1.manifest) + sum(map(len, v1.files.values()))
        assert node.state().model_file == hashlib.sha256(v1.model).digest()
        cost = (node.state().residence, node.state().resident_bytes, node.state().peak_bytes)
        assert (cost, node.state().p95_us) == (("serving", 5000, 7000), 2)
        before = node.fetcher.received_bytes
        await hub.want(v2, base=v1)
        await node.until_serving(v2)
        await until(lambda: node.phase() is Phase.SERVING)
        assert "build" in await node.steps()
        fetched = node.state().fetched_bytes
        assert fetched == node.fetcher.received_bytes - before
        assert fetched < len(v2.model)
        assert node.content.path(hashlib.sha256(v2.model).digest()).read_bytes() == v2.model


@pytest.mark.parametrize("damage", ["wrong base", "truncated", "not a delta"])
async def test_a_delta_that_leads_nowhere_is_left_for_the_whole_file(
    tmp_path, hub, v1, v2, damage, monkeypatch
):
    good = shoal_delta.diff(v1.model, v2.model)
    bad = {
        "wrong base": shoal_delta.diff(v1.model + b"x", v2.model),
        "truncated": good[: len(good) // 2],
        "not a delta": b"\x00" * 500,
    }[damage]
    monkeypatch.setattr(shoal_delta, "diff", lambda _old, _new: bad)
    async with board(tmp_path, hub.port, EngineSimulator()) as node:
        await hub.want(v1)
        await node.until_serving(v1)
        await hub.want(v2, base=v1)
        await until(lambda: node.phase() is Phase.BUILDING)
        assert node.engine.serving("digits") == v1.id
        await node.until_serving(v2)
        steps = await node.steps()
        assert steps.count("build") == 1
        assert node.state().fetched_bytes > len(v2.model)


async def test_an_unsigned_release_is_not_fetched_and_runs_once_it_is_signed(tmp_path, hub, v1):
    signed = SignedSimulator()
    async with board(tmp_path, hub.port, EngineSimulator(), signed=signed) as node:
        await hub.want(v1)
        await until(lambda: node.phase() is Phase.FAILED)
        assert node.state().reason == "nobody has signed it for []"
        assert node.fetcher.received_bytes == 0
        assert await node.steps() == []
        assert await node.journal.refused() == {}
        signed.signed.add(("digits", v1.id))
        node.updater.wake()
        await node.until_serving(v1)
        # What serves is not asked for again.
        asked = signed.asked
        node.updater.wake()
        await until(lambda: node.phase() is Phase.SERVING)
        await node.updater.reconcile_once()
        assert signed.asked == asked


async def test_what_cannot_be_verified_now_waits_and_is_tried_again(
    tmp_path, hub, v1, v2, monkeypatch
):
    monkeypatch.setattr(update, "RETRY_S", 0.05)
    signed = SignedSimulator(("digits", v1.id), ("digits", v2.id))
    async with board(tmp_path, hub.port, EngineSimulator(), signed=signed) as node:
        await hub.want(v1)
        await node.until_serving(v1)
        signed.lost = "the clock says 2036"
        await hub.want(v2)
        await until(lambda: node.state().reason == "the clock says 2036")
        assert node.phase() is Phase.FETCHING
        assert node.engine.serving("digits") == v1.id
        asked = signed.asked
        await until(lambda: signed.asked > asked)
        signed.lost = ""
        await node.until_serving(v2)


async def test_when_it_is_tried_again_is_drawn_from_a_window_that_doubles(
    tmp_path, hub, v1, monkeypatch
):
    windows = []

    def draw(low, high):
        windows.append((low, high))
        return 0.01

    monkeypatch.setattr(update.random, "uniform", draw)
    signed = SignedSimulator(("digits", v1.id))
    signed.lost = "the clock says 2036"
    async with board(tmp_path, hub.port, EngineSimulator(), signed=signed) as node:
        await hub.want(v1)
        await until(lambda: len([w for w in windows if w[1] >= update.RETRY_S]) >= 5)
        signed.lost = ""
        await node.until_serving(v1)
    seen = [window for window in windows if window[1] >= update.RETRY_S]
    assert seen[:5] == [(0, 5), (0, 10), (0, 20), (0, 40), (0, 40)]


async def test_a_release_with_wrong_golden_outputs_is_refused_and_the_old_one_serves_on(
    tmp_path, hub
):
    good = tiny(tmp_path / "good", seed=1)
    # Its golden outputs are those of other weights.
    bad = tiny(tmp_path / "bad", seed=2, model=tiny_release.linear(3))
    async with Engine.open() as engine, board(tmp_path, hub.port, engine) as node:
        await hub.want(good)
        await node.until_serving(good)
        await hub.want(bad)
        await until(lambda: node.state("tiny").phase is Phase.FAILED)
        state = node.state("tiny")
        assert state.release == good.id
        assert state.target == bad.id
        assert "golden" in state.reason
        item = tiny_release.item()
        served = await engine.classify("tiny", [item], deadline_s=5)
        assert served.release == good.id
        assert served.answers[0].label == tiny_release.expected_label(item, 1)
        # It is not tried again, whatever else happens ...
        tried = len(await node.steps())
        await hub.want(bad)
        await until(lambda: node.updater.wanted_revision == hub.revision)
        assert len(await node.steps()) == tried
        assert node.state("tiny").reason == state.reason
        # ... until somebody says so; then it fails for the same reason.
        assert await node.journal.forgive(bad.id)
        node.updater.wake()
        await until(lambda: node.state("tiny").phase is Phase.FETCHING or tried_again(node))
        await until(lambda: node.state("tiny").phase is Phase.FAILED)
        assert len(await node.steps()) > tried


def tried_again(node: Board) -> bool:
    return node.state("tiny").phase in {Phase.BUILDING, Phase.VERIFYING}


def tiny(directory: Path, **options) -> Release:
    tiny_release.write(directory, **options)
    return Release(directory)


async def test_a_worker_that_cannot_start_does_not_condemn_the_release(
    tmp_path, hub, v1, monkeypatch
):
    monkeypatch.setattr(update, "RETRY_S", 0.05)
    engine = EngineSimulator(worker_lost=True)
    async with board(tmp_path, hub.port, engine) as node:
        await hub.want(v1)
        await until(lambda: node.phase() is not None and "does not start" in node.state().reason)
        assert node.phase() is Phase.FETCHING
        assert await node.journal.refused() == {}
        engine.worker_lost = False
        await node.until_serving(v1)


SHADOW = "[gate.shadow]\nrequests = 7\nleast = 1\n\n[golden]"


async def test_a_shadow_run_is_journalled_before_the_switch_and_the_way_back_needs_none(
    tmp_path, hub
):
    first, second = (
        tiny(tmp_path / f"r{seed}", seed=seed, spec={"[golden]": SHADOW}) for seed in (1, 2)
    )
    async with board(tmp_path, hub.port, EngineSimulator()) as node:
        for release in (first, second, first):
            await hub.want(release)
            await node.until_serving(release)
        assert node.engine.shadowed == [second.id]
        steps = await node.steps()
        assert steps[steps.index("shadow") + 1] == "switch"
        assert steps.count("shadow") == 1


async def test_a_release_that_does_not_agree_is_refused_unloaded_and_reported(tmp_path, hub):
    first, second = (
        tiny(tmp_path / f"r{seed}", seed=seed, spec={"[golden]": SHADOW}) for seed in (1, 2)
    )
    engine = EngineSimulator(disagrees="3 of 7 rows agree")
    async with board(tmp_path, hub.port, engine) as node:
        await hub.want(first)
        await node.until_serving(first)
        await hub.want(second)
        await until(lambda: node.state("tiny").phase is Phase.FAILED)
        assert node.state("tiny").reason == "3 of 7 rows agree"
        assert engine.serving("tiny") == first.id
        assert second.id not in engine.admitted
        assert await node.journal.refused() == {second.id: "3 of 7 rows agree"}


async def test_an_admission_that_was_lost_before_the_switch_is_made_again(
    tmp_path, hub, v1, monkeypatch
):
    monkeypatch.setattr(update, "RETRY_S", 0.05)
    async with board(tmp_path, hub.port, EngineSimulator(forgets=1)) as node:
        await hub.want(v1)
        await node.until_serving(v1)
        assert (await node.steps()).count("admit") == 2


async def test_what_is_not_wanted_any_more_is_removed_from_engine_and_disk(tmp_path, hub, v1):
    async with board(tmp_path, hub.port, EngineSimulator()) as node:
        await hub.want(v1)
        await node.until_serving(v1)
        await hub.want(None)
        await until(lambda: node.updater.wanted_revision == 2)
        assert node.engine.models() == []
        assert node.updater.states() == []
        assert await node.journal.serving() == {}
        assert list(node.content.blobs.iterdir()) == []
        assert list(node.content.releases.iterdir()) == []


async def test_a_refused_release_that_is_not_wanted_any_more_is_not_reported(tmp_path, hub, v1):
    engine = EngineSimulator(refuses={v1.id: "no"})
    async with board(tmp_path, hub.port, engine) as node:
        await hub.want(v1)
        await until(lambda: node.phase() is Phase.FAILED)
        await hub.want(None)
        await until(lambda: node.updater.wanted_revision == 2)
        assert node.updater.states() == []


async def test_after_a_start_it_serves_what_it_served_without_the_hub(tmp_path, hub, v1):
    async with board(tmp_path, hub.port, EngineSimulator()) as node:
        await hub.want(v1)
        await node.until_serving(v1)
    async with board(tmp_path, hub.port, EngineSimulator()) as node:
        assert node.engine.serving("digits") == v1.id
        assert node.state().version == "1.0.0"
        assert node.fetcher.received_bytes == 0


async def test_a_damaged_model_file_is_found_at_the_start_dropped_and_fetched_anew(
    tmp_path, hub, v1
):
    async with board(tmp_path, hub.port, EngineSimulator()) as node:
        await hub.want(v1)
        await node.until_serving(v1)
        path = node.content.path(hashlib.sha256(v1.model).digest())
    path.write_bytes(b"\xff" + v1.model[1:])
    async with board(tmp_path, hub.port, EngineSimulator()) as node:
        await node.until_serving(v1)
        assert path.read_bytes() == v1.model
        assert node.fetcher.received_bytes == len(v1.model), "and nothing else"
        assert await node.journal.refused() == {}


async def test_a_release_that_does_not_load_after_a_start_leaves_the_slot_to_the_one_before(
    tmp_path, hub, v1, v2
):
    async with board(tmp_path, hub.port, EngineSimulator()) as node:
        await hub.want(v1)
        await node.until_serving(v1)
        await hub.want(v2)
        await node.until_serving(v2)
    engine = EngineSimulator(refuses={v2.id: "this processor cannot do that"})
    async with board(tmp_path, hub.port, engine) as node:
        assert node.engine.serving("digits") == v1.id
        await until(lambda: node.phase() is Phase.FAILED)
        assert "this processor" in node.state().reason


async def test_a_model_with_an_operator_that_its_release_does_not_list_is_refused_unseen(
    tmp_path, hub
):
    tiny_release.write(tmp_path / "made")
    listed = [messages.OperatorSet("", 17, ["Gemm"])]
    async with board(tmp_path, hub.port, EngineSimulator()) as node:
        await hub.want(Release(tmp_path / "made", listed))
        await until(lambda: node.state("tiny") and node.state("tiny").phase is Phase.FAILED)
        assert "does not list: MatMul (ai.onnx 17)" in node.state("tiny").reason
        assert node.engine.admitted == []


async def test_a_release_into_which_somebody_has_linked_a_file_is_refused(
    tmp_path, hub, v1, monkeypatch
):
    async with board(tmp_path, hub.port, EngineSimulator()) as node:
        assemble = node.content.assemble

        def linked(release, manifest):
            directory = assemble(release, manifest)
            (tmp_path / "foreign").hardlink_to(directory / "model.onnx")
            return directory

        monkeypatch.setattr(node.content, "assemble", linked)
        await hub.want(v1)
        await until(lambda: node.phase() is Phase.FAILED)
        assert "model.onnx: a hard link" in node.state().reason
        assert node.engine.admitted == []


async def test_a_check_of_files_that_dies_is_held_again_and_then_is_the_releases_fault(
    tmp_path, hub, v1
):
    python = tmp_path / "python"
    calls = tmp_path / "calls"
    python.write_text(f"#!/bin/sh\necho x >> {calls}\necho 'no more memory' >&2\nkill -9 $$\n")
    python.chmod(0o755)
    async with board(tmp_path, hub.port, EngineSimulator()) as node:
        node.updater._staging._python = str(python)
        await hub.want(v1)
        await until(lambda: node.phase() is Phase.FAILED)
        assert "did not end well: ended by SIGKILL: no more memory" in node.state().reason
        assert calls.read_text() == "x\n" * 2


async def test_after_a_start_with_little_memory_only_what_is_to_be_kept_is_loaded(
    tmp_path, hub, v1
):
    tiny_release.write(tmp_path / "made")
    tiny = Release(tmp_path / "made")
    content = ContentStore(tmp_path)
    async with Store.open(tmp_path / "agent.db") as store:
        journal = await Journal.load(store)
        for release in (v1, tiny):
            for data in (release.manifest, *release.files.values()):
                content.path(hashlib.sha256(data).digest()).write_bytes(data)
            content.assemble(release.id, parse_manifest(release.manifest, release=release.id))
            await journal.set_serving(release.spec.name, Serving(release.id, None))
    short = EngineSimulator(is_short=True)
    async with board(tmp_path, hub.port, short, _keep=("tiny",)):
        assert short.models() == ["digits", "tiny"]
        assert short.registered == [v1.id]
        assert short.admitted == [tiny.id, v1.id]
    at_ease = EngineSimulator()
    async with board(tmp_path, hub.port, at_ease, _keep=("tiny",)):
        assert (at_ease.admitted, at_ease.registered) == ([tiny.id, v1.id], [])


async def test_a_damaged_manifest_stops_nothing_that_serves(tmp_path, hub, v1, v2):
    async with board(tmp_path, hub.port, EngineSimulator()) as node:
        await hub.want(v1)
        await node.until_serving(v1)
        manifest = node.content.path(v1.id)
    manifest.write_bytes(b"rotten")
    async with board(tmp_path, hub.port, EngineSimulator()) as node:
        assert node.engine.serving("digits") == v1.id
        assert node.state().model_file == hashlib.sha256(v1.model).digest()
        await hub.want(v2)
        await node.until_serving(v2)
        # Wanted again, it is not condemned for it: the manifest comes anew.
        await hub.want(v1)
        await node.until_serving(v1)
        assert manifest.read_bytes() == v1.manifest
        assert await node.journal.refused() == {}


async def test_a_release_whose_manifest_is_none_is_refused_and_nothing_else_stops(
    tmp_path, hub, v1
):
    nonsense = b"not a manifest at all"
    wrong = ModelWanted("digits", hashlib.sha256(nonsense).digest(), blobs.describe(nonsense), [])
    async with board(tmp_path, hub.port, EngineSimulator()) as node:
        await hub.publish_blob(nonsense)
        await hub.send_wanted([wrong])
        await until(lambda: node.phase() is Phase.FAILED)
        assert "manifest" in node.state().reason
        await hub.want(v1)
        await node.until_serving(v1)


async def test_a_release_for_another_model_is_refused(tmp_path, hub, v1):
    other = ModelWanted(
        "letters",
        v1.id,
        blobs.describe(v1.manifest),
        [blobs.describe(data) for data in v1.files.values()],
    )
    async with board(tmp_path, hub.port, EngineSimulator()) as node:
        for data in (v1.manifest, *v1.files.values()):
            await hub.publish_blob(data)
        await hub.send_wanted([other])
        await until(lambda: node.state("letters") is not None)
        await until(lambda: node.state("letters").phase is Phase.FAILED)
        assert node.state("letters").reason == "the release is for 'digits', not for 'letters'"


async def test_chunks_that_never_come_hold_up_neither_another_release_nor_another_model(
    tmp_path, hub, v1, v2
):
    def offer(release: Release) -> ModelWanted:
        files = [blobs.describe(data) for data in release.files.values()]
        return ModelWanted(release.spec.name, release.id, blobs.describe(release.manifest), files)

    small = tiny(tmp_path / "small")
    async with board(tmp_path, hub.port, EngineSimulator()) as node:
        await hub.send_wanted([offer(v1)])
        await until(lambda: node.phase() is Phase.FETCHING)
        for data in (small.manifest, *small.files.values()):
            await hub.publish_blob(data)
        await hub.send_wanted([offer(v1), offer(small)])
        await node.until_serving(small)
        assert node.phase() is Phase.FETCHING
        await hub.want(v2)
        await node.until_serving(v2)


def offer_cut_to(chunk_bytes: int, release: Release, base: Release, delta: bytes) -> ModelWanted:
    def cut(data: bytes):
        return blobs.describe(data, chunk_bytes=chunk_bytes)

    bases = (hashlib.sha256(base.model).digest(), hashlib.sha256(release.model).digest())
    return ModelWanted(
        release.spec.name,
        release.id,
        cut(release.manifest),
        [cut(data) for data in release.files.values()],
        [DeltaOffer(*bases, cut(delta))],
    )


async def test_a_delta_cut_anew_in_the_middle_of_its_fetch_goes_on_from_what_is_here(
    tmp_path, hub, v1, v2
):
    delta = shoal_delta.diff(v1.model, v2.model)
    digest = hashlib.sha256(delta).digest()
    async with board(tmp_path, hub.port, EngineSimulator()) as node:
        await hub.want(v1)
        await node.until_serving(v1)
        for data in (v2.manifest, *v2.files.values()):
            if data != v2.model:
                await hub.publish_blob(data)
        before = node.fetcher.received_bytes
        small = len(v2.manifest) + sum(map(len, v2.files.values())) - len(v2.model)
        # Chunks 0 to 5 of 1 KiB, then the whole of it in chunks of 2 KiB.
        for index, chunk in list(blobs.cut(delta, chunk_bytes=1024))[:6]:
            await hub.session.publish(
                hub.topics.chunk(digest, index), chunk, retain=True, durable=False
            )
        await hub.send_wanted([offer_cut_to(1024, v2, v1, delta)])
        part = node.content.part(digest)
        await until(lambda: part.exists() and part.stat().st_size == 6 * 1024)
        received = node.fetcher.received_bytes
        assert received - before <= small + 6 * 1024
        await hub.send_wanted([offer_cut_to(2048, v2, v1, delta)])
        for index, chunk in list(blobs.cut(delta, chunk_bytes=2048))[3:]:
            await hub.session.publish(
                hub.topics.chunk(digest, index), chunk, retain=True, durable=False
            )
        await node.until_serving(v2)
        assert node.content.path(hashlib.sha256(v2.model).digest()).read_bytes() == v2.model
        # The first six were never published in the new cut: they were there.
        assert "build" in await node.steps()


async def test_a_journal_that_cannot_be_written_is_waited_for(tmp_path, hub, v1, v2, monkeypatch):
    monkeypatch.setattr(update, "RETRY_S", 0.05)
    async with board(tmp_path, hub.port, EngineSimulator()) as node:
        await hub.want(v1)
        await node.until_serving(v1)
        refused = []

        async def full(*_args, **_options) -> None:
            refused.append(1)
            raise StoreError("the disk is full", path="agent.db")

        monkeypatch.setattr(node.journal, "record_step", full)
        await hub.want(v2)
        await until(lambda: len(refused) > 1)
        assert node.engine.serving("digits") == v1.id
        monkeypatch.undo()
        await node.until_serving(v2)


async def test_a_blob_damaged_on_the_disk_before_it_was_loaded_is_no_fault_of_the_release(
    tmp_path, hub, v1, monkeypatch
):
    monkeypatch.setattr(update, "RETRY_S", 0.05)
    digest = hashlib.sha256(v1.model).digest()
    async with board(tmp_path, hub.port, EngineSimulator(worker_lost=True)) as node:
        await hub.want(v1)
        await until(lambda: node.phase() is not None and "does not start" in node.state().reason)
        path = node.content.path(digest)
        path.write_bytes(b"\xff" + v1.model[1:])
        node.engine.worker_lost = False
        await node.until_serving(v1)
        assert path.read_bytes() == v1.model
        assert await node.journal.refused() == {}


async def test_the_disk_keeps_what_serves_and_what_served_before_it_and_no_more(
    tmp_path, hub, v1, v2
):
    third_dir = tmp_path / "third"
    shutil.copytree(digits.release_dir(2), third_dir)
    toml = third_dir / "release.toml"
    toml.write_text(toml.read_text().replace('"1.1.0"', '"1.2.0"'))
    v3 = Release(third_dir)
    async with board(tmp_path, hub.port, EngineSimulator()) as node:
        for release in (v1, v2, v3):
            await hub.want(release)
            await node.until_serving(release)
        await until(lambda: node.updater.wanted_revision == 3)
        kept = {path.name for path in node.content.releases.iterdir()}
        assert kept == {v2.id.hex(), v3.id.hex()}
        assert not node.content.has(hashlib.sha256(v1.model).digest())
        await asyncio.sleep(0)


async def test_a_release_that_breaks_on_probation_gives_way_within_five_seconds_and_is_not_tried_again(
    tmp_path, hub, v1, v2, monkeypatch
):
    monkeypatch.setattr(update, "WATCH_S", 0.01)
    engine = EngineSimulator()
    async with board(tmp_path, hub.port, engine) as node:
        await hub.want(v1)
        await node.until_serving(v1)
        await hub.want(v2)
        await node.until_serving(v2)
        began_s = asyncio.get_running_loop().time()
        engine.broken[v2.id] = "the worker does not survive it"
        await node.until_serving(v1)
        took_s = asyncio.get_running_loop().time() - began_s
        print(f"the release before serves again after {took_s:.3f} s")
        assert took_s < 5
        await until(lambda: node.phase() is Phase.FAILED)
        state = node.state()
        assert (state.release, state.target) == (v1.id, v2.id)
        assert "the worker does not survive it" in state.reason
        assert await node.journal.serving() == {"digits": Serving(v1.id, None)}
        # The fleet still wants it: it stays where it is, over a restart, too.
        tried = len(await node.steps())
        await node.updater.reconcile_once()
        assert len(await node.steps()) == tried
    async with board(tmp_path, hub.port, engine) as node:
        assert engine.serving("digits") == v1.id
        await until(lambda: node.phase() is Phase.FAILED)
        assert "does not survive" in node.state().reason


async def test_a_release_with_which_the_agent_keeps_ending_does_not_get_another_start(
    tmp_path, hub, v1, v2
):
    async with board(tmp_path, hub.port, EngineSimulator()) as node:
        await hub.want(v1)
        await node.until_serving(v1)
        await hub.want(v2)
        await node.until_serving(v2)
        await until(lambda: node.updater.wanted_revision == 2)
    for _ in range(5):
        async with board(tmp_path, hub.port, EngineSimulator()) as node:
            assert node.engine.serving("digits") == v2.id
    async with board(tmp_path, hub.port, EngineSimulator()) as node:
        assert node.engine.serving("digits") == v1.id
        await until(lambda: node.phase() is Phase.FAILED)
        assert "the agent ended 5 times while it was on probation" in node.state().reason


async def test_a_disk_that_is_full_while_a_delta_is_applied_is_not_the_deltas_fault(
    tmp_path, hub, v1, v2, monkeypatch
):
    monkeypatch.setattr(update, "RETRY_S", 0.05)
    async with board(tmp_path, hub.port, EngineSimulator()) as node:
        await hub.want(v1)
        await node.until_serving(v1)
        await until(lambda: node.updater.wanted_revision == 1)
        # Where the child wants to put what it makes there is a directory: that is not the delta's fault either.
        target = node.content.part(hashlib.sha256(v2.model).digest())
        target.mkdir()
        await hub.want(v2, base=v1)
        await until(lambda: "cannot be applied now" in node.state().reason, timeout_s=45)
        assert node.engine.serving("digits") == v1.id
        target.rmdir()
        await node.until_serving(v2)
        assert node.state().fetched_bytes < len(v2.model)
