"""The updater's judgement, on a whole repository whose keys are at hand: nothing here is mocked."""

import hashlib
import itertools
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.support.signed_repository import Key, SignedRepository

from shoal_agent.updater.child import ADDRESS, judged
from shoal_agent.updater.floors import Floors, raised
from shoal_agent.updater.sources import DirectorySource
from shoal_agent.updater.wire import Question, Verdict
from shoal_contract.release_targets import ISSUED_FIELD, groups_for, path_of

MANIFEST = b"a manifest"
RELEASE = hashlib.sha256(MANIFEST).digest()


@dataclass
class Node:
    """A node's side: its metadata directory and its journal. `source` is where it looks."""

    folder: Path
    repository: SignedRepository
    source: Path
    groups: tuple[str, ...] = ("oslo",)
    floors: Floors = field(default_factory=Floors)
    clock_s: int | None = None

    @property
    def metadata(self) -> Path:
        return self.folder / "metadata"

    def look(self, release: bytes | None = RELEASE, model: str = "digits") -> Verdict:
        """One look as the agent has it done; the floors rise as in the journal."""
        clock_s = self.repository.now_s if self.clock_s is None else self.clock_s
        paths = (
            [path_of(group, model, release) for group in groups_for(self.groups)] if release else []
        )
        question = Question(
            directory=str(self.metadata),
            root_file=str(self.folder / "root.json"),
            source=str(self.source),
            floors=self.floors,
            now_s=max(clock_s, self.floors.issued_s),
            paths=paths,
            release=(release or b"").hex(),
        )
        verdict = judged(question, DirectorySource(self.source), address=ADDRESS)
        if verdict.seen is not None:
            self.floors = raised(self.floors, verdict.seen)
        return verdict


@pytest.fixture
def repository(tmp_path):
    return SignedRepository(tmp_path / "repository")


@pytest.fixture
def node(tmp_path, repository):
    folder = tmp_path / "node"
    folder.mkdir()
    shutil.copy(repository.root_file, folder / "root.json")
    return Node(folder, repository, repository.repository.directory)


def test_a_release_signed_for_the_nodes_group_is_listed(node, repository):
    repository.release("oslo", ("digits", MANIFEST))
    verdict = node.look()
    assert (verdict.kind, verdict.path) == ("listed", path_of("oslo", "digits", RELEASE))


def test_a_release_signed_for_everybody_is_listed(node, repository):
    repository.release("all", ("digits", MANIFEST))
    assert node.look().path == path_of("all", "digits", RELEASE)


def test_an_unsigned_release_is_not(node):
    verdict = node.look()
    assert verdict.kind == "unlisted"
    assert verdict.reason == f"nobody has signed the release {RELEASE.hex()[:12]} for oslo, all"


def test_a_release_of_another_group_is_not(node, repository):
    repository.release("bergen", ("digits", MANIFEST))
    assert node.look().kind == "unlisted"
    node.groups = ("bergen",)
    assert node.look().kind == "listed"


def test_another_groups_key_cannot_list_into_ours(node, repository):
    metadata = repository.repository.newest("group-bergen")
    repository.release("bergen", ("digits", MANIFEST))
    metadata = repository.repository.newest("group-bergen")
    target = metadata.signed.targets.pop(path_of("bergen", "digits", RELEASE))
    target.path = path_of("oslo", "digits", RELEASE)
    metadata.signed.targets[target.path] = target
    metadata.signed.version += 1
    repository.forge("group-bergen", metadata, repository.groups["bergen"])
    repository.renew()
    assert node.look().kind == "unlisted"


def test_a_release_of_another_model_is_not(node, repository):
    repository.release("oslo", ("letters", MANIFEST))
    assert node.look().kind == "unlisted"


def test_a_release_that_was_taken_out_is_not_any_more(node, repository):
    repository.release("oslo", ("digits", MANIFEST))
    assert node.look().kind == "listed"
    repository.release("oslo", remove=(path_of("oslo", "digits", RELEASE),))
    assert node.look().kind == "unlisted"


