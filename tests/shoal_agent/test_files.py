import hashlib

import pytest

from shoal_agent.files import ContentStore
from shoal_contract.messages import FileEntry, Manifest


def put(content: ContentStore, data: bytes) -> bytes:
    digest = hashlib.sha256(data).digest()
    content.part(digest).write_bytes(data)
    assert content.adopt(content.part(digest), digest)
    return digest


@pytest.fixture
def content(tmp_path):
    return ContentStore(tmp_path)


def test_a_blob_that_is_not_what_its_name_says_is_not_adopted(content):
    digest = hashlib.sha256(b"right").digest()
    content.part(digest).write_bytes(b"wrong")
    assert not content.adopt(content.part(digest), digest)
    assert not content.has(digest)
    assert not content.part(digest).exists()


def test_a_release_is_a_directory_of_its_files(content):
    model, spec = put(content, b"model"), put(content, b"spec")
    manifest = Manifest(
        "x", "1.0.0", [FileEntry("model.onnx", 5, model), FileEntry("release.toml", 4, spec)]
    )
    directory = content.assemble(b"r" * 32, manifest)
    assert (directory / "model.onnx").read_bytes() == b"model"
    assert content.assemble(b"r" * 32, manifest) == directory


def test_half_an_assembly_is_gone_after_a_restart(content, tmp_path):
    half = content.releases / (("r" * 64) + ".part")
    half.mkdir()
    (half / "model.onnx").write_bytes(b"half")
    ContentStore(tmp_path)
    assert not half.exists()


def test_the_sweep_keeps_what_it_is_told_to(content):
    kept, dropped = put(content, b"kept"), put(content, b"dropped")
    for release, blob in ((b"k" * 32, kept), (b"d" * 32, dropped)):
        content.assemble(release, Manifest("x", "1.0.0", [FileEntry("model.onnx", 1, blob)]))
    assert content.sweep(keep_releases=[b"k" * 32], keep_blobs=[kept]) == len(b"dropped")
    assert content.has(kept)
    assert not content.has(dropped)
    assert content.release_dir(b"k" * 32).is_dir()
    assert not content.release_dir(b"d" * 32).exists()


def test_a_damaged_blob_is_found_and_dropped_with_its_release(content):
    good, bad = put(content, b"good"), put(content, b"bad!")
    release = b"r" * 32
    content.assemble(
        release, Manifest("x", "1.0.0", [FileEntry("a", 4, good), FileEntry("b", 4, bad)])
    )
    content.path(bad).write_bytes(b"bax!")
    assert content.drop_damaged(release) == [bad.hex()]
    assert content.has(good)
    assert not content.has(bad)
    assert not content.release_dir(release).exists()


def test_a_whole_release_is_left_alone(content):
    good = put(content, b"good")
    content.assemble(b"r" * 32, Manifest("x", "1.0.0", [FileEntry("a", 4, good)]))
    assert content.drop_damaged(b"r" * 32) == []
    assert content.release_dir(b"r" * 32).is_dir()
