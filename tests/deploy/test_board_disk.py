"""Images of boards: the seed goes in and reads back, the system stays as it was; cards are written only when that is safe."""

import hashlib
import lzma
import os
import subprocess
from pathlib import Path

import pytest
from tests.deploy.collection_modules import module_utils

disk = module_utils("board_disk")
device = module_utils("board_device")

MIB = 2**20
needs_tools = pytest.mark.skipif(
    bool(disk.missing_tools()), reason=f"not installed: {' '.join(disk.missing_tools())}"
)


def stock(folder: Path, table: str) -> Path:
    """A disk of 12 MiB with a "system" on it that can be compared."""
    image = folder / "stock.img"
    image.write_bytes(bytes(12 * MIB))
    subprocess.run(["/usr/sbin/sfdisk", "--quiet", image], input=table, text=True, check=True)
    with image.open("r+b") as file:
        file.seek(MIB)
        file.write(b"system" * 100_000)
    return image


GPT = "label: gpt\nstart=2048, size=16384, type=linux\n"
DOS = "label: dos\nstart=2048, size=16384, type=83\n"
FULL = "label: dos\n" + "".join(f"start={2048 + 2048 * n}, size=2048, type=83\n" for n in range(4))


@needs_tools
@pytest.mark.parametrize("table", [GPT, DOS], ids=["gpt", "dos"])
def test_a_seed_partition_is_added_filled_and_read_back(tmp_path: Path, table: str) -> None:
    image = stock(tmp_path, table)
    before = _system(image)
    tree = tmp_path / "tree"
    tree.write_bytes(os.urandom(3 * MIB))
    contents = {"user-data": b"#cloud-config\n", "shoal/token": b"T\n"}
    copies = {"shoal/release.tar.gz": tree}
    start = disk.add_seed_partition(image, 3 * MIB)
    disk.put(image, start, contents, copies)
    disk.check(image, start, contents, copies)
    assert disk.seed_partition(image) == start
    assert _system(image) == before
    subprocess.run(["/usr/sbin/sfdisk", "--quiet", "--verify", image], check=True)
    assert len(disk.partitions(image)["partitions"]) == 2
    with pytest.raises(disk.DiskError, match="user-data reads back as something else"):
        disk.check(image, start, {"user-data": b"other"}, {})
    # Over what is there, as for another board.
    disk.put(image, start, {"shoal/token": b"U\n"}, {})
    disk.check(image, start, {"shoal/token": b"U\n"}, copies)


@needs_tools
def test_an_image_may_be_made_as_large_as_the_card(tmp_path: Path) -> None:
    image = stock(tmp_path, GPT)
    start = disk.add_seed_partition(image, MIB, size_bytes=64 * MIB)
    assert image.stat().st_size == 64 * MIB
    assert start > 40 * MIB
    assert disk.seed_partition(image) == start


@needs_tools
def test_an_image_that_is_too_small_or_full_is_refused(tmp_path: Path) -> None:
    with pytest.raises(disk.DiskError, match="bytes are too small"):
        disk.add_seed_partition(stock(tmp_path, GPT), MIB, size_bytes=13 * MIB)
    with pytest.raises(disk.DiskError, match="four partitions already"):
        disk.add_seed_partition(stock(tmp_path, FULL), MIB)


@needs_tools
def test_the_seed_goes_onto_the_boot_partition_beside_what_is_there(tmp_path: Path) -> None:
    image = stock(tmp_path, "label: dos\nstart=2048, size=16384, type=c\n")
    subprocess.run(
        ["/usr/sbin/mkfs.vfat", "--offset", "2048", image, "8192"], check=True, capture_output=True
    )
    start = disk.boot_partition(image)
    disk.put(image, start, {"config.txt": b"arm_64bit=1\n", "user-data": b"theirs"}, {})
    disk.put(image, start, {"user-data": b"ours", "shoal/token": b"T\n"}, {})
    disk.check(image, start, {"config.txt": b"arm_64bit=1\n", "user-data": b"ours"}, {})
    with pytest.raises(disk.DiskError):
        disk.seed_partition(image)


@needs_tools
def test_a_seed_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    image = stock(tmp_path, GPT)
    start = disk.add_seed_partition(image, 0)
    big = {"big": os.urandom(24 * MIB)}
    # mcopy does not always say that the FAT was full: what counts is that it does not read back.
    with pytest.raises(disk.DiskError):
        _put_and_check(image, start, big)


@needs_tools
def test_what_is_no_disk_image_is_refused_in_one_line(tmp_path: Path) -> None:
    image = tmp_path / "text.img"
    image.write_bytes(b"hello" * 1000)
    with pytest.raises(disk.DiskError) as raised:
        disk.partitions(image)
    assert "\n" not in str(raised.value)