def test_a_name_with_another_content_is_said_to_be_another_one(node, repository):
    repository.release("oslo", ("digits", MANIFEST))
    twin = RELEASE[:8] + bytes(24)
    verdict = node.look(twin)
    assert verdict.kind == "unlisted"
    assert "is another one" in verdict.reason


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "group-oslo", "root"])
def test_each_role_is_refused_after_its_expiry(node, repository, role):
    repository.release("oslo", ("digits", MANIFEST))
    assert node.look().kind == "listed"
    metadata = (
        repository.repository.timestamp()
        if role == "timestamp"
        else repository.repository.newest(role)
    )
    keys = {
        "timestamp": [repository.online],
        "snapshot": [repository.online],
        "targets": [repository.targets],
        "group-oslo": [repository.groups["oslo"]],
        "root": repository.roots[:2],
    }[role]
    metadata.signed.version += 1
    metadata.signed.expires = repository.in_days(1)
    repository.forge(role, metadata, *keys)
    if role == "snapshot":
        # `renew` would sign a longer one: the timestamp names this one.
        timestamp = repository.repository.timestamp()
        timestamp.signed.version += 1
        timestamp.signed.snapshot_meta.version = metadata.signed.version
        repository.forge("timestamp", timestamp, repository.online)
    elif role != "timestamp":
        repository.renew()
    assert node.look().kind == "listed"
    node.clock_s = repository.now_s + 2 * 86400
    verdict = node.look()
    assert verdict.kind == "unverified"
    assert "expired" in verdict.reason


def test_a_clock_that_was_wrong_does_no_harm_for_good(node, repository):
    repository.release("oslo", ("digits", MANIFEST))
    for wrong_s in (0, repository.now_s - 86400, repository.now_s):
        node.clock_s = wrong_s
        assert node.look().kind == "listed", wrong_s
    node.clock_s = repository.now_s + 10 * 365 * 86400
    assert node.look().kind == "unverified"
    node.clock_s = repository.now_s
    assert node.look().kind == "listed"


@pytest.mark.parametrize(
    "wrong",
    ["1970", "a day behind", "a day ahead", "ten years ahead", "1970 after a look that was right"],
)
def test_a_wrong_clock_takes_nothing_that_has_run_out_and_recovers(
    node, repository, wrong, record_property
):
    """The broker freezes the fleet in the past, and a power cut took the metadata and perhaps the clock."""
    repository.release("oslo", ("digits", MANIFEST))
    frozen = node.folder / "frozen"
    shutil.copytree(node.source, frozen)
    for _ in range(10):
        repository.later(days=1)
        repository.renew()
    assert node.look().kind == "listed"
    # Only the time is left of what was seen: versions alone would refuse it, too.
    node.floors = Floors(issued_s=node.floors.issued_s, timestamp_keys=node.floors.timestamp_keys)
    true_s, true_source = repository.now_s, node.source
    shutil.rmtree(node.metadata)
    node.source = frozen
    if wrong == "1970 after a look that was right":
        assert node.look().kind == "unverified"
    node.clock_s = {
        "a day behind": true_s - 86400,
        "a day ahead": true_s + 86400,
        "ten years ahead": true_s + 10 * 365 * 86400,
    }.get(wrong, 0)
    verdict = node.look()
    record_property("tries", 1)
    record_property("bad", int(verdict.kind == "listed"))
    assert verdict.kind == "unverified"
    assert "expired" in verdict.reason
    node.clock_s, node.source = true_s, true_source
    assert node.look().kind == "listed"


@pytest.mark.parametrize("by_s", [-86400, 86400, 10 * 365 * 86400, None], ids=str)
def test_a_clock_that_jumps_in_the_middle_of_an_update_takes_nothing_bad_and_recovers(
    node, repository, by_s, record_property
):
    """The look before the fetch was by the right time, the one behind it by a wrong one (None: 1970)."""
    repository.release("oslo", ("digits", MANIFEST))
    frozen = node.folder / "frozen"
    shutil.copytree(node.source, frozen)
    repository.later(days=10)
    repository.release("oslo", ("digits", b"next"), remove=(path_of("oslo", "digits", RELEASE),))
    following = hashlib.sha256(b"next").digest()
    assert node.look(following).kind == "listed"
    node.clock_s = 0 if by_s is None else repository.now_s + by_s
    # Nor does a broker get through with what was true before.
    true_source, node.source = node.source, frozen
    taken = [node.look(RELEASE).kind == "listed"]
    node.source = true_source
    taken.append(node.look(RELEASE).kind == "listed")
    node.clock_s = None
    assert node.look(following).kind == "listed"
    record_property("tries", len(taken))
    record_property("bad", sum(taken))
    assert not any(taken)


