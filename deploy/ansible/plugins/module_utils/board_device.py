# Copyright: The Shoal authors
# SPDX-License-Identifier: Apache-2.0
"""Writes an image onto a card, after asking whether it may: only onto a whole removable disk that nobody uses."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.shoal.edge.plugins.module_utils.board_disk import (
    BLOCK_BYTES,
    SECTOR_BYTES,
    DiskError,
    sha256,
)


@dataclass(frozen=True)
class Facts:
    """What the kernel says of a device."""

    path: str
    is_block: bool
    is_whole_disk: bool
    removable: bool
    in_use_by: tuple[str, ...]
    size_bytes: int


def read_facts(device: Path) -> Facts:
    """Look at a device without opening it. Raises DiskError: it is not there."""
    try:
        mode = device.stat().st_mode
    except OSError as exc:
        raise DiskError(f"{device}: {exc.strerror}") from exc
    if not stat.S_ISBLK(mode):
        return Facts(str(device), False, False, False, (), 0)
    return kernel_facts(device)


def kernel_facts(device: Path, *, sys: Path = Path("/sys"), proc: Path = Path("/proc")) -> Facts:
    """What `sys` and `proc` say of a block device, by its name."""
    name = device.resolve().name
    block = sys / "block" / name
    if not block.is_dir():
        return Facts(str(device), True, False, False, (), 0)
    removable = (block / "removable").read_text().strip() == "1"
    # A card in a reader is removable; a USB disk says 0 and hangs on a bus that can be unplugged.
    removable = removable or "/usb" in str(block.resolve())
    parts = {name, *(child.name for child in block.iterdir() if (child / "partition").exists())}
    users: list[str] = []
    for line in (proc / "mounts").read_text().splitlines():
        source, where = line.split()[:2]
        if Path(source).resolve().name in parts:
            users.append(where)
    swaps = (line.split()[0] for line in (proc / "swaps").read_text().splitlines()[1:])
    users += ["swap" for source in swaps if Path(source).resolve().name in parts]
    for part in sorted(parts):
        holders = (block if part == name else block / part) / "holders"
        if holders.is_dir():
            users += [holder.name for holder in holders.iterdir()]
    size_bytes = int((block / "size").read_text()) * SECTOR_BYTES
    return Facts(str(device), True, True, removable, tuple(users), size_bytes)


def refusal(facts: Facts, *, image_bytes: int, confirmed_bytes: int | None) -> str | None:
    """Why this device is not written to, or None. The size is the confirmation: another disk has another one."""
    path = facts.path
    if not facts.is_block:
        return f"{path} is no block device"
    if not facts.is_whole_disk:
        return f"{path} is no whole disk: name the disk, not a partition of it"
    if not facts.removable:
        return f"{path} cannot be taken out: Shoal writes to cards and USB disks only"
    if facts.in_use_by:
        return f"{path} is in use ({', '.join(facts.in_use_by)}): unmount it first"
    if facts.size_bytes < image_bytes:
        return f"{path} has {facts.size_bytes} bytes, the image {image_bytes}"
    if confirmed_bytes != facts.size_bytes:
        return (
            f"everything on {path} would be lost. To confirm that it is the right one,"
            f" say its size: {facts.size_bytes}"
        )
    return None


def is_written(image: Path, device: Path) -> bool:
    """Whether the device begins with exactly this image."""
    size = image.stat().st_size
    return sha256(device, size) == sha256(image)


def write(image: Path, device: Path) -> None:
    """Write the image and read it back from the device. Raises DiskError: it reads back as something else."""
    # Exclusively: the kernel refuses when somebody has mounted it since we looked.
    flags = os.O_WRONLY | (os.O_EXCL if stat.S_ISBLK(device.stat().st_mode) else 0)
    try:
        with image.open("rb") as source, os.fdopen(os.open(device, flags), "wb", 0) as target:
            while block := source.read(BLOCK_BYTES):
                left = memoryview(block)
                while left:
                    left = left[target.write(left) :]
            os.fsync(target.fileno())
            # Else what we read back would come from memory.
            os.posix_fadvise(target.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as exc:
        raise DiskError(f"{device}: {exc.strerror}") from exc
    if not is_written(image, device):
        raise DiskError(f"{device} reads back as something else: the card is worn out or a fake")
