"""What the tests of the emulated board have in common: its card flashed by the playbook, power, first boot, and what it shows of itself."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from tests.board.emulated import HOST, EmulatedBoard
from tests.board.fleet_side import FleetSide
from tests.deploy import ansible_venv

import shoal_fleet.digits

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAMS = (
    "qemu-system-aarch64",
    "mmdebstrap",
    "mke2fs",
    "sfdisk",
    "mcopy",
    "mkfs.vfat",
    "depmod",
    "cpio",
)
MISSING = [
    program
    for program in PROGRAMS
    if shutil.which(program, path="/usr/sbin:/sbin:/usr/bin:/bin") is None
]
NODE = "press-4"
# What the board said on its serial line outlives the test.
KEPT = REPOSITORY / "build/board"
DIGITS = Path(shoal_fleet.digits.__file__).parent
# Emulation is slow, and slower beside other work: what takes so long is broken.
BOOT_TIMEOUT_S = 1200.0
STEP_TIMEOUT_S = 600.0

MARKS = [
    pytest.mark.long,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    ansible_venv.needs_ansible,
]

# On the board and here: what ONNX Runtime makes of the same made-up pictures of grey levels, as bytes.
OUTPUTS = """
import hashlib, json, platform, sys
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
pictures = (numpy.arange(64 * 64) * 7919 % 8191 % 17 / 16).astype(numpy.float32).reshape(64, 1, 8, 8)
out = session.run(None, {session.get_inputs()[0].name: pictures})[0]
print(json.dumps({"machine": platform.machine(), "runtime": onnxruntime.__version__, "shape": out.shape,
    "sha256": hashlib.sha256(out.tobytes()).hexdigest(), "rows": out.tolist()}))
"""


def stock_image() -> Path:
    """The folder of the stock image, its kernel and first stage."""
    KEPT.mkdir(parents=True, exist_ok=True)
    made = subprocess.run(
        [REPOSITORY / "tests/board/make-stock-image"],
        stdout=subprocess.PIPE,
        text=True,
        timeout=1500,
        check=True,
    )
    return Path(made.stdout.strip())


async def flashed(folder: Path, fleet: FleetSide, stock: Path, release: Path) -> Path:
    """The image that flash.yml makes of the stock image for NODE, with a token of the fleet's."""
    await asyncio.to_thread(_make_key, folder / "key")
    (folder / "counts").mkdir()
    await fleet.shoal("token", "create", "--node", NODE, "--out", folder / "token")
    token = (folder / "token").read_text().split()[0]
    (folder / "boards.csv").write_text(f"node,token\n{NODE},{token}\n")
    flashing_s = time.monotonic()
    image = await asyncio.to_thread(_flash, folder, fleet, stock, release)
    say(f"flash.yml wrote {image.name} in {time.monotonic() - flashing_s:.0f} s")
    return image


def sent_bytes(folder: Path) -> int:
    """To the board, over all its connections but SSH."""
    return sum(int(path.read_text() or 0) for path in (folder / "counts").iterdir())


def _make_key(key: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)


