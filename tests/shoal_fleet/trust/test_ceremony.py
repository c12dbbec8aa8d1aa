"""The ceremony on a plain directory: who must sign before what counts."""

import hashlib

import pytest
from tests.support.signed_repository import START, Key, SignedRepository
from tuf.api.metadata import Root, Targets

from shoal_contract.release_targets import path_of
from shoal_fleet.errors import StateError, UsageError
from shoal_fleet.trust import ceremony, online, signing, status
from shoal_fleet.trust.installing import install
from shoal_fleet.trust.repository import Repository, encoded

MANIFEST = b"a manifest"
PATH = path_of("oslo", "digits", hashlib.sha256(MANIFEST).digest())


@pytest.fixture
def signed(tmp_path):
    return SignedRepository(tmp_path / "tuf")


def begun(directory, *, threshold=2):
    """Staged, and signed by nobody: the repository with its keys."""
    repository = Repository(directory)
    keys = {name: Key() for name in ("r1", "r2", "r3", "targets", "online", "oslo")}
    ceremony.begin(
        repository,
        roots=[keys[name].public for name in ("r1", "r2", "r3")],
        threshold=threshold,
        targets=[keys["targets"].public],
        online=keys["online"].public,
        groups={"oslo": [keys["oslo"].public]},
        expires=ceremony.in_days(365, now=START),
    )
    return repository, keys


def test_nothing_counts_before_its_threshold(tmp_path):
    repository, keys = begun(tmp_path)
    assert repository.root() is None
    signing.sign(repository, keys["r1"].signer)
    assert repository.root() is None
    (waiting,) = [one for one in signing.sign(repository, keys["r1"].signer) if one.role == "root"]
    assert (len(waiting.signed), waiting.threshold, waiting.is_complete) == (1, 2, False)
    signing.sign(repository, keys["r3"].signer)
    assert repository.root().signed.version == 1


def test_the_order_in_which_people_sign_does_not_matter(tmp_path):
    repository, keys = begun(tmp_path)
    for name in ("oslo", "targets", "r3"):
        signing.sign(repository, keys[name].signer)
        assert repository.roles() == []
    signing.sign(repository, keys["r1"].signer)
    assert repository.roles() == ["group-oslo", "root", "targets"]
    assert repository.staged() == {}


def test_a_key_that_counts_for_nothing_is_told_so(tmp_path):
    repository, keys = begun(tmp_path)
    for stranger in (Key(), keys["online"]):
        with pytest.raises(UsageError, match="counts for nothing"):
            signing.sign(repository, stranger.signer)


@pytest.mark.parametrize("threshold", [0, 4])
def test_a_threshold_that_cannot_be_met_is_refused(tmp_path, threshold):
    with pytest.raises(UsageError, match="root keys cannot be asked for"):
        begun(tmp_path, threshold=threshold)


def test_the_same_root_key_does_not_count_twice(tmp_path):
    key = Key()
    with pytest.raises(UsageError, match="2 of 1"):
        ceremony.begin(
            Repository(tmp_path),
            roots=[key.public, key.public],
            threshold=2,
            targets=[Key().public],
            online=Key().public,
            groups={"all": [Key().public]},
            expires=START,
        )


def test_a_ceremony_is_not_begun_twice(signed):
    with pytest.raises(UsageError, match="has metadata already"):
        begun(signed.repository.directory)


def test_a_new_root_needs_the_old_keys_and_the_new_ones(signed):
    new = [Key(), Key()]
    repository = signed.repository
    for old, key in zip(signed.roots[:2], new, strict=True):
        ceremony.rotate(
            repository, Root.type, old=old.public, new=key.public, expires=signed.in_days(365)
        )
    signed.sign(*new)
    assert repository.root().signed.version == 1
    signed.sign(signed.roots[0])
    assert repository.root().signed.version == 1
    signed.sign(signed.roots[1])
    assert repository.root().signed.version == 2
    keyids = {one.signer.public_key.keyid for one in (*new, signed.roots[2])}
    assert set(repository.root().signed.roles[Root.type].keyids) == keyids


