"""One bit of what travels is another: the release that results is never another one.

Metadata is asked through the updater's judgement, the manifest through its decoder, delta and model through the
content store that would keep them. `bench` and `long` ask 10,000 and more, the short form a part of each.
"""

import hashlib
import random
import shutil
from collections.abc import Callable, Iterator

import pytest
from securesystemslib.formats import encode_canonical
from tests.shoal_agent.updater.test_judge import Node
from tests.support.signed_repository import SignedRepository
from tuf.api.metadata import Metadata

import shoal_delta
from shoal_agent.files import ContentStore
from shoal_contract.errors import ContractError
from shoal_contract.release import build_manifest, parse_manifest, parse_spec
from shoal_fleet import digits

SHORT = {"metadata": 150, "manifest": 300, "delta": 50, "model": 300}
BENCH = {"metadata": 500, "manifest": 1500, "delta": 50, "model": 8500}
LONG = {"metadata": 5000, "manifest": 2500, "delta": 150, "model": 4000}
SEED = 20261130


def flips(data: bytes, count: int, rng: random.Random) -> Iterator[bytes]:
    """The data with one bit the other way round; `count` bits, or all if there are no more."""
    total = len(data) * 8
    bits = range(total) if count >= total else rng.sample(range(total), count)
    for bit in bits:
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


class Release:
    """What travels of a release, and how it is taken in. Each taker says whether other content was accepted."""

    def __init__(self, folder) -> None:
        files = {}
        for version in (1, 2):
            directory = digits.release_dir(version)
            spec = parse_spec((directory / "release.toml").read_bytes())
            files[version] = {name: (directory / name).read_bytes() for name in spec.files}
        self.old, self.model = (files[version][spec.model.file] for version in (1, 2))
        self.manifest = build_manifest(spec, files[2])
        self.id = hashlib.sha256(self.manifest).digest()
        self.delta = shoal_delta.diff(self.old, self.model)
        self.content = ContentStore(folder / "content")
        self.repository = SignedRepository(folder / "tuf")
        self.repository.rotate_root()
        self.repository.release("oslo", ("digits", self.manifest))
        self.folder = folder

    def metadata_files(self) -> dict[str, bytes]:
        files = self.repository.files()
        newest = {
            "2.root.json", "timestamp.json", "1.targets.json", "2.group-oslo.json",
            f"{self.repository.repository.snapshot().signed.version}.snapshot.json",
        }  # fmt: skip
        return {name: files[name] for name in newest}

    def take_metadata(self, name: str, changed: bytes, kinds: dict[str, int]) -> bool:
        """A node that has only the root looks at the repository with this file in place of the true one."""
        source, node_folder = self.folder / "source", self.folder / "node"
        for folder in (source, node_folder):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.repository.repository.directory, source)
        node_folder.mkdir()
        shutil.copy(self.repository.root_file, node_folder / "root.json")
        true = (source / name).read_bytes()
        (source / name).write_bytes(changed)
        node = Node(node_folder, self.repository, source)
        verdict = node.look(self.id)
        kinds[verdict.kind] = kinds.get(verdict.kind, 0) + 1
        kept = node.metadata / f"{name.removesuffix('.json').split('.')[-1]}.json"
        if verdict.kind == "unverified" or not kept.exists():
            return False
        return _content(kept.read_bytes()) not in {
            _content(true),
            _content_of(self.repository, "root", 1),
        }

    def take_manifest(self, changed: bytes) -> bool:
        try:
            parse_manifest(changed, release=self.id)
        except ContractError:
            return False
        return True

    def take_delta(self, changed: bytes) -> bool:
        try:
            made = shoal_delta.apply(self.old, changed)
        except shoal_delta.DeltaError:
            return False
        return self.adopted(made, hashlib.sha256(self.model).digest()) and made != self.model

    def take_model(self, changed: bytes) -> bool:
        return self.adopted(changed, hashlib.sha256(self.model).digest())

    def adopted(self, data: bytes, digest: bytes) -> bool:
        part = self.content.part(digest)
        part.write_bytes(data)
        return self.content.adopt(part, digest)


def _content(data: bytes) -> str:
    """What metadata says, however it is written down."""
    signed = Metadata.from_bytes(data).signed
    return str(encode_canonical(signed.to_dict()))


def _content_of(repository: SignedRepository, role: str, version: int) -> str:
    return _content(repository.repository.file(role, version).read_bytes())


@pytest.fixture
def release(tmp_path):
    return Release(tmp_path)


def count(release: Release, counts: dict[str, int]) -> tuple[int, int]:
    """Tries, and how many of them were accepted with another content; printed by what was changed."""
    rng = random.Random(SEED)  # noqa: S311 - which bits, not a secret
    tries = accepted = 0
    takers: dict[str, tuple[bytes, Callable[[bytes], bool]]] = {
        "manifest": (release.manifest, release.take_manifest),
        "delta": (release.delta, release.take_delta),
        "model": (release.model, release.take_model),
    }
    for what, (data, take) in takers.items():
        taken = [take(changed) for changed in flips(data, counts[what], rng)]
        print(f"{what}: {len(taken)} bits flipped, {sum(taken)} accepted")
        tries, accepted = tries + len(taken), accepted + sum(taken)
    files = release.metadata_files()
    for name, data in sorted(files.items()):
        kinds: dict[str, int] = {}
        taken = [
            release.take_metadata(name, changed, kinds)
            for changed in flips(data, counts["metadata"] // len(files), rng)
        ]
        print(
            f"{name}: {len(taken)} bits flipped, {sum(taken)} accepted with other content; {kinds}"
        )
        tries, accepted = tries + len(taken), accepted + sum(taken)
    print(f"in all: {tries} bits flipped, {accepted} accepted with other content")
    return tries, accepted


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_bit_can_be_flipped_and_pass_for_another_release(release):
    tries, accepted = count(release, SHORT)
    assert tries == sum(SHORT.values())
    assert accepted == 0


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("counts", [BENCH, LONG], ids=["bench", "long"])
def test_no_bit_of_ten_thousand_can_be_flipped_and_pass_for_another_release(
    release, counts, record_property
):
    tries, accepted = count(release, counts)
    record_property("tries", tries)
    record_property("bad", accepted)
    assert tries >= 10_000
    assert accepted == 0


def test_the_count_can_fail(release):
    """What is signed is not the bytes but what they say: another content would be seen."""
    assert not release.take_metadata(
        "timestamp.json", release.metadata_files()["timestamp.json"], {}
    )
    timestamp = release.repository.repository.timestamp()
    timestamp.signed.version += 1
    timestamp.sign(release.repository.online.signer)
    changed = timestamp.to_bytes()
    assert release.take_metadata("timestamp.json", changed, {})
