"""Debian's Mosquitto as it was rendered, and boards that enrol: from `shoal ca init` to one that is revoked."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tests.shoal_broker.render.rendered_mosquitto import RenderedMosquitto
from tests.support.board import short_folder
from tests.support.enrolled_fleet import NODE, EnrolledFleet
from tests.support.mosquitto import Mosquitto
from tests.support.programs import output_of

pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.skipif(
        Mosquitto.found() is None, reason="mosquitto is not installed (apt-get install mosquitto)"
    ),
]

OTHER = "board-2"


@pytest.fixture
async def fleet():
    """The authority and its certificates, made by the commands of the page on enrolment."""
    with short_folder() as folder:
        fleet = EnrolledFleet(folder)
        ca = folder / "ca"
        told = await fleet.shoal("ca", "init", "--dir", ca)
        fleet.pin = next(word for word in told.split() if word.startswith("sha256:"))
        await fleet.shoal(
            "ca", "issue", "broker", "--dir", ca, "--host", "localhost", "--out", folder
        )
        await fleet.shoal("ca", "issue", "shoal-controller", "--dir", ca, "--out", folder)
        (folder / "ca.crt").write_bytes((ca / "ca.crt").read_bytes())
        yield fleet


def rendered(fleet: EnrolledFleet) -> RenderedMosquitto:
    """What `shoal-broker render mosquitto` writes, with its line on revoked certificates in force."""
    certificates = SimpleNamespace(folder=fleet.folder, issue=lambda _: None)
    mosquitto = RenderedMosquitto(fleet.folder / "mosquitto", certificates)
    config = mosquitto.folder / "mosquitto.conf"
    line = f"# crlfile {fleet.folder}/revoked.pem"
    text = config.read_text()
    assert line in text
    config.write_text(text.replace(line, f"crlfile {fleet.folder}/ca/ca.crl"))
    fleet.broker_port = mosquitto.port
    return mosquitto


async def test_boards_enrol_serve_and_a_revoked_one_is_cut_off_while_the_other_goes_on(fleet):
    mosquitto = rendered(fleet)
    with mosquitto.running():
        reread = ("kill", "-HUP", str(mosquitto.pid))
        async with fleet.controller(reload_command=reread) as controller:
            tokens = [fleet.folder / name for name in ("token-1", "token-2")]
            for token in tokens:
                await fleet.shoal("token", "create", "--group", "oslo", "--out", token)
            async with (
                fleet.agent(token_file=tokens[0]) as agent,
                fleet.agent(token_file=tokens[1], node=OTHER, name="other") as other,
            ):
                for node in (NODE, OTHER):
                    found = await fleet.until_node(
                        lambda node: node["online"] and node["reported"], node=node
                    )
                    assert found["identity"]["how"]
                    assert "uptime_s" in await fleet.shoal("send", node, "ping")
                await fleet.shoal("nodes", "revoke", NODE, "--reason", "stolen")
                # The connection ends at once, and the next one is refused.
                await agent.until_said("identity refused", timeout_s=20)
                assert "certificate revoked" in agent.log
                assert "uptime_s" in await fleet.shoal("send", OTHER, "ping")
                assert "identity refused" not in other.log
            shown = await fleet.ask("GET", f"/api/nodes/{NODE}")
            assert (shown["identity"]["reason"], shown["online"]) == ("stolen", False)
            # It comes back with neither its certificate nor a new one; the other does.
            code, _, error = await output_of(
                "shoal_agent", "enrol", "--config", fleet.folder / "agent.toml"
            )
            assert (code, "was revoked" in error) == (1, True)
            async with (
                fleet.agent() as agent,
                fleet.agent(node=OTHER, name="other") as other,
            ):
                await fleet.until_node(lambda node: node["online"], node=OTHER)
                await agent.until_said("identity refused", timeout_s=20)
                assert "uptime_s" in await fleet.shoal("send", OTHER, "ping")
            assert not (await fleet.ask("GET", f"/api/nodes/{NODE}"))["online"]
            said = controller.log + agent.log + other.log
            assert "Traceback" not in said
            assert "node may still be connected" not in said
