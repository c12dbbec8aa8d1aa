"""What is refused before a session is made: files that are not the manifest's, models that may not be tried."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from tests.shoal_agent.inference import text_release as words
from tests.shoal_agent.inference import tiny_release as tiny

from shoal_agent.files import ContentStore
from shoal_agent.inference import vetting_child
from shoal_agent.inference.model_errors import ModelError
from shoal_agent.inference.vetting import names_in, vet
from shoal_contract.messages import FileEntry, Manifest, OperatorSet
from shoal_contract.release import build_manifest, parse_manifest, parse_spec

MATMUL = [OperatorSet("", 17, ["MatMul"])]


def manifest_of(directory: Path, operator_sets=()) -> Manifest:
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    data = build_manifest(parse_spec(files["release.toml"]), files, operator_sets)
    return parse_manifest(data, release=hashlib.sha256(data).digest())


def refusal(directory: Path, manifest: Manifest, **options: object) -> str:
    with pytest.raises(ModelError) as caught:
        vet(directory, manifest, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refusal_of(directory: Path, model: bytes, operator_sets=()) -> str:
    tiny.write(directory, model=model)
    return refusal(directory, manifest_of(directory, operator_sets))


@pytest.fixture
def directory(tmp_path):
    tiny.write(tmp_path / "release")
    return tmp_path / "release"


def test_a_good_release_tells_what_its_model_uses(directory):
    assert vet(directory, manifest_of(directory, MATMUL)).operator_sets == tuple(MATMUL)


def test_a_manifest_from_before_operators_were_listed_allows_all(directory):
    vet(directory, manifest_of(directory))


def _symlink(directory: Path) -> None:
    shutil.move(directory / "model.onnx", directory.parent / "away.onnx")
    (directory / "model.onnx").symlink_to(directory.parent / "away.onnx")


def _pipe(directory: Path) -> None:
    (directory / "model.onnx").unlink()
    os.mkfifo(directory / "model.onnx")


def _flip(directory: Path) -> None:
    data = bytearray((directory / "model.onnx").read_bytes())
    data[50] ^= 1
    (directory / "model.onnx").write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda d: (d / "golden.npz").unlink(), "golden.npz is missing"),
        (lambda d: (d / "more.bin").write_bytes(b""), "'more.bin' is not in the manifest"),
        (_symlink, "model.onnx: a symbolic link"),
        (_pipe, "model.onnx: not a plain file"),
        (
            lambda d: (d.parent / "elsewhere").hardlink_to(d / "model.onnx"),
            "model.onnx: a hard link, with 1 names that are not the store's",
        ),
        (_flip, "model.onnx: its sha256 is not the manifest's"),
        (lambda d: os.truncate(d / "model.onnx", 60), "model.onnx: 60 bytes, the manifest says"),
        (lambda d: os.truncate(d / "model.onnx", 0), "model.onnx: 0 bytes"),
    ],
)
def test_files_that_are_not_the_manifests_are_refused(directory, spoil, reason):
    manifest = manifest_of(directory)
    spoil(directory)
    assert reason in refusal(directory, manifest)


def test_a_directory_that_is_a_link_is_refused(directory, tmp_path):
    (tmp_path / "link").symlink_to(directory)
    assert "the release's directory" in refusal(tmp_path / "link", manifest_of(directory))


def test_a_manifest_that_lists_other_files_than_the_release_names_is_refused(directory):
    good = manifest_of(directory)
    (directory / "more.bin").write_bytes(b"x")
    more = FileEntry("more.bin", 1, hashlib.sha256(b"x").digest())
    found = refusal(directory, Manifest(good.name, good.version, [*good.files, more]))
    assert "the manifest lists" in found
    (directory / "more.bin").unlink()
    other = Manifest(good.name, "9.9.9", good.files)
    assert "of another release" in refusal(directory, other)


def test_an_operator_that_the_release_does_not_list_is_refused_before_a_session_is_made(tmp_path):
    reason = refusal_of(tmp_path, tiny.memory_bomb(), MATMUL)
    assert "it uses operators that the release does not list: Add (ai.onnx 17)" in reason
    assert "ConstantOfShape" in reason
    other_opset = [OperatorSet("", 18, ["MatMul"])]
    assert "MatMul (ai.onnx 17)" in refusal_of(tmp_path, tiny.linear(), other_opset)


def external(location: str, **more: str) -> bytes:
    model = onnx.load_from_string(tiny.linear())
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=value)
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (external("/etc/passwd"), "lies in '/etc/passwd', which is outside of the release"),
        (external("../../blobs/x"), "which is outside of the release"),
        (external("weights.bin"), "which is no file of the release"),
        (external("golden.npz", offset="99999", length="48"), "behind the end of that file"),
        (external("golden.npz", length="48"), "a model has its weights in its own file"),
        (external("golden.npz", offset="x"), "at an offset that is no number"),
    ],
)
def test_weights_outside_of_the_model_file_are_refused_wherever_they_are(tmp_path, model, reason):
    assert reason in refusal_of(tmp_path, model)


def deep(depth: int) -> bytes:
    node = helper.make_node("Identity", ["x"], ["y"])
    for _ in range(depth):
        branch = helper.make_graph([node], "inner", [], [])
        node = helper.make_node("If", ["c"], ["y"], then_branch=branch)
    return tiny.model_of([node])


def claiming(elements: int) -> bytes:
    model = onnx.load_from_string(tiny.linear())
    model.graph.initializer[0].dims[:] = [elements]
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (tiny.linear()[:-20], "model.onnx: a field ends behind its message"),
        (deep(9), "model.onnx: its graphs nest deeper than 8"),
        (claiming(1 << 50), "claims 1125899906842624 values of type 1; there are 48 bytes"),
        (b"\xff" * 400, "model.onnx: a number has no end"),
    ],
)
def test_a_model_that_cannot_be_read_strictly_is_refused(tmp_path, model, reason):
    assert reason in refusal_of(tmp_path, model)


def test_the_links_of_the_store_itself_are_no_foreign_ones(tmp_path):
    store, release = stored(tmp_path)
    directory = store.release_dir(release)
    manifest = parse_manifest(store.path(release).read_bytes(), release=release)
    assert (directory / "model.onnx").stat().st_nlink == 2
    vet(directory, manifest, names=names_in(store.blobs, store.releases))
    (tmp_path / "foreign").hardlink_to(directory / "golden.npz")
    found = refusal(directory, manifest, names=names_in(store.blobs, store.releases))
    assert "golden.npz: a hard link" in found


def test_links_that_the_store_makes_meanwhile_are_counted_anew(tmp_path, monkeypatch):
    store, release = stored(tmp_path)
    manifest = parse_manifest(store.path(release).read_bytes(), release=release)
    counts = []

    def assembling(*folders: Path):
        """Another release is put together of the same file when the names have just been counted."""
        counted = names_in(*folders)
        counts.append(counted)
        if len(counts) == 1:
            other = store.releases / "other.part"
            other.mkdir()
            (other / "golden.npz").hardlink_to(store.release_dir(release) / "golden.npz")
        return counted

    monkeypatch.setattr(vetting_child, "names_in", assembling)
    monkeypatch.setattr(vetting_child, "_RECOUNT_S", 0)
    vetting_child._vet(store.release_dir(release), manifest, tmp_path / "state")
    assert len(counts) == 2


def test_what_goes_while_names_are_counted_does_not_count(tmp_path):
    assert names_in(tmp_path / "gone") == {}


def stored(folder: Path) -> tuple[ContentStore, bytes]:
    tiny.write(folder / "made")
    files = {path.name: path.read_bytes() for path in (folder / "made").iterdir()}
    data = build_manifest(parse_spec(files["release.toml"]), files, MATMUL)
    store, release = ContentStore(folder / "state"), hashlib.sha256(data).digest()
    for blob in (data, *files.values()):
        store.path(hashlib.sha256(blob).digest()).write_bytes(blob)
    store.assemble(release, parse_manifest(data, release=release))
    return store, release


def test_the_child_says_in_one_line_what_it_found_and_imports_neither_numpy_nor_onnx_runtime(
    tmp_path,
):
    store, release = stored(tmp_path)
    script = f"""