def test_a_role_cannot_be_left_without_enough_keys(signed):
    with pytest.raises(UsageError, match="fewer keys"):
        ceremony.rotate(
            signed.repository, Targets.type, old=signed.targets.public, new=None, expires=signed.now
        )
    with pytest.raises(UsageError, match="nobody would sign"):
        ceremony.rotate_group(
            signed.repository,
            "oslo",
            old=signed.groups["oslo"].public,
            new=None,
            expires=signed.now,
        )


def test_a_key_that_is_not_there_cannot_be_taken_away(signed):
    with pytest.raises(UsageError, match="does not sign for"):
        ceremony.rotate(
            signed.repository, Root.type, old=Key().public, new=Key().public, expires=signed.now
        )


def test_a_groups_key_is_replaced_with_its_releases(signed):
    signed.release("oslo", ("digits", MANIFEST))
    new = Key()
    ceremony.rotate_group(
        signed.repository,
        "oslo",
        old=signed.groups["oslo"].public,
        new=new.public,
        expires=signed.in_days(365),
    )
    signed.sign(signed.targets)
    with pytest.raises(UsageError, match="still waits"):
        install(signed.repository, Repository(signed.repository.directory.parent / "there"))
    signed.sign(new)
    newest = signed.repository.newest("group-oslo")
    assert newest.signed.version == 3
    assert PATH in newest.signed.targets
    signed.repository.targets().signed.verify_delegate(
        "group-oslo", newest.signed_bytes, newest.signatures
    )


def test_a_group_is_added(signed):
    key = Key()
    ceremony.rotate_group(
        signed.repository, "pisa", old=None, new=key.public, expires=signed.in_days(365)
    )
    signed.sign(signed.targets, key)
    signed.groups["pisa"] = key
    signed.release("pisa", ("digits", MANIFEST))
    assert "group-pisa.json" in signed.repository.snapshot().signed.meta
    assert ceremony.groups_in(signed.repository.targets().signed) == [
        "oslo",
        "bergen",
        "all",
        "pisa",
    ]


@pytest.mark.parametrize("group", ["", "a/b", "x" * 41, "o slo", "*"])
def test_a_group_that_cannot_stand_in_a_path_is_refused(signed, group):
    with pytest.raises(UsageError):
        ceremony.rotate_group(
            signed.repository, group, old=None, new=Key().public, expires=signed.now
        )


def test_releases_are_listed_and_taken_out(signed):
    signed.release("oslo", ("digits", MANIFEST))
    target = signed.repository.newest("group-oslo").signed.targets[PATH]
    assert target.hashes == {"sha256": hashlib.sha256(MANIFEST).hexdigest()}
    signed.release("oslo", remove=(PATH,))
    assert signed.repository.newest("group-oslo").signed.targets == {}
    with pytest.raises(UsageError, match="is not listed"):
        signed.release("oslo", remove=(PATH,))
    with pytest.raises(UsageError, match="not in the signed targets"):
        ceremony.list_releases(
            signed.repository, "pisa", add=[("digits", MANIFEST)], remove=(), expires=signed.now
        )


def test_more_releases_than_a_message_carries_are_refused(signed):
    many = [("digits", str(number).encode()) for number in range(800)]
    with pytest.raises(StateError, match="take old releases out"):
        signed.release("oslo", *many)


def test_snapshot_and_timestamp_are_renewed_in_time_and_not_before(signed):
    assert signed.renew() == []
    signed.later(hours=23)
    assert signed.renew() == []
    signed.later(hours=2)
    assert signed.renew() == ["timestamp"]
    assert signed.repository.timestamp().signed.version == 2
    signed.later(days=10)
    assert signed.renew() == ["snapshot", "timestamp"]


