"""A bare arm64 board: the image that flash.yml writes boots, enrols, serves, is updated by a delta and loses its power on the way."""

from __future__ import annotations

import asyncio
import subprocess
import time
from pathlib import Path

import pytest
from tests.board import first_boot as card
from tests.board.fleet_side import FleetSide
from tests.support.board import short_folder

pytestmark = card.MARKS


@pytest.fixture(scope="module")
def stock() -> Path:
    return card.stock_image()


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tree") / "agent-aarch64.tar.gz"
    words = ("--python", "3.11", "--arch", "aarch64", "--role", "agent", out)
    subprocess.run([card.REPOSITORY / "tools/release-tree", *words], timeout=600, check=True)
    return out


async def test_a_bare_board_enrols_by_itself_serves_and_survives_a_power_cut_in_an_update(
    stock: Path, release: Path
) -> None:
    with short_folder() as folder:
        async with FleetSide.open(folder) as fleet:
            image = await card.flashed(folder, fleet, stock, release)
            with card.powered(image, stock, folder, fleet, cpu="cortex-a72") as board:
                await card.first_boot(board, fleet)
                await asyncio.to_thread(card.is_closed_in, board, fleet)
                assert "uptime_s" in await fleet.shoal("send", card.NODE, "ping")
                await card.serves(fleet, "v1")
                await asyncio.to_thread(card.computes_the_same, board)
                await asyncio.to_thread(card.weigh, board, release)
                # As if the first boot had been cut off before its last line: it is to be done again.
                await asyncio.to_thread(board.run, "rm /opt/shoal/seeded && sync")
                # The plug is pulled while the board takes v2, a delta from v1.
                before_bytes = card.sent_bytes(folder)
                card.say(f"sent to the board from power on to v1: {before_bytes} bytes")
                second = await fleet.serve(card.NODE, card.DIGITS / "v2")
                taking = await fleet.until_node(
                    card.NODE,
                    lambda node: (
                        card.model(node)["phase"] != "serving"
                        or card.model(node)["release"] == second
                    ),
                    timeout_s=card.STEP_TIMEOUT_S,
                )
                assert card.model(taking)["release"] != second, (
                    "it was through before the plug was out"
                )
                card.say(f"power cut while it was {card.model(taking)['phase']}")
                board.cut_power()
            # The same card in an older board: ARMv8.0, as in a Raspberry Pi 3.
            with card.powered(image, stock, folder, fleet, cpu="cortex-a53") as board:
                started_s = time.monotonic()
                node = await fleet.until_node(
                    card.NODE,
                    lambda node: node["online"] and card.model(node).get("release") == second,
                    timeout_s=card.BOOT_TIMEOUT_S,
                )
                card.say(
                    f"v2 serves {time.monotonic() - started_s:.0f} s after the power came back"
                )
                cost_bytes = card.sent_bytes(folder) - before_bytes
                model_bytes = (card.DIGITS / "v2/model.onnx").stat().st_size
                card.say(f"sent for v2, with a new session after the cut: {cost_bytes} bytes")
                assert cost_bytes < model_bytes, f"no delta: the model has {model_bytes} bytes"
                assert card.model(node)["residence"] == "serving"
                await asyncio.to_thread(card.computes_the_same, board, "v2")
                await asyncio.to_thread(
                    board.until, "test -e /opt/shoal/seeded", timeout_s=card.STEP_TIMEOUT_S
                )
                assert "uptime_s" in await fleet.shoal("send", card.NODE, "ping")