def test_an_older_timestamp_is_refused(node, repository):
    repository.release("oslo", ("digits", MANIFEST))
    old = repository.files()["timestamp.json"]
    repository.later(days=2)
    repository.renew()
    assert node.look().kind == "listed"
    (node.source / "timestamp.json").write_bytes(old)
    verdict = node.look()
    assert verdict.kind == "unverified"
    assert "version" in verdict.reason


def test_versions_may_start_anew_when_the_online_key_is_another_one(node, repository):
    for _ in range(4):
        repository.later(days=2)
        repository.renew()
    repository.release("oslo", ("digits", MANIFEST))
    assert node.look().kind == "listed"
    assert node.floors.timestamp > 4
    stolen = repository.repository.timestamp()
    stolen.signed.version = 1 << 40
    repository.forge("timestamp", stolen, repository.online)
    assert node.look().kind == "listed"
    assert node.floors.timestamp == 1 << 40
    repository.rotate_online()
    timestamp = repository.repository.timestamp()
    timestamp.signed.version = 1
    repository.forge("timestamp", timestamp, repository.online)
    assert node.look().kind == "listed"
    assert node.floors.timestamp == 1


def test_a_thief_who_signs_a_late_time_ages_nothing_for_good(node, repository):
    repository.release("oslo", ("digits", MANIFEST))
    assert node.look().kind == "listed"
    stolen = repository.repository.timestamp()
    stolen.signed.version += 1
    stolen.signed.expires = repository.in_days(80 * 365)
    stolen.signed.unrecognized_fields[ISSUED_FIELD] = repository.now_s + 70 * 365 * 86400
    repository.forge("timestamp", stolen, repository.online)
    assert node.look().kind == "listed"
    assert node.floors.issued_s > repository.now_s
    assert node.look().kind == "unverified"
    repository.rotate_online()
    # The first look learns of the new key, the next one goes by its time.
    assert node.look().kind == "unverified"
    assert node.look().kind == "listed"


def test_a_time_behind_its_own_expiry_is_no_time(node, repository):
    repository.release("oslo", ("digits", MANIFEST))
    for said in (1 << 60, -5, "now", None):
        timestamp = repository.repository.timestamp()
        timestamp.signed.version += 1
        timestamp.signed.unrecognized_fields[ISSUED_FIELD] = said
        repository.forge("timestamp", timestamp, repository.online)
        assert node.look().kind in {"listed", "unverified"}
        assert node.floors.issued_s == 0


def test_every_key_can_be_rotated(node, repository):
    assert node.look(None).kind == "fresh"
    for _ in range(3):
        repository.rotate_root()
    repository.rotate_online()
    repository.release("oslo", ("digits", MANIFEST))
    assert node.look().kind == "listed"
    assert node.floors.root == 5
    # What one of three root keys signs is nothing.
    root = repository.repository.newest("root")
    root.signed.version += 1
    repository.forge("root", root, repository.roots[0])
    assert node.look().kind == "unverified"


def test_the_deposed_online_key_says_nothing_more(node, repository):
    repository.release("oslo", ("digits", MANIFEST))
    assert node.look().kind == "listed"
    deposed = repository.online
    repository.rotate_online()
    assert node.look().kind == "listed"
    timestamp = repository.repository.timestamp()
    timestamp.signed.version += 1
    repository.forge("timestamp", timestamp, deposed)
    assert node.look().kind == "unverified"


def test_a_mix_of_versions_is_refused(node, repository):
    repository.release("oslo", ("digits", MANIFEST))
    old = repository.files()
    repository.release("oslo", ("digits", b"the next"))
    snapshots = sorted(name for name in repository.files() if "snapshot" in name)
    (node.source / snapshots[-1]).write_bytes(old[snapshots[-2]])
    assert node.look().kind == "unverified"


