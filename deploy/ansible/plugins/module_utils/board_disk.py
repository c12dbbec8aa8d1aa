# Copyright: The Shoal authors
# SPDX-License-Identifier: Apache-2.0
"""Puts a seed into a board's image file and reads it back, with sfdisk and mtools: nothing is mounted, no root is needed."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

MIB = 2**20
BLOCK_BYTES = 4 * MIB
SECTOR_BYTES = 512
SEED_LABEL = "CIDATA"
# Names of partition types that hold a FAT file system: MBR, and GPT's EFI system and Microsoft basic data.
FAT_TYPES = {
    *("1", "4", "6", "b", "c", "e", "ef"),
    "C12A7328-F81F-11D2-BA4B-00A0C93EC93B",
    "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7",
}
TOOLS = ("sfdisk", "mkfs.vfat", "mcopy", "mdir", "mmd", "mtype")


class DiskError(Exception):
    """An image cannot be made or is not what it should be; the message says why."""


def sha256(path: Path, size: int | None = None) -> str:
    """Of a file, or of its first `size` bytes."""
    whole = hashlib.sha256()
    left = path.stat().st_size if size is None else size
    with path.open("rb") as file:
        while left and (block := file.read(min(left, BLOCK_BYTES))):
            whole.update(block)
            left -= len(block)
    return whole.hexdigest()


def check_stock(image: Path, checksum: str) -> None:
    """Raises DiskError when the vendor's file is not the one whose sha256 was given."""
    if image.suffix not in {".img", ".raw", ".xz"}:
        raise DiskError(f"{image.name} is no .img, .raw or .img.xz")
    found = sha256(image)
    if found != checksum.lower().removeprefix("sha256:"):
        raise DiskError(f"{image.name} has sha256 {found}, not {checksum}: fetch it again")


def copy_stock(image: Path, target: Path) -> None:
    """A raw image at `target`, unpacked if need be; runs of zeros take no room. Raises DiskError."""
    opening = lzma.open if image.suffix == ".xz" else open
    try:
        with opening(image, "rb") as source, target.open("wb") as file:
            target.chmod(0o600)
            while block := source.read(MIB):
                if block.count(0) == len(block):
                    file.seek(len(block), os.SEEK_CUR)
                else:
                    file.write(block)
            file.truncate(file.tell())
    except (lzma.LZMAError, EOFError) as exc:
        raise DiskError(f"{image.name} is damaged: {exc}") from exc


def partitions(image: Path) -> dict[str, object]:
    """The partition table as `sfdisk --json` tells it. Raises DiskError."""
    said = _run("sfdisk", "--json", str(image))
    try:
        table = json.loads(said)["partitiontable"]
    except (ValueError, KeyError) as exc:
        raise DiskError(f"{image.name} has no partition table that sfdisk reads") from exc
    if table.get("label") not in {"dos", "gpt"}:
        raise DiskError(f"{image.name} has a table of type {table.get('label')}, not dos or gpt")
    if not table.get("partitions"):
        raise DiskError(f"{image.name} has no partition: is it a disk image?")
    return table


def boot_partition(image: Path) -> int:
    """Where the first FAT partition begins, in bytes. Raises DiskError."""
    for partition in partitions(image)["partitions"]:  # type: ignore[attr-defined]
        if partition["type"] in FAT_TYPES or partition["type"].upper() in FAT_TYPES:
            return partition["start"] * SECTOR_BYTES
    raise DiskError(f"{image.name} has no FAT partition to put the seed on: use the form cidata")


def check_reads_seed(image: Path, start: int) -> None:
    """Raises DiskError when a stock image would not look at a seed on its boot partition, and the board would never appear.

    Images with cloud-init bring its files there as examples (Raspberry Pi OS since Debian 13, Ubuntu for Raspberry Pi).
    """
    said = _run("mdir", "-b", "-i", f"{image}@@{start}", "::/")
    names = {line.rpartition("/")[2].strip().lower() for line in said.splitlines()}
    if "user-data" not in names:
        raise DiskError(
            f"the boot partition of {image.name} has no user-data: it is an image without cloud-init, and"
            " would not enrol by itself. Take a newer one, or install the agent over SSH (site.yml)"
        )


def seed_partition(image: Path) -> int:
    """Where the partition labelled CIDATA begins, in bytes. Raises DiskError."""
    for partition in reversed(partitions(image)["partitions"]):  # type: ignore[call-overload]
        start = partition["start"] * SECTOR_BYTES
        with image.open("rb") as file:
            file.seek(start)
            head = file.read(SECTOR_BYTES)
        if SEED_LABEL.encode() in (head[43:54].rstrip(), head[71:82].rstrip()):
            return start
    raise DiskError(f"{image.name} has no seed partition")


