#!/usr/bin/python
# Copyright: The Shoal authors
# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: EXE001 - Ansible asks for the first line and runs the file by itself
"""Ansible module: makes an image a board from a stock image and a table of boards, and may write one onto a card.

Boots nothing, mounts nothing and needs no root for image files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.shoal.edge.plugins.module_utils import (
    board_device,
    board_disk,
    board_seed,
    board_table,
)

DOCUMENTATION = r"""
module: board_image
short_description: Make an image for every board of a table from a stock image
version_added: 0.1.0
description:
  - Copies a vendor's image once for each line of a table, and puts onto it what makes it that board at its first boot, namely a
    host name, SSH keys, the network, Shoal's release tree and configuration, and a token that enrols it once.
  - The image is not booted and nothing is mounted. It runs on the control machine.
  - An image whose seed is already the wanted one is left alone.
  - Needs the packages fdisk, mtools and dosfstools.
options:
  image:
    description: The stock image, a C(.img), C(.raw) or C(.img.xz) file of a whole disk.
    type: path
    required: true
  checksum:
    description: The sha256 of that file as its vendor publishes it.
    type: str
    required: true
  boards:
    description: The table, a CSV file with the columns node and token, and if wanted address, gateway and dns.
    type: path
    required: true
  release:
    description: The release tree that C(tools/release-tree) built for these boards with the role agent.
    type: path
    required: true
  out:
    description: The folder of the images. It is made when it is not there, for the owner alone.
    type: path
    required: true
  form:
    description:
      - V(cidata) adds a partition that cloud-init finds by its label (Debian, Ubuntu, Armbian with cloud-init).
      - V(bootfs) uses the boot partition (Raspberry Pi OS since Debian 13, Ubuntu for Raspberry Pi).
    type: str
    choices: [cidata, bootfs]
    default: cidata
  size_bytes:
    description:
      - The size of the images with O(form=cidata), not above the smallest card's. The system may grow up to the seed.
    type: int
  user:
    description: Who logs in by SSH.
    type: str
    default: shoal-admin
  keys:
    description: Lines of authorized_keys for that user.
    type: list
    elements: str
    default: []
  broker_host:
    description: Name or address of the broker.
    type: str
    required: true
  broker_port:
    description: Its TCP port, with TLS.
    type: int
    default: 8883
  enrol_url:
    description: The controller's enrolment door, such as C(https://controller.example.net:8884).
    type: str
    required: true
  ca_pin:
    description: The sha256 of the fleet's authority, as C(shoal ca init) prints it.
    type: str
    required: true
  root:
    description: The first level of every topic of the fleet.
    type: str
    default: shoal
  wifi_ssid:
    description: The Wi-Fi network to join.
    type: str
    default: ""
  wifi_password:
    description: Its password. It stays on the boards.
    type: str
    default: ""
  wifi_country:
    description: The two letters of the country whose rules the radio follows.
    type: str
    default: ""
  only:
    description: The nodes of the table to make, all when it is empty.
    type: list
    elements: str
    default: []
  device:
    description: A removable disk to write the one board's image onto, such as C(/dev/sdb). Everything on it is lost.
    type: path
  confirm_bytes:
    description: The size of that device. Without it, the module refuses and says it.
    type: int
attributes:
  check_mode:
    description: Says what would be made without making it.
    support: full
  diff_mode:
    description: There is no diff of an image.
    support: none
author:
  - The Shoal authors
"""

EXAMPLES = r"""
- name: Make the images of boards.csv
  shoal.edge.board_image:
    image: debian-12-generic-arm64.raw
    checksum: 8d2c0d1bb0f8bd57ed1ddcdb2d3b3b5f0b5b0ddcf5b6f5f3a9a4dcbd6b5d0f4e
    boards: boards.csv
    release: dist/agent-aarch64.tar.gz
    out: images
    keys: ["{{ lookup('ansible.builtin.file', '~/.ssh/id_ed25519.pub') }}"]
    broker_host: broker.example.net
    enrol_url: https://controller.example.net:8884
    ca_pin: sha256:5f0d4a
"""

RETURN = r"""
images:
  description: The image of each board, by node.
  returned: always
  type: dict
  sample: {"press-4": "images/press-4.img"}
made:
  description: The nodes whose images were made, or would be.
  returned: always
  type: list
  elements: str
written:
  description: Whether the device was written, or would be.
  returned: always
  type: bool
