"""Small stock images in the layout of those that vendors offer: table, partitions, labels, and the files on the FAT that matter here.

What is on the partitions of the system is made up; none of these boots.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

MIB = 2**20
SECTOR_BYTES = 512
SYSTEM = b"system" * 100_000
_ESP = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
_BOOT_FILES = {"config.txt": b"arm_64bit=1\n", "cmdline.txt": b"root=PARTUUID=5f0d-02 rootwait\n"}
# As cloud-init's users find them: examples, all commented out.
_EXAMPLES = {
    "user-data": b"#cloud-config\n# hostname: raspberrypi\n",
    "meta-data": b"instance-id: rpios-image\n",
    "network-config": b"# network:\n#   version: 2\n",
}


@dataclass(frozen=True, slots=True)
class Layout:
    """A vendor's image.

    Args:
        table: for sfdisk; starts and sizes in sectors.
        system: which of its partitions, counted from 0, the system is on.
        fat: which one is a FAT, or None.
        label: of that FAT.
        files: on it.
    """

    table: str
    system: int
    fat: int | None = None
    label: str = ""
    files: tuple[tuple[str, bytes], ...] = ()


_PI = "label: dos\nstart=8192, size=16384, type=c\nstart=24576, size=16384, type=83\n"
# The numbers of the cloud images are not in the order of the disk: the system is the first, and behind the others.
_CLOUD = (
    f"label: gpt\n1: start=34816, size=16384, type=linux\n15: start=2048, size=32768, type={_ESP}\n"
)
LAYOUTS = {
    "debian-generic": Layout(_CLOUD, system=0, fat=1),
    "ubuntu-cloud": Layout(
        _CLOUD + "16: start=51200, size=8192, type=linux\n", system=0, fat=1, label="UEFI"
    ),
    "ubuntu-raspi": Layout(_PI, 1, 0, "system-boot", tuple((_BOOT_FILES | _EXAMPLES).items())),
    "raspios-13": Layout(_PI, 1, 0, "bootfs", tuple((_BOOT_FILES | _EXAMPLES).items())),
    # Before Debian 13: userconf and custom.toml or a firstrun.sh, no cloud-init.
    "raspios-12": Layout(
        _PI,
        1,
        0,
        "bootfs",
        tuple((_BOOT_FILES | {"issue.txt": b"Raspberry Pi reference\n"}).items()),
    ),
    "armbian": Layout("label: gpt\nstart=32768, size=16384, type=linux, name=rootfs\n", 0),
    "armbian-fat": Layout(
        "label: dos\nstart=8192, size=16384, type=c\nstart=24576, size=16384, type=83\n",
        1,
        0,
        "armbi_boot",
        (("armbianEnv.txt", b"verbosity=1\n"), ("armbian_first_run.txt.template", b"FR_=1\n")),
    ),
}


def make(layout: Layout, image: Path) -> Path:
    """Write such an image, of some 30 MiB, most of it holes."""
    rows = [_row(line) for line in layout.table.splitlines() if "start=" in line]
    end = max(start + size for start, size in rows) * SECTOR_BYTES
    with image.open("wb") as file:
        file.truncate(end + MIB)
    _run("sfdisk", "--quiet", image, given=layout.table)
    with image.open("r+b") as file:
        file.seek(rows[layout.system][0] * SECTOR_BYTES)
        file.write(SYSTEM)
    if layout.fat is not None:
        start, size = rows[layout.fat]
        label = ("-n", layout.label) if layout.label else ()
        where = ("--offset", start, image, size * SECTOR_BYTES // 1024)
        _run("mkfs.vfat", *label, "-S", SECTOR_BYTES, *where)
        for name, content in layout.files:
            _run("mcopy", "-i", f"{image}@@{start * SECTOR_BYTES}", "-", f"::{name}", given=content)
    return image


def system_of(layout: Layout, image: Path) -> bytes:
    """What stands where the system is."""
    rows = [_row(line) for line in layout.table.splitlines() if "start=" in line]
    with image.open("rb") as file:
        file.seek(rows[layout.system][0] * SECTOR_BYTES)
        return file.read(len(SYSTEM))


def _row(line: str) -> tuple[int, int]:
    words = dict(
        word.strip().split("=", 1) for word in line.rsplit(": ", maxsplit=1)[-1].split(",")
    )
    return int(words["start"]), int(words["size"])


def _run(*command: object, given: str | bytes = b"") -> None:
    subprocess.run(
        [str(word) for word in command],
        input=given.encode() if isinstance(given, str) else given,
        env={"PATH": "/usr/sbin:/sbin:/usr/bin:/bin", "MTOOLS_SKIP_CHECK": "1"},
        capture_output=True,
        check=True,
    )