def _flash(folder: Path, fleet: FleetSide, stock: Path, release: Path) -> Path:
    """Run the playbook as a person does, twice: the second time there is nothing to do."""
    ansible_venv.install_collection(folder)
    settings = {
        "shoal_flash_image": str(stock / "disk.img"),
        "shoal_flash_checksum": (stock / "disk.img.sha256").read_text().split()[0],
        "shoal_flash_boards": str(folder / "boards.csv"),
        "shoal_flash_release": str(release),
        "shoal_flash_out": str(folder / "images"),
        "shoal_flash_keys": [(folder / "key.pub").read_text().strip()],
        "shoal_flash_broker_host": HOST,
        "shoal_flash_broker_port": fleet.broker_port,
        "shoal_flash_enrol_url": f"https://{HOST}:{fleet.door_port}",
        "shoal_flash_ca_pin": fleet.pin,
    }
    (folder / "flash.json").write_text(json.dumps(settings))
    for changed in (1, 0):
        done = ansible_venv.run(
            *("ansible-playbook", "shoal.edge.flash", "--inventory", "localhost,"),
            *("--extra-vars", f"@{folder}/flash.json"),
            home=folder,
            timeout_s=600,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"changed={changed} " in done.stdout, done.stdout
    return folder / f"images/{NODE}.img"


def powered(
    image: Path, stock: Path, folder: Path, fleet: FleetSide, *, cpu: str
) -> AbstractContextManager[EmulatedBoard]:
    """The board with this card, running until the block ends."""
    return EmulatedBoard.open(
        image,
        kernel=stock / "vmlinuz",
        initrd=stock / "initrd",
        cpu=cpu,
        key=folder / "key",
        console=KEPT / f"console-{cpu}.log",
        ports=(fleet.broker_port, fleet.door_port),
        counts=folder / "counts",
    )


async def first_boot(board: EmulatedBoard, fleet: FleetSide) -> None:
    """Nobody touches the board until it is in the fleet; then look at it by SSH."""
    started_s = time.monotonic()
    try:
        await fleet.until_node(
            NODE, lambda node: node["online"] and node["reported"], timeout_s=BOOT_TIMEOUT_S
        )
    except AssertionError as exc:
        raise AssertionError(f"{exc}; its console: {board.tail()}") from exc
    say(f"power on -> in `shoal nodes`: {time.monotonic() - started_s:.0f} s here, 0 hand steps")
    up = await asyncio.to_thread(
        board.until, "cut -d' ' -f1 /proc/uptime", timeout_s=STEP_TIMEOUT_S
    )
    say(f"the board's own clock, a moment later: {float(up):.0f} s since its start")
    await asyncio.to_thread(
        board.until,
        "test -e /opt/shoal/seeded && systemctl is-active shoal-agent",
        timeout_s=STEP_TIMEOUT_S,
    )
    used = await asyncio.to_thread(board.run, "systemctl show -P CPUUsageNSec shoal-agent")
    say(f"processor time of the agent by then: {int(used) / 1e9:.1f} s, enrolment included")
    # The script's last act is to take the card's partition away.
    left = await asyncio.to_thread(
        board.until,
        "! mountpoint -q /run/shoal-seed && mkdir -p /mnt/card && mount -o ro /dev/vda2 /mnt/card"
        " && ls /mnt/card/shoal && umount /mnt/card && ls /var/lib/shoal && hostname",
        timeout_s=STEP_TIMEOUT_S,
    )
    assert "release.tar.gz" in left.split()
    assert "token" not in left.split(), left
    assert NODE in left.split()


def is_closed_in(board: EmulatedBoard, fleet: FleetSide) -> None:
    """The board reaches the two ports that it was given, and nothing else: no name server, not even this machine's address."""
    program = (
        "import socket\n"
        "def reached(host, port):\n"
        "    try: socket.create_connection((host, port), 5).close()\n"
        "    except OSError: return False\n"
        "    return True\n"
        f"print(reached('{HOST}', {fleet.door_port}), reached('10.0.2.2', {fleet.door_port}), reached('10.0.2.3', 53))"
    )
    assert board.run(f'python3 -c "{program}"').split() == ["True", "False", "False"]


async def serves(fleet: FleetSide, name: str) -> None:
    """Want a release of digits on the board, and wait until it serves."""
    wanted = await fleet.serve(NODE, DIGITS / name)
    started_s = time.monotonic()
    node = await fleet.until_node(
        NODE, lambda node: model(node).get("release") == wanted, timeout_s=STEP_TIMEOUT_S
    )
    say(f"{name} serves {time.monotonic() - started_s:.0f} s after it was wanted")
    assert model(node)["residence"] == "serving"


def model(node: dict[str, Any]) -> dict[str, Any]:
    """What the node reports of its one model."""
    models = (node.get("reported") or {}).get("models") or []
    models = models if isinstance(models, list) else list(models.values())
    return models[0] if models else {}


def computes_the_same(board: EmulatedBoard, name: str = "v1") -> None:
    """INT8 outputs by the board's wheel and by ours."""
    model = DIGITS / name / "model.onnx"
    here = subprocess.run(
        [sys.executable, "-c", OUTPUTS, model], capture_output=True, text=True, check=True
    )
    ours = json.loads(here.stdout)
    board.send(model, "model.onnx")
    board.send(OUTPUTS.encode(), "outputs.py")
    theirs = json.loads(
        board.run(
            "PYTHONPATH=/opt/shoal/current/lib python3 outputs.py model.onnx",
            timeout_s=STEP_TIMEOUT_S,
        )
    )
    assert (theirs["machine"], theirs["shape"]) == ("aarch64", ours["shape"])
    assert theirs["runtime"] == ours["runtime"]
    gap = max(
        abs(a - b)
        for x, y in zip(ours["rows"], theirs["rows"], strict=True)
        for a, b in zip(x, y, strict=True)
    )
    say(
        f"{name}, onnxruntime {theirs['runtime']}: outputs {'equal bit for bit' if ours['sha256'] == theirs['sha256'] else f'differ by at most {gap:.3g}'}"
    )
    assert [_best(row) for row in theirs["rows"]] == [_best(row) for row in ours["rows"]]
    assert gap <= 1e-4


def _best(row: list[float]) -> int:
    return row.index(max(row))


def weigh(board: EmulatedBoard, release: Path) -> None:
    """What the agent takes on arm64, with one small model."""
    for part, module in (("core", "shoal_agent --config"), ("worker", "worker_main")):
        pss_kib = board.run(
            f"awk '/^Pss:/ {{ print $2 }}' /proc/$(pgrep -o -u shoal -f '{module}')/smaps_rollup"
        )
        say(f"PSS of the {part}: {int(pss_kib) / 1024:.1f} MiB")
    mib = int(board.run("du -sm /opt/shoal/releases | cut -f1"))
    say(f"a release tree: {release.stat().st_size / 1e6:.1f} MB on the card, {mib} MiB unpacked")


def say(line: str) -> None:
    """A figure, for whoever reads the run."""
    print(f"board: {line}", flush=True)