def test_a_new_release_makes_a_new_snapshot(signed):
    signed.release("oslo", ("digits", MANIFEST))
    assert signed.repository.snapshot().signed.meta["group-oslo.json"].version == 2
    assert signed.repository.timestamp().signed.version == 2


def test_another_key_than_the_roots_signs_nothing_online(signed):
    with pytest.raises(StateError, match="not the one that the root names"):
        online.renew(signed.repository, Key().signer, now=signed.now)


def test_after_a_rotation_the_new_online_key_signs_at_once(signed):
    signed.rotate_online()
    timestamp = signed.repository.timestamp()
    signed.repository.root().signed.verify_delegate(
        "timestamp", timestamp.signed_bytes, timestamp.signatures
    )
    assert timestamp.signed.version == 2


def test_the_status_says_what_runs_out_before_it_does(signed):
    assert status.look(signed.repository, now=signed.now).alarms == ()
    signed.later(days=340)
    found = status.look(signed.repository, now=signed.now)
    assert "root: runs out in 25.0 days" in found.alarms
    assert "timestamp: has run out: nodes take no release" in found.alarms
    signed.later(days=30)
    assert (
        "root: has run out: nodes take no release"
        in status.look(signed.repository, now=signed.now).alarms
    )


def test_the_status_says_who_has_not_signed_yet(signed):
    new = Key()
    ceremony.rotate(
        signed.repository,
        ceremony.ONLINE,
        old=signed.online.public,
        new=new.public,
        expires=signed.in_days(365),
    )
    signed.sign(signed.roots[2])
    (waiting,) = status.look(signed.repository, now=signed.now).waiting
    assert (waiting.role, waiting.version, waiting.threshold) == ("root", 2, 2)
    assert waiting.signed == (signed.roots[2].signer.public_key.keyid,)
    assert set(waiting.unsigned) == {one.signer.public_key.keyid for one in signed.roots[:2]}


def test_installing_copies_what_is_new_once(signed, tmp_path):
    there = Repository(tmp_path / "there")
    first = install(signed.repository, there)
    assert sorted(first) == [
        "1.group-all.json", "1.group-bergen.json", "1.group-oslo.json", "1.root.json", "1.targets.json",
    ]  # fmt: skip
    assert install(signed.repository, there) == []
    signed.rotate_root()
    signed.release("oslo", ("digits", MANIFEST))
    assert install(signed.repository, there) == ["2.root.json", "2.group-oslo.json"]


def test_installing_goes_forward_only(signed, tmp_path):
    there, old = Repository(tmp_path / "there"), Repository(tmp_path / "old")
    install(signed.repository, old)
    signed.release("oslo", ("digits", MANIFEST))
    install(signed.repository, there)
    with pytest.raises(UsageError, match="older than 2"):
        install(old, there)


def test_another_fleets_metadata_is_not_installed(signed, tmp_path):
    there = Repository(tmp_path / "there")
    install(signed.repository, there)
    with pytest.raises(UsageError, match="another fleet's"):
        install(SignedRepository(tmp_path / "other").repository, there)


@pytest.mark.parametrize("role", ["root", "targets", "group-oslo"])
def test_what_is_not_signed_as_it_must_be_is_not_installed(signed, tmp_path, role):
    metadata = signed.repository.newest(role)
    signed.forge(role, metadata, signed.roots[0] if role == "root" else Key())
    with pytest.raises(UsageError, match=role):
        install(signed.repository, Repository(tmp_path / "there"))


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 5000, b"\xff", b"x" * 200_000])
def test_a_damaged_file_is_named(signed, content):
    path = signed.repository.file("targets", 1)
    path.write_bytes(content)
    with pytest.raises(StateError, match=r"1\.targets\.json"):
        signed.repository.targets()


def test_metadata_travels_without_spaces(signed):
    assert b" " not in encoded(signed.repository.timestamp()).replace(b"group ", b"")