def test_a_stock_image_with_another_checksum_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "stock.img"
    image.write_bytes(b"image")
    disk.check_stock(image, "sha256:" + hashlib.sha256(b"image").hexdigest().upper().lower())
    with pytest.raises(disk.DiskError, match="fetch it again"):
        disk.check_stock(image, "0" * 64)
    with pytest.raises(disk.DiskError, match=r"is no \.img"):
        disk.check_stock(tmp_path / "stock.zip", "0" * 64)


def test_a_packed_image_is_unpacked_and_its_holes_take_no_room(tmp_path: Path) -> None:
    content = b"start" + bytes(8 * MIB) + b"end" + bytes(3 * MIB)
    packed = tmp_path / "stock.img.xz"
    packed.write_bytes(lzma.compress(content, preset=0))
    target = tmp_path / "raw"
    disk.copy_stock(packed, target)
    assert target.read_bytes() == content
    assert target.stat().st_blocks * 512 < 4 * MIB
    assert target.stat().st_mode & 0o777 == 0o600
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(disk.DiskError, match="is damaged"):
        disk.copy_stock(packed, target)


SAFE = {
    "path": "/dev/sdx", "is_block": True, "is_whole_disk": True, "removable": True, "in_use_by": (), "size_bytes": 64
}  # fmt: skip


def test_a_removable_unused_disk_of_the_confirmed_size_may_be_written() -> None:
    facts = device.Facts(**SAFE)
    assert device.refusal(facts, image_bytes=64, confirmed_bytes=64) is None


@pytest.mark.parametrize(
    ("given", "confirmed", "says"),
    [
        ({"is_block": False}, 64, "is no block device"),
        ({"is_whole_disk": False}, 64, "is no whole disk"),
        ({"removable": False}, 64, "cannot be taken out"),
        ({"in_use_by": ("/home",)}, 64, r"is in use \(/home\)"),
        ({"size_bytes": 63}, 63, "has 63 bytes, the image 64"),
        ({}, None, "say its size: 64"),
        ({}, 65, "say its size: 64"),
    ],
)
def test_any_other_disk_is_refused(given: dict, confirmed: int | None, says: str) -> None:
    facts = device.Facts(**{**SAFE, **given})
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(device.refusal(facts, image_bytes=64, confirmed_bytes=confirmed))


def test_a_file_is_no_device_and_a_missing_one_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert not device.read_facts(tmp_path / "file").is_block
    with pytest.raises(disk.DiskError, match="No such file"):
        device.read_facts(tmp_path / "none")


def test_what_uses_a_disk_or_a_part_of_it_is_found(tmp_path: Path) -> None:
    block = tmp_path / "block/sdx"
    for part in ("sdx1", "sdx2"):
        (block / part / "holders").mkdir(parents=True)
        (block / part / "partition").write_text("1\n")
    (block / "queue").mkdir()
    (block / "removable").write_text("1\n")
    (block / "size").write_text("2048\n")
    (tmp_path / "mounts").write_text("/dev/sda1 / ext4 rw 0 0\n")
    (tmp_path / "swaps").write_text("Filename Type Size Used Priority\n")

    def facts(name: str = "sdx"):
        return device.kernel_facts(Path("/dev") / name, sys=tmp_path, proc=tmp_path)

    assert facts() == device.Facts("/dev/sdx", True, True, True, (), MIB)
    assert not facts("sdx1").is_whole_disk
    (tmp_path / "mounts").write_text("/dev/sdx1 /home ext4 rw 0 0\n")
    (tmp_path / "swaps").write_text("Filename\n/dev/sdx partition 1 0 -2\n")
    (block / "sdx2/holders/dm-0").mkdir()
    assert facts().in_use_by == ("/home", "swap", "dm-0")
    (block / "removable").write_text("0\n")
    assert not facts().removable


def test_an_image_is_written_and_what_follows_it_stays(tmp_path: Path) -> None:
    image, card = tmp_path / "image", tmp_path / "card"
    image.write_bytes(os.urandom(5 * MIB + 17))
    card.write_bytes(b"\xff" * 6 * MIB)
    assert not device.is_written(image, card)
    device.write(image, card)
    assert device.is_written(image, card)
    assert card.read_bytes()[5 * MIB + 17 :] == b"\xff" * (MIB - 17)


def _system(image: Path) -> str:
    with image.open("rb") as file:
        file.seek(MIB)
        return hashlib.sha256(file.read(8 * MIB)).hexdigest()


def _put_and_check(image: Path, start: int, contents: dict[str, bytes]) -> None:
    disk.put(image, start, contents, {})
    disk.check(image, start, contents, {})
