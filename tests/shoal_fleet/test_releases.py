import io
import shutil
import tarfile

import numpy as np
import onnx
import pytest

from shoal_contract import release
from shoal_contract.onnx_outline import outline
from shoal_contract.release import parse_manifest, parse_spec
from shoal_fleet import digits
from shoal_fleet.blob_store import BlobStore
from shoal_fleet.database import Database
from shoal_fleet.errors import ReleaseError
from shoal_fleet.release_check import check_directory, decode_items
from shoal_fleet.release_directory import pack, read_spec
from shoal_fleet.releases import Releases, check_can_be_announced
from shoal_fleet.tables import FleetBase


@pytest.fixture
def directory(tmp_path):
    """A copy of digits 1.0.0 that a test may spoil."""
    return shutil.copytree(digits.release_dir(1), tmp_path / "digits")


def rewrite(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_the_digits_do_what_their_release_says(directory):
    figures = check_directory(directory)
    assert figures["golden_items"] == 16
    assert figures["deviation"] <= 0.05
    ((domain, version, operators),) = figures["operator_sets"]
    assert (domain, version) == ("", 17)
    assert {"QuantizeLinear", "DequantizeLinear"} <= set(operators)


def test_packed_scans_are_decoded_to_their_grey_levels():
    spec = parse_spec((digits.release_dir(1) / "release.toml").read_bytes())
    scans = digits.held_out()[:3]
    items = np.frombuffer(b"".join(digits.pack_u5(s.levels) for s in scans), np.uint8)
    decoded = decode_items(spec.input, items.reshape(3, 40))
    assert decoded.shape == (3, 1, 8, 8)
    assert [list(item.ravel() * 16) for item in decoded] == [list(s.levels) for s in scans]


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda d: (d / "model.onnx").unlink(), "model.onnx, which is not a file"),
        (lambda d: (d / "release.toml").unlink(), "there is no release.toml"),
        (lambda d: (d / "notes.txt").write_text("x"), "'notes.txt' does not belong"),
        (lambda d: (d / "model.onnx").write_bytes(b"\x08\x07" * 99), "model that loads"),
        (lambda d: (d / "model.onnx").write_bytes(b""), "model.onnx is empty"),
        (lambda d: (d / "golden.npz").write_bytes(b"PK"), "golden.npz: is not an .npz"),
        (lambda d: np.savez(d / "golden.npz", inputs=np.zeros(3)), "golden.npz: is not an .npz"),
        (
            lambda d: np.savez(d / "golden.npz", inputs=np.zeros(3), outputs=np.zeros(3)),
            "inputs are float64 [3], not uint8 [n, 40]",
        ),
        (
            lambda d: np.savez(
                d / "golden.npz",
                inputs=np.zeros((3, 40), np.uint8),
                outputs=np.zeros((3, 10), np.float32),
            ),
            "golden outputs differ by",
        ),
        (lambda d: rewrite(d / "release.toml", '"image"', '"picture"'), "'image', not 'picture'"),
        (lambda d: rewrite(d / "release.toml", "[1, 8, 8]", "[8, 8]"), "has shape [1, 8, 8]"),
        (lambda d: rewrite(d / "release.toml", "units", "unit"), "unknown key"),
    ],
)
def test_a_release_that_is_none_is_refused_in_one_line(directory, spoil, complaint):
    spoil(directory)
    with pytest.raises(ReleaseError) as caught:
        check_directory(directory)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_that_boards_would_refuse_unseen_is_refused_here(directory):
    model = onnx.load(directory / "model.onnx")
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    (directory / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(
        ReleaseError, match=r"lies in '\.\./secret'; a model has its weights in its"
    ):
        check_directory(directory)


def test_a_link_out_of_the_directory_is_no_file(directory):
    (directory / "model.onnx").unlink()
    (directory / "model.onnx").symlink_to("/etc/passwd")
    with pytest.raises(ReleaseError):
        read_spec(directory)


def test_what_is_packed_is_a_tar_of_the_files(directory):
    archive = b"".join(pack(directory, read_spec(directory)))
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            assert tar.extractfile(member).read() == (directory / member.name).read_bytes()
        assert sorted(tar.getnames()) == ["golden.npz", "model.onnx", "release.toml"]


async def test_a_release_is_added_listed_and_found(site):
    added = await site.add_release(digits.release_dir(1))
    assert added["title"] == "digits@1.0.0"
    assert added["check"]["golden_items"] == 16
    again = await site.add_release(digits.release_dir(1))
    assert again["id"] == added["id"]
    newer = await site.add_release(digits.release_dir(2))
    listed = (await site.api.get("/api/releases")).json()
    assert [row["title"] for row in listed] == [newer["title"], "digits@1.0.0"]
    by_prefix = await site.api.get(f"/api/releases/{added['id'][:8]}")
    assert by_prefix.json()["title"] == "digits@1.0.0"


async def upload_of(directory):
    for piece in pack(directory, read_spec(directory)):
        yield piece


async def test_the_manifest_of_an_added_release_lists_the_operators_of_its_model(releases_only):
    added, figures = await releases_only.add(upload_of(digits.release_dir(1)))
    manifest = parse_manifest(added.manifest, release=added.id)
    model = (digits.release_dir(1) / "model.onnx").read_bytes()
    assert tuple(manifest.operator_sets) == outline(model).operator_sets != ()
    assert "operator_sets" not in figures


async def test_a_release_from_before_operators_were_listed_is_the_same_when_it_is_added_again(
    releases_only, monkeypatch
):
    with monkeypatch.context() as before:
        build = release.build_manifest
        before.setattr(release, "build_manifest", lambda spec, files, _: build(spec, files))
        old, _ = await releases_only.add(upload_of(digits.release_dir(1)))
    again, _ = await releases_only.add(upload_of(digits.release_dir(1)))
    assert again.id == old.id
    assert [item.id for item in await releases_only.list_all()] == [old.id]


async def test_the_same_version_with_another_content_is_refused(site, directory):
    await site.add_release(directory)
    rewrite(directory / "release.toml", "trained on 300", "trained on 301")
    answer = await site.upload(directory)
    assert answer.status_code == 409
    assert "give the changed one a new version" in answer.json()["error"]


async def test_a_spoilt_release_is_refused_by_the_controller_and_leaves_nothing(site, directory):
    (directory / "model.onnx").write_bytes(b"\x08\x07" * 99)
    answer = await site.upload(directory)
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("model.onnx: is not a model that loads")
    assert (await site.api.get("/api/releases")).json() == []
    assert list((site.state_dir / "blobs").iterdir()) == []
    assert list((site.state_dir / "scratch").iterdir()) == []


def tar_of(*members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def plain_member(name, content=b"x"):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    return member, content


def link_member(name):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return member, b""


@pytest.mark.parametrize(
    "archive",
    [
        b"",
        b"not a tar" * 100,
        tar_of(plain_member("../escape")),
        tar_of(plain_member("/etc/shoal")),
        tar_of(link_member("model.onnx")),
        tar_of(*(plain_member(f"f{index}") for index in range(9))),
        tar_of(plain_member("release.toml"), plain_member("release.toml")),
        tar_of(plain_member("release.toml", b"x" * 4000))[:2000],
    ],
)
async def test_an_upload_that_is_no_release_is_refused(releases_only, archive):
    async def upload():
        yield archive

    with pytest.raises(ReleaseError):
        await releases_only.add(upload())


@pytest.fixture
async def releases_only(tmp_path):
    async with Database.open(tmp_path / "fleet.db", FleetBase) as database:
        yield Releases(database, BlobStore(tmp_path / "blobs", database), scratch=tmp_path)


async def test_a_model_too_large_to_be_announced_is_refused_when_it_is_added(directory):
    model = directory / "model.onnx"
    with model.open("r+b") as file:
        file.truncate(400 << 20)
    with pytest.raises(ReleaseError, match="too large to be announced"):
        check_can_be_announced(directory, read_spec(directory))