def test_a_role_that_vanishes_from_the_snapshot_is_a_rollback(node, repository):
    repository.release("oslo", ("digits", MANIFEST))
    assert node.look().kind == "listed"
    shutil.rmtree(node.metadata)
    snapshot = repository.repository.snapshot()
    del snapshot.signed.meta["group-bergen.json"]
    snapshot.signed.version += 1
    repository.forge("snapshot", snapshot, repository.online)
    timestamp = repository.repository.timestamp()
    timestamp.signed.version += 1
    timestamp.signed.snapshot_meta.version = snapshot.signed.version
    repository.forge("timestamp", timestamp, repository.online)
    assert "group-bergen.json of version 0" in node.look().reason


def test_a_strangers_root_gets_nobody_anywhere(node, repository, tmp_path):
    stranger = SignedRepository(tmp_path / "stranger")
    stranger.release("oslo", ("digits", MANIFEST))
    node.source = stranger.repository.directory
    assert node.look().kind == "unverified"
    root = stranger.repository.newest("root")
    root.signed.version = 2
    stranger.forge("root", root, *stranger.roots)
    assert node.look().kind == "unverified"


def test_an_unreadable_root_file_is_named(node):
    (node.folder / "root.json").unlink()
    assert "root_file" in node.look().reason
    (node.folder / "root.json").write_bytes(b"{}")
    assert node.look().kind == "unverified"


@pytest.mark.parametrize(
    "damage",
    [
        "zeroed",
        pytest.param("removed", marks=pytest.mark.slow),
        pytest.param("halved", marks=pytest.mark.slow),
    ],
)
def test_lost_metadata_and_an_old_timestamp_bring_nothing_back(
    node, repository, damage, record_property
):
    """Every subset of the node's files is damaged, then a broker plays what the fleet had signed before."""
    repository.release("oslo", ("digits", MANIFEST))
    old = node.folder / "old"
    shutil.copytree(node.source, old)
    repository.rotate_root()
    repository.release("oslo", ("digits", b"next"), remove=(path_of("oslo", "digits", RELEASE),))
    assert node.look(hashlib.sha256(b"next").digest()).kind == "listed"
    good, floors = node.folder / "good", node.floors
    shutil.copytree(node.metadata, good, symlinks=True)
    names = sorted(path.relative_to(good) for path in good.rglob("*.json") if not path.is_symlink())
    tried = accepted = 0
    node.source = old
    for count in range(len(names) + 1):
        for subset in itertools.combinations(names, count):
            shutil.rmtree(node.metadata)
            shutil.copytree(good, node.metadata, symlinks=True)
            node.floors = floors
            for name in subset:
                _damage(node.metadata / name, damage)
            tried += 1
            accepted += node.look().kind == "listed"
    print(
        f"{damage}: {tried} subsets of {len(names)} files, then an old timestamp: {accepted} accepted"
    )
    record_property("tries", tried)
    record_property("bad", accepted)
    assert tried == 2 ** len(names) >= 64
    assert accepted == 0
    # And nobody is locked out: the real repository counts again, whatever was lost.
    node.source = repository.repository.directory
    assert node.look(hashlib.sha256(b"next").digest()).kind == "listed"


def test_without_the_floors_the_same_is_a_rollback(node, repository):
    """The test above can fail: what python-tuf alone keeps is not enough."""
    repository.release("oslo", ("digits", MANIFEST))
    old = node.folder / "old"
    shutil.copytree(node.source, old)
    repository.release("oslo", remove=(path_of("oslo", "digits", RELEASE),))
    assert node.look().kind == "unlisted"
    for name in ("timestamp.json", "snapshot.json", "targets.json", "group-oslo.json"):
        (node.metadata / name).write_bytes(b"")
    node.source, node.floors = old, Floors()
    assert node.look().kind == "listed"


def test_a_key_that_signs_for_nobody_is_nobody(node, repository):
    repository.release("oslo", ("digits", MANIFEST))
    metadata = repository.repository.newest("group-oslo")
    metadata.signed.version += 1
    repository.forge("group-oslo", metadata, Key())
    repository.renew()
    assert node.look().kind == "unverified"


def _damage(path: Path, how: str) -> None:
    if how == "removed":
        path.unlink()
    else:
        path.write_bytes(b"" if how == "zeroed" else path.read_bytes()[: path.stat().st_size // 2])
