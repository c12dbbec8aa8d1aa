"""The playbooks on the emulated arm64 board: site, upgrade, one that is broken, and the power cut in the middle of one."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.board import first_boot as card
from tests.board.emulated import HOST, USER, BoardError, EmulatedBoard
from tests.board.fleet_side import FleetSide
from tests.deploy import ansible_venv, release_trees
from tests.support.board import short_folder

from shoal_fleet.identity.issuing import issue_files

FIRST, SECOND, BROKEN = "0.1.0", "0.1.0+second", "0.1.0+broken"
PLAY_TIMEOUT_S = 1800.0
# What the board was sent, over SSH and all else; and its own clock since its start.
RECEIVED = "cat /sys/class/net/e*/statistics/rx_bytes"
UPTIME = "cut -d' ' -f1 /proc/uptime"

pytestmark = card.MARKS


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The release the board was flashed with, the next one, and one that cannot serve what was served."""
    scratch = tmp_path_factory.mktemp("trees")
    wheel = release_trees.wheel(scratch)

    def made(name: str, *, version: str | None = None, without: str | None = None) -> Path:
        return release_trees.build(
            scratch / name, "agent", wheel=wheel, arch="aarch64", version=version, without=without
        )

    return {
        FIRST: made("board.tar.gz"),
        SECOND: made("board-2.tar.gz", version=SECOND),
        BROKEN: made("broken.tar.gz", version=BROKEN, without=r"onnxruntime/capi/"),
    }


@dataclass(frozen=True, slots=True)
class Control:
    """The control machine: its folder, and the fleet as it sees it."""

    folder: Path
    fleet: FleetSide

    def inventory(self, board: EmulatedBoard, release: Path) -> None:
        """Write inventory.yml for the board as it runs now."""
        control = self.folder / "control"
        ssh = (
            f"-F none -o IdentitiesOnly=yes -o StrictHostKeyChecking=no"
            f" -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -i {self.folder}/key"
        )
        settings = {
            "ansible_host": "127.0.0.1",
            "ansible_port": board.ssh_port,
            "ansible_user": USER,
            "ansible_ssh_common_args": ssh,
            "ansible_ssh_timeout": 60,
            "ansible_control_path_dir": str(self.folder / "s"),
            "shoal_control_python": sys.executable,
            "shoal_control_dir": str(control),
            # The board's address of it is no address here.
            "shoal_control_broker_host": "localhost",
            "shoal_agent_release": str(release),
            "shoal_agent_broker_host": HOST,
            "shoal_agent_broker_port": self.fleet.broker_port,
            "shoal_agent_broker_transport": "codec",
            "shoal_agent_enrolment_url": f"https://{HOST}:{self.fleet.door_port}",
            "shoal_agent_enrolment_ca_pin": self.fleet.pin,
            # Without a way out there is nobody who would set its clock.
            "shoal_agent_time_check": False,
        }
        (self.folder / "inventory.yml").write_text(
            json.dumps({"boards": {"hosts": {card.NODE: settings}}})
        )

    def command(self, playbook: str, **settings: object) -> list[str]:
        """The words of a run."""
        more = ["-e", json.dumps(settings)] if settings else []
        play = str(ansible_venv.BIN / "ansible-playbook")
        return [play, f"shoal.edge.{playbook}", "-i", str(self.folder / "inventory.yml"), *more]

    def play(self, playbook: str, **settings: object) -> tuple[int, str]:
        """Status and output of a run, whose length is told."""
        started_s = time.monotonic()
        done = subprocess.run(
            self.command(playbook, **settings),
            env=ansible_venv.environment(self.folder),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=PLAY_TIMEOUT_S,
            check=False,
        )
        (card.KEPT / f"{playbook}-{int(started_s)}.log").write_text(done.stdout + done.stderr)
        changed = re.findall(rf"^{card.NODE} +:.* changed=(\d+)", done.stdout, re.MULTILINE)
        card.say(
            f"{playbook}.yml: status {done.returncode}, changed={'+'.join(changed)},"
            f" {time.monotonic() - started_s:.0f} s"
        )
        return done.returncode, done.stdout + done.stderr