import sys
from shoal_agent.inference import vetting_child
code = vetting_child.main(["", {str(store.release_dir(release))!r}, {release.hex()!r}, {str(tmp_path / "state")!r}])
assert not {{"numpy", "onnxruntime", "onnx"}} & set(sys.modules)
sys.exit(code)
"""

    def verdict() -> bytes:
        run = [sys.executable, "-c", script]
        return subprocess.run(run, capture_output=True, check=True, timeout=15).stdout

    assert verdict() == b'{"reason":""}\n'
    model = store.release_dir(release) / "model.onnx"
    model.write_bytes(b"other")
    assert b"model.onnx: 5 bytes, the manifest says" in verdict()
    store.path(release).unlink()
    assert b"its files cannot be read: No such file" in verdict()
    assert vetting_child.MEMORY_BYTES < 1 << 28


def test_a_release_of_texts_is_vetted_with_its_tokenizer(tmp_path):
    words.write(tmp_path)
    manifest = manifest_of(tmp_path)
    assert {used.domain for used in vet(tmp_path, manifest).operator_sets} == {""}
    (tmp_path / "tokenizer.json").write_bytes(words.tokenizer(words.WORDS[:5]))
    assert "tokenizer.json" in refusal(tmp_path, manifest)
    (tmp_path / "tokenizer.json").unlink()
    assert refusal(tmp_path, manifest) == "tokenizer.json is missing"