def add_seed_partition(image: Path, seed_bytes: int, *, size_bytes: int | None = None) -> int:
    """Append a FAT partition labelled CIDATA at the image's end; where it begins, in bytes.

    Args:
        image: changed in place. Its last partition may grow up to the seed at the first boot.
        seed_bytes: room for the seed's files.
        size_bytes: of the whole image, for cards of that size; by default as small as it can be.

    Raises:
        DiskError: no room in the table, or the image is larger than `size_bytes`.
    """
    table = partitions(image)
    rows: list[dict[str, int]] = table["partitions"]  # type: ignore[assignment]
    if table["label"] == "dos" and len(rows) >= 4:  # noqa: PLR2004 - primary partitions
        raise DiskError(f"{image.name} has four partitions already: use the form bootfs")
    used = max(row["start"] + row["size"] for row in rows) * SECTOR_BYTES
    # A FAT16 costs at most a hundredth, and needs some 10 MiB to be one.
    room = -(-(seed_bytes + seed_bytes // 100 + 16 * MIB) // MIB) * MIB
    least = -(-used // MIB) * MIB + room + MIB
    size = least if size_bytes is None else size_bytes // MIB * MIB
    if size < least:
        raise DiskError(f"{size} bytes are too small: the image and its seed need {least}")
    os.truncate(image, max(size, image.stat().st_size))
    size = image.stat().st_size
    if table["label"] == "gpt":
        _run("sfdisk", "--quiet", "--relocate", "gpt-bak-std", str(image))
    start = size // MIB * MIB - room - MIB
    kind = "c" if table["label"] == "dos" else "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7"
    line = f"start={start // SECTOR_BYTES}, size={room // SECTOR_BYTES}, type={kind}\n"
    _run("sfdisk", "--quiet", "--append", "--no-reread", "--no-tell-kernel", str(image), given=line)
    _run("sfdisk", "--quiet", "--verify", str(image))
    # Which kind of FAT is said: mkfs.vfat would choose it by the size of the whole image.
    _run(
        *("mkfs.vfat", "-F", "16", "-n", SEED_LABEL, "-S", str(SECTOR_BYTES)),
        *("--offset", str(start // SECTOR_BYTES), str(image), str(room // 1024)),
    )
    return start


def put(image: Path, start: int, contents: Mapping[str, bytes], copies: Mapping[str, Path]) -> None:
    """Write files onto the FAT at `start`, over what is there: contents by name, and copies of files. Raises DiskError."""
    drive = f"{image}@@{start}"
    folders = sorted({str(Path(name).parent) for name in (*contents, *copies)} - {"."})
    for folder in folders:
        if not _there(drive, folder):
            _run("mmd", "-i", drive, f"::{folder}")
    for name, content in contents.items():
        _run("mcopy", "-o", "-i", drive, "-", f"::{name}", given=content)
    for name, path in copies.items():
        _run("mcopy", "-o", "-i", drive, str(path), f"::{name}")


def check(
    image: Path, start: int, contents: Mapping[str, bytes], copies: Mapping[str, Path]
) -> None:
    """Read every file of the seed back. Raises DiskError for the first that differs."""
    drive = f"{image}@@{start}"
    wanted = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    wanted.update({name: sha256(path) for name, path in copies.items()})
    for name, digest in wanted.items():
        if hashlib.sha256(_run_bytes("mtype", "-i", drive, f"::{name}")).hexdigest() != digest:
            raise DiskError(f"{image.name}: {name} reads back as something else")


def copy_sparse(source: Path, target: Path) -> None:
    """Another copy of a raw image, without its holes."""
    _run("cp", "--sparse=always", "--reflink=auto", str(source), str(target))
    target.chmod(0o600)


def sync(path: Path) -> None:
    """Wait until a file and its name are on the disk."""
    for each in (path, path.parent):
        number = os.open(each, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def missing_tools(*, which: object = shutil.which) -> list[str]:
    """The programs that are not installed here."""
    return [tool for tool in TOOLS if not which(tool)]  # type: ignore[operator]


def _there(drive: str, folder: str) -> bool:
    command = ["mdir", "-b", "-i", drive, f"::{folder}"]
    return (
        subprocess.run(command, capture_output=True, env=_environment(), check=False).returncode
        == 0
    )


def _run(*command: str, given: str | bytes = b"") -> str:
    return _run_bytes(*command, given=given).decode(errors="replace")


def _run_bytes(*command: str, given: str | bytes = b"") -> bytes:
    given = given.encode() if isinstance(given, str) else given
    try:
        done = subprocess.run(
            command, input=given, capture_output=True, env=_environment(), check=False
        )
    except FileNotFoundError as exc:
        raise DiskError(f"{command[0]} is not installed (Debian: fdisk mtools dosfstools)") from exc
    if done.returncode:
        why = done.stderr.decode(errors="replace").strip() or f"ended with {done.returncode}"
        raise DiskError(f"{command[0]}: {why[-500:]}")
    return done.stdout


def _environment() -> dict[str, str]:
    # mtools refuses images whose size is no multiple of a track, and sfdisk is in sbin.
    return {
        **os.environ,
        "MTOOLS_SKIP_CHECK": "1",
        "LC_ALL": "C",
        "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin",
    }