async def test_the_playbooks_converge_upgrade_and_bring_back_a_board_that_may_lose_its_power(
    trees: dict[str, Path],
) -> None:
    stock = await asyncio.to_thread(card.stock_image)
    with short_folder() as folder:
        async with FleetSide.open(folder) as fleet:
            control = Control(folder, fleet)
            _prepare(folder)
            image = await card.flashed(folder, fleet, stock, trees[FIRST])
            with card.powered(image, stock, folder, fleet, cpu="cortex-a72") as board:
                await card.first_boot(board, fleet)
                await asyncio.to_thread(card.is_closed_in, board, fleet)
                control.inventory(board, trees[FIRST])
                await _converges(control, board)
                await card.serves(fleet, "v1")
                await _starts_again(fleet, board)
                control.inventory(board, trees[SECOND])
                await asyncio.to_thread(_cut_while_it_unpacks, control, board)
            # The same card in an older board: ARMv8.0, as in a Raspberry Pi 3.
            with card.powered(image, stock, folder, fleet, cpu="cortex-a53") as board:
                started_s = time.monotonic()
                # Its clock starts with that of this machine; what it said before the cut is not what counts.
                on_ms = int(time.time() * 1000)
                await _runs(fleet, FIRST, since_ms=on_ms, timeout_s=card.BOOT_TIMEOUT_S)
                card.say(f"{FIRST} serves {time.monotonic() - started_s:.0f} s after the cut")
                control.inventory(board, trees[SECOND])
                await asyncio.to_thread(
                    board.until, "systemctl is-active shoal-agent", timeout_s=card.STEP_TIMEOUT_S
                )
                status, said = await asyncio.to_thread(control.play, "upgrade")
                assert status == 0, said
                await _runs(fleet, SECOND)
                control.inventory(board, trees[BROKEN])
                status, said = await asyncio.to_thread(
                    control.play, "upgrade", shoal_upgrade_timeout_s=90
                )
                assert status != 0
                assert f"went back to {SECOND}" in " ".join(said.split()), said
                await _runs(fleet, SECOND)
                await asyncio.to_thread(card.computes_the_same, board)
                assert "uptime_s" in await fleet.shoal("send", card.NODE, "ping")


def _prepare(folder: Path) -> None:
    """Who the control machine is at the broker."""
    (folder / "s").mkdir(mode=0o700)
    control = folder / "control"
    control.mkdir(mode=0o700)
    issue_files(folder / "ca", "ansible", out=control, hosts=[], days=2, passphrase=None)
    (control / "ca.crt").write_bytes((folder / "ca/ca.crt").read_bytes())


async def _converges(control: Control, board: EmulatedBoard) -> None:
    """The hardened unit and the settings; a second run finds nothing to do."""
    before_bytes = int(await asyncio.to_thread(board.run, RECEIVED))
    status, said = await asyncio.to_thread(control.play, "site")
    assert status == 0, said
    sent_bytes = int(await asyncio.to_thread(board.run, RECEIVED)) - before_bytes
    card.say(f"site.yml sent to the board: {sent_bytes} bytes")
    up = float(await asyncio.to_thread(board.run, UPTIME))
    card.say(f"bare board -> converged: {up / 60:.1f} minutes of its own clock")
    shown = await asyncio.to_thread(board.run, "systemctl show -P Type shoal-agent")
    assert shown.strip() == "notify"
    status, said = await asyncio.to_thread(control.play, "site")
    assert status == 0, said
    assert re.search(rf"^{card.NODE} +:.* changed=0 ", said, re.MULTILINE), said


async def _starts_again(fleet: FleetSide, board: EmulatedBoard) -> None:
    """What a start costs until the model serves again, and what there is on the card."""
    up = float(await asyncio.to_thread(board.run, UPTIME))
    card.say(f"v1 serves at {up / 60:.1f} minutes of its own clock, both runs of site.yml before")
    again = "systemctl stop shoal-agent && date +%s%3N && systemctl start shoal-agent"
    stopped_ms = int(await asyncio.to_thread(board.run, again, timeout_s=card.STEP_TIMEOUT_S))
    await _runs(fleet, FIRST, since_ms=stopped_ms)
    used = await asyncio.to_thread(board.run, "systemctl show -P CPUUsageNSec shoal-agent")
    card.say(f"processor time of the agent from a start to serving: {int(used) / 1e9:.1f} s")
    for path in ("/opt/shoal/releases", "/var/lib/shoal"):
        mib = await asyncio.to_thread(board.run, f"du -sm {path} | cut -f1")
        card.say(f"{path}: {mib.strip()} MiB")


def _cut_while_it_unpacks(control: Control, board: EmulatedBoard) -> None:
    """Pull the plug when a part of the new release is on the card."""
    with (card.KEPT / "upgrade-cut.log").open("wb") as log:
        play = subprocess.Popen(
            control.command("upgrade"),
            env=ansible_venv.environment(control.folder),
            cwd=control.folder,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            board.until(
                f"test -d '/opt/shoal/releases/.incoming/{SECOND}'", timeout_s=card.STEP_TIMEOUT_S
            )
            board.cut_power()
            play.wait(timeout=card.STEP_TIMEOUT_S)
        finally:
            if play.poll() is None:
                play.kill()
                play.wait(timeout=20)
    assert play.returncode != 0, "it was through before the plug was out"
    with pytest.raises(BoardError):
        board.run("true", timeout_s=20)
    card.say("power cut while it unpacked the next release")


async def _runs(
    fleet: FleetSide, version: str, *, since_ms: int = 0, timeout_s: float = card.STEP_TIMEOUT_S
) -> None:
    """The agent itself says, after `since_ms` of its clock, that it runs this release and serves."""
    await fleet.until_node(
        card.NODE,
        lambda node: (
            node["online"]
            and (node["reported"] or {}).get("version") == version
            and node["reported"]["at_ms"] > since_ms
            and card.model(node).get("residence") == "serving"
        ),
        timeout_s=timeout_s,
    )
