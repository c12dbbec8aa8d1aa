"""From an empty board to a revoked one with real programs: broker, controller and agent over mutual TLS."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest
from tests.support.board import short_folder
from tests.support.enrolled_fleet import NODE, EnrolledFleet
from tests.support.programs import output_of

pytestmark = pytest.mark.system


@pytest.fixture
async def fleet():
    with short_folder() as folder:
        fleet = EnrolledFleet(folder)
        fleet.prepare()
        yield fleet


async def modules_of(agent, folder: Path) -> set[str]:
    agent.signal(signal.SIGUSR1)
    async with asyncio.timeout(5):
        while not (folder / "modules").exists():  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.01)
    return set((folder / "modules").read_text().splitlines())


@pytest.mark.timeout(90)
async def test_a_board_enrols_with_a_token_serves_a_command_and_is_out_once_it_is_revoked(fleet):
    async with fleet.broker() as broker, fleet.controller() as controller:
        token = fleet.folder / "token"
        await fleet.shoal("token", "create", "--group", "oslo", "--out", token)
        async with fleet.agent(token_file=token) as agent:
            node = await fleet.until_node(lambda node: node["online"] and node["reported"])
            assert node["labels"] == {"group": "oslo"}
            assert node["identity"]["key"] == f"sha256:{fleet.store.facts().key}"
            assert not token.exists()
            assert "uptime_s" in await fleet.shoal("send", NODE, "ping")
            assert not await modules_of(agent, fleet.folder) & {"cryptography", "_cffi_backend"}
            # It waits to see that the node stays away.
            found = await fleet.ask("POST", f"/api/nodes/{NODE}/revoke", {"reason": "stolen"})
            assert found["certificates"] == 1
            # The connection ends, and the next one is refused.
            await agent.until_said("identity refused", timeout_s=20)
            assert "certificate revoked" in agent.log
        shown = await fleet.ask("GET", f"/api/nodes/{NODE}")
        assert (shown["identity"]["reason"], shown["online"]) == ("stolen", False)
        # Nor does the board get another certificate.
        code, _, error = await output_of(
            "shoal_agent", "enrol", "--config", fleet.folder / "agent.toml"
        )
        assert (code, "was revoked" in error) == (1, True)
        assert "Traceback" not in controller.log + agent.log + broker.log


@pytest.mark.timeout(90)
async def test_a_board_without_a_token_runs_waits_and_joins_when_it_is_accepted(fleet):
    async with fleet.broker(), fleet.controller() as controller:
        async with fleet.agent() as agent:
            await agent.until_said("enrolment is pending")
            (row,) = await fleet.ask("GET", "/api/pending")
            assert row["fingerprint"] in agent.log
            assert fleet.store.facts() is None
            await fleet.ask(
                "POST", f"/api/pending/{NODE}/accept", {"fingerprint": row["fingerprint"]}
            )
        # Started again, not to wait for its next attempt: it asks with the same key.
        async with fleet.agent() as agent:
            await fleet.until_node(lambda node: node["online"])
            assert f"sha256:{fleet.store.facts().key}" == row["fingerprint"]
            assert "Traceback" not in controller.log + agent.log


@pytest.mark.timeout(90)
async def test_certificates_that_live_for_seconds_are_renewed_and_the_session_goes_on(fleet):
    async with fleet.broker(), fleet.controller(days=30 / 86400):
        token = await fleet.token_file()
        async with fleet.agent(token_file=token) as agent:
            await fleet.until_node(lambda node: node["online"])
            first = fleet.store.facts()
            await agent.until_said("certificate renewed", timeout_s=80)
            assert fleet.store.facts().key != first.key
            await fleet.until_node(
                lambda node: node["identity"]["how"] == "renewed" and node["online"]
            )
            assert "uptime_s" in await fleet.shoal("send", NODE, "ping")
            assert "identity refused" not in agent.log


@pytest.mark.timeout(90)
async def test_a_wrong_pin_keeps_the_board_to_itself(fleet):
    async with fleet.broker(), fleet.controller():
        token = await fleet.token_file()
        async with fleet.agent(token_file=token, pin="sha256:" + "00" * 32) as agent:
            await agent.until_said("enrolment door not trusted")
        assert token.exists()
        assert [one["state"] for one in await fleet.ask("GET", "/api/tokens")] == ["open"]
        assert await fleet.ask("GET", "/api/nodes") == []