"""


def main() -> None:
    """What Ansible runs."""
    module = AnsibleModule(
        argument_spec={
            "image": {"type": "path", "required": True},
            "checksum": {"type": "str", "required": True},
            "boards": {"type": "path", "required": True},
            "release": {"type": "path", "required": True},
            "out": {"type": "path", "required": True},
            "form": {"type": "str", "choices": ["cidata", "bootfs"], "default": "cidata"},
            "size_bytes": {"type": "int"},
            "user": {"type": "str", "default": "shoal-admin"},
            "keys": {"type": "list", "elements": "str", "default": [], "no_log": False},
            "broker_host": {"type": "str", "required": True},
            "broker_port": {"type": "int", "default": 8883},
            "enrol_url": {"type": "str", "required": True},
            "ca_pin": {"type": "str", "required": True},
            "root": {"type": "str", "default": "shoal"},
            "wifi_ssid": {"type": "str", "default": ""},
            "wifi_password": {"type": "str", "default": "", "no_log": True},
            "wifi_country": {"type": "str", "default": ""},
            "only": {"type": "list", "elements": "str", "default": []},
            "device": {"type": "path"},
            "confirm_bytes": {"type": "int"},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**_run(module.params, check_mode=module.check_mode))
    except board_table.TableError as exc:
        module.fail_json(msg=f"{module.params['boards']}: {exc}")
    except (board_seed.SeedError, board_disk.DiskError) as exc:
        module.fail_json(msg=str(exc))
    except OSError as exc:
        module.fail_json(msg=f"{exc.filename or 'this machine'}: {exc.strerror}")


def _run(params: dict[str, Any], *, check_mode: bool) -> dict[str, Any]:
    missing = board_disk.missing_tools()
    if missing:
        raise board_disk.DiskError(
            f"{', '.join(missing)}: not installed here (Debian: fdisk mtools dosfstools)"
        )
    boards = _wanted(Path(params["boards"]), params["only"])
    if params["device"] and len(boards) != 1:
        raise board_disk.DiskError(f"a device is one board, not {len(boards)}: say which in only")
    names = board_seed.Settings.__dataclass_fields__
    settings = board_seed.Settings(
        **{name: params[name] for name in names if name != "keys"}, keys=tuple(params["keys"])
    )
    release = Path(params["release"])
    seeds = {board.node: board_seed.files(board, settings) for board in boards}
    copies = {"shoal/release.tar.gz": release}
    release.stat()
    out = Path(params["out"])
    stock = Path(params["image"])
    board_disk.check_stock(stock, params["checksum"])
    images = {node: out / f"{node}.img" for node in seeds}
    made = [
        node
        for node, image in images.items()
        if not _has(image, params["form"], seeds[node], copies)
    ]
    if made and not check_mode:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make({node: seeds[node] for node in made}, images, stock, copies, params)
    written = _write(params, next(iter(images.values())), made=bool(made), check_mode=check_mode)
    return {
        "changed": bool(made) or written,
        "images": {node: str(image) for node, image in images.items()},
        "made": made,
        "written": written,
    }


def _wanted(table: Path, only: list[str]) -> list[board_table.Board]:
    with table.open("rb") as file:
        content = file.read(board_table.MAX_TABLE_BYTES + 1)
    boards = board_table.parse(content)
    unknown = set(only) - {board.node for board in boards}
    if unknown:
        raise board_table.TableError(f"there is no node {', '.join(sorted(unknown))}")
    return [board for board in boards if not only or board.node in only]


def _has(image: Path, form: str, seed: dict[str, bytes], copies: dict[str, Path]) -> bool:
    """Whether the image is there with exactly this seed on it."""
    if not image.is_file():
        return False
    try:
        board_disk.check(image, _start(image, form), seed, copies)
    except board_disk.DiskError:
        return False
    return True


def _start(image: Path, form: str) -> int:
    if form == "bootfs":
        return board_disk.boot_partition(image)
    return board_disk.seed_partition(image)


def _make(
    seeds: dict[str, dict[str, bytes]],
    images: dict[str, Path],
    stock: Path,
    copies: dict[str, Path],
    params: dict[str, Any],
) -> None:
    """Each image under its name when it is whole and has been read back, not before."""
    # Holds what all have in common and nothing of any board: what a FAT once held can be found on it later.
    common = Path(params["out"]) / ".common.part"
    try:
        board_disk.copy_stock(stock, common)
        if params["form"] == "bootfs":
            start = board_disk.boot_partition(common)
            board_disk.check_reads_seed(common, start)
        else:
            seed_bytes = max(sum(map(len, seed.values())) for seed in seeds.values())
            seed_bytes += sum(path.stat().st_size for path in copies.values())
            start = board_disk.add_seed_partition(
                common, seed_bytes, size_bytes=params["size_bytes"]
            )
        board_disk.put(common, start, {}, copies)
        for node, seed in seeds.items():
            _make_one(common, start, images[node], seed, copies)
    finally:
        common.unlink(missing_ok=True)


def _make_one(
    common: Path, start: int, image: Path, seed: dict[str, bytes], copies: dict[str, Path]
) -> None:
    part = image.with_name(f".{image.name}.part")
    try:
        board_disk.copy_sparse(common, part)
        board_disk.put(part, start, seed, {})
        board_disk.check(part, start, seed, copies)
        board_disk.sync(part)
        part.replace(image)
        board_disk.sync(image)
    finally:
        part.unlink(missing_ok=True)


def _write(params: dict[str, Any], image: Path, *, made: bool, check_mode: bool) -> bool:
    """Whether the device was written, or would be. Raises DiskError: it may not be."""
    if not params["device"]:
        return False
    device = Path(params["device"])
    size = image.stat().st_size if image.exists() else 0
    facts = board_device.read_facts(device)
    why = board_device.refusal(facts, image_bytes=size, confirmed_bytes=params["confirm_bytes"])
    if why:
        raise board_disk.DiskError(why)
    if not made and board_device.is_written(image, device):
        return False
    if not check_mode:
        board_device.write(image, device)
    return True


if __name__ == "__main__":
    main()
