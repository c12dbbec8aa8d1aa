"""The parts of a fleet that are chosen instead: the embedded broker, a controller on PostgreSQL, and a board with a bridge.

The same playbook on real systemds as in test_fleet; it converges, all of it works together, and a second run changes nothing.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from tests.deploy import ansible_venv, release_trees
from tests.deploy.ansible_venv import needs_ansible
from tests.deploy.guest import booted, debian_root, network, why_no_guest
from tests.deploy.test_fleet import SITE, Fleet, inventory, until
from tests.support.postgres import USER, Postgres, programs, running_postgres

BOARD = "press-1"
PASSWORD = "word-of-the-database"
# At the other end of a pseudo-terminal, from the board's own release.
METER = (
    "head -c 4000 /dev/zero > /run/scans.bin && systemd-run --quiet --unit=meter --uid=shoal"
    " --property=RuntimeDirectory=meter --setenv=PYTHONPATH=/opt/shoal/current/lib"
    " python3 -m shoal_firmware_bridge.simulated_mcu --name meter --samples /run/scans.bin"
    " --sample-bytes 40 --rate-hz 5 --pty-link /run/meter/tty --log /run/meter/log"
)

pytestmark = [
    pytest.mark.root,
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(why_no_guest() is not None, reason=f"no guest: {why_no_guest()}"),
    pytest.mark.skipif(programs() is None, reason="not installed: postgresql"),
    needs_ansible,
]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Fleet, Postgres]]:
    """A machine for controller and broker and a board, both bare, and a database server on this one."""
    scratch = tmp_path_factory.mktemp("parts")
    (scratch / "control").mkdir(mode=0o700)
    root = debian_root()
    trees = scratch / "dist"
    trees.mkdir()
    wheel = release_trees.wheel(scratch)
    release_trees.build(trees / "fleet.tar.gz", "fleet", "postgres", wheel=wheel)
    release_trees.build(trees / "board.tar.gz", "agent", "bridge", wheel=wheel)
    ansible_venv.install_collection(scratch)
    with ExitStack() as stack:
        sockets = stack.enter_context(tempfile.TemporaryDirectory(prefix="shoal-ssh-"))
        link = stack.enter_context(network())
        guests = []
        for number in (1, 2):
            folder = scratch / f"guest-{number}"
            folder.mkdir()
            guests.append(stack.enter_context(booted(root, folder, link, number)))
        hub, board = guests
        database = stack.enter_context(
            running_postgres(address=hub.host_address, network=f"{hub.host_address}/28")
        )
        database.sql(f"ALTER USER {USER} PASSWORD '{PASSWORD}'", "postgres")
        database.sql("CREATE DATABASE shoal", "postgres")
        fleet = Fleet(hub, {BOARD: board}, scratch)
        given = inventory(fleet, sockets)
        given["controllers"]["vars"] |= {
            "shoal_broker_kind": "embedded",
            "shoal_broker_release": str(trees / "fleet.tar.gz"),
            "shoal_fleet_database": {
                "url": f"postgresql+asyncpg://{USER}@{hub.host_address}/shoal",
                # Throw-away machines on a link of their own.
                "plaintext": True,
            },
            "shoal_fleet_database_password": PASSWORD,
        }
        given["boards"]["vars"] |= {
            "shoal_bridge_devices": [{"name": "meter", "link": "serial", "path": "/run/meter/tty"}],
            "shoal_agent_devices": [{"name": "meter", "socket": "/run/shoal-bridge/meter.sock"}],
        }
        (scratch / "inventory.yml").write_text(json.dumps(given))
        yield fleet, database


def test_controller_on_postgresql_embedded_broker_and_bridge_work_together(
    parts: tuple[Fleet, Postgres],
) -> None:
    fleet, database = parts
    for line in (
        f"{SITE} --limit controllers",
        "ansible-playbook shoal.edge.enrol -i inventory.yml",
    ):
        play = fleet.typed(line, nothing=None)
        assert play.status == 0, play.output
    assert json.loads(fleet.shoal("status --json"))["broker_connected"]
    assert fleet.hub.run("systemctl is-active shoal-broker shoal-fleet").split() == ["active"] * 2
    assert "mosquitto" not in fleet.hub.run("ss -tlnp 2>/dev/null || true")
    assert BOARD in database.sql("SELECT name FROM nodes", "shoal")
    assert PASSWORD not in fleet.hub.run("cat /opt/shoal-fleet/current/etc/*")
    guest = fleet.boards[BOARD]
    guest.run(METER)
    until(lambda: "meter" in str(fleet.node(BOARD)["reported"]["devices"]), 60)
    until(lambda: '"sample"' in guest.run("cat /run/meter/log"), 30)


def test_a_second_run_changes_nothing_of_these_parts_either(
    parts: tuple[Fleet, Postgres],
) -> None:
    fleet, _ = parts
    play = fleet.typed(SITE, nothing=None)
    assert play.status == 0, play.output
    for host in ("hub", BOARD):
        assert play.changed(host) == 0, play.output
