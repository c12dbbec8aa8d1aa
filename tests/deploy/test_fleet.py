"""A fleet on real systemds: one machine for controller and broker, three boards, and every playbook on them.

The tests are steps: each goes on from where the one before has left the fleet. What docs/install.md tells to type from
the third step on is what is typed here.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.deploy import ansible_venv, release_trees
from tests.deploy.ansible_venv import REPOSITORY, needs_ansible
from tests.deploy.guest import Guest, booted, debian_root, network, why_no_guest

BOARDS = ("press-1", "press-2", "press-3")
SECTION = (
    (REPOSITORY / "docs/install.md")
    .read_text()
    .split("\n## From a box of boards")[1]
    .split("\n## ")[0]
)
PAGE = re.findall(r"^(?:ansible-playbook|shoal) .*", SECTION, re.MULTILINE)
SITE = "ansible-playbook shoal.edge.site -i inventory.yml"
FIRST, SECOND, BROKEN = "0.1.0", "0.1.0+second", "0.1.0+broken"
API_TOKEN = "word-of-the-local-api"
EXPOSURE_LIMIT = 1.5

# What a program on the board does: it asks the model that runs there, over the local API.
ASK = """
import json, urllib.request
base = "http://127.0.0.1:9751/v2/models/digits"
def ask(url, body=None):
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode())
    request.add_header("Authorization", "Bearer " + open("/etc/shoal/local-api-token").read().strip())
    request.add_header("Content-Type", "application/json")
    return json.load(urllib.request.urlopen(request, timeout=10))
inputs = ask(base)["inputs"]
for one in inputs:
    one["shape"] = [max(1, n) for n in one["shape"]]
    size = 1
    for n in one["shape"]:
        size *= n
    one["data"] = [0] * size
print(json.dumps(ask(base + "/infer", {"inputs": inputs})["outputs"]))
"""

TYPED: set[str] = set()

pytestmark = [
    pytest.mark.root,
    pytest.mark.system,
    pytest.mark.timeout(400),
    pytest.mark.skipif(why_no_guest() is not None, reason=f"no guest: {why_no_guest()}"),
    needs_ansible,
]


@dataclass(frozen=True, slots=True)
class Play:
    """What one run of ansible-playbook said."""

    status: int
    output: str

    def changed(self, host: str) -> int:
        counts = re.findall(rf"^{host} +:.* changed=(\d+)", self.output, re.MULTILINE)
        assert len(counts) == 1, self.output
        return int(counts[0])


@dataclass(frozen=True, slots=True)
class Fleet:
    """The guests, and the control machine's folder."""

    hub: Guest
    boards: dict[str, Guest]
    scratch: Path

    def typed(self, line: str, **settings: object) -> Play:
        """A line of docs/install.md, in a folder that holds what the page says; `settings` are ours."""
        if not settings:
            assert line in PAGE, line
            TYPED.add(line)
        else:
            line += f" -e '{json.dumps(settings)}'"
        control = self.scratch / "control"
        started_s = time.monotonic()
        done = subprocess.run(
            ["bash", "-c", line],
            env={
                **ansible_venv.environment(self.scratch),
                "PATH": f"{Path(sys.executable).parent}:{ansible_venv.BIN}:{os.environ['PATH']}",
                "SHOAL_STATE_DIR": str(control),
                "SHOAL_URL": f"https://{self.hub.address}:8750",
                "SHOAL_CA_FILE": str(control / "ca.crt"),
            },
            cwd=self.scratch,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        print(f"{time.monotonic() - started_s:5.1f} s  {line[:110]}")
        return Play(done.returncode, done.stdout + done.stderr)

    def shoal(self, line: str) -> str:
        """What the operator's command prints, on the control machine; no line of the page."""
        done = self.typed(f"shoal {line} #", nothing=None)
        assert done.status == 0, done.output
        return done.output

    def node(self, board: str) -> dict:
        return json.loads(self.shoal(f"nodes show {board} --json"))

    def current(self, board: str) -> str:
        return self.boards[board].run("basename $(readlink -f /opt/shoal/current)").strip()

    def serves(self, board: str) -> bool:
        """Whether a program on the board gets an answer of its model."""
        (output, *_) = json.loads(self.boards[board].run(f"python3 -c '{ASK}'"))
        return len(output["data"]) > 0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Four bare machines."""
    scratch = tmp_path_factory.mktemp("fleet")
    (scratch / "control").mkdir(mode=0o700)
    (scratch / "fleet").symlink_to(REPOSITORY / "fleet")
    root = debian_root()
    trees = scratch / "dist"
    trees.mkdir()
    wheel = release_trees.wheel(scratch)
    release_trees.build(trees / "fleet.tar.gz", "fleet", wheel=wheel)
    board = ("agent", "bridge")
    release_trees.build(trees / "board.tar.gz", *board, wheel=wheel)
    release_trees.build(trees / "board-2.tar.gz", *board, wheel=wheel, version=SECOND)
    # Starts, joins, says its version; what it served it cannot serve.
    release_trees.build(
        trees / "broken.tar.gz", *board, wheel=wheel, version=BROKEN, without=r"onnxruntime/capi/"
    )
    ansible_venv.install_collection(scratch)
    with ExitStack() as stack:
        sockets = stack.enter_context(tempfile.TemporaryDirectory(prefix="shoal-ssh-"))
        link = stack.enter_context(network())
        guests = []
        for number in range(1, len(BOARDS) + 2):
            folder = scratch / f"guest-{number}"
            folder.mkdir()
            guests.append(stack.enter_context(booted(root, folder, link, number)))
        hub, *boards = guests
        found = Fleet(hub, dict(zip(BOARDS, boards, strict=True)), scratch)
        (scratch / "inventory.yml").write_text(json.dumps(inventory(found, sockets)))
        yield found


def inventory(fleet: Fleet, sockets: str) -> dict:
    """What inventory.yml says of the guests."""
    control = fleet.scratch / "control"
    trees = fleet.scratch / "dist"

    def reached(guest: Guest) -> dict[str, object]:
        return {
            "ansible_host": guest.address,
            "ansible_ssh_common_args": " ".join(["-F", "none", *guest.ssh_options]),
        }

    return {
        "all": {
            "vars": {
                "ansible_user": "root",
                # A socket's path is short: the folder of the test's own files may be too long for it.
                "ansible_control_path_dir": sockets,
                "shoal_control_python": sys.executable,
                "shoal_control_dir": str(control),
                "shoal_control_url": f"https://{fleet.hub.address}:8750",
            }
        },
        "controllers": {
            "hosts": {"hub": reached(fleet.hub)},
            "vars": {"shoal_fleet_release": str(trees / "fleet.tar.gz")},
        },
        "boards": {
            "hosts": {name: reached(guest) for name, guest in fleet.boards.items()},
            "vars": {
                "shoal_agent_release": str(trees / "board.tar.gz"),
                "shoal_agent_broker_host": fleet.hub.address,
                "shoal_agent_broker_port": 8883,
                "shoal_agent_broker_transport": "codec",
                "shoal_agent_enrolment_url": f"https://{fleet.hub.address}:8884",
                "shoal_agent_enrolment_ca_file": str(control / "ca.crt"),
                "shoal_agent_local_api": {"host": "127.0.0.1"},
                "shoal_agent_local_api_token": API_TOKEN,
                "shoal_agent_peers_enabled": False,
                # A container has no clock of its own.
                "shoal_agent_time_check": False,
                "shoal_node_labels": {"site": "oslo"},
            },
        },
    }


def test_check_mode_on_bare_machines_passes_and_touches_nothing(fleet: Fleet) -> None:
    checked = fleet.typed(f"{SITE} --limit press-1 --check --diff", nothing=None)
    assert checked.status == 0, checked.output
    assert checked.changed("press-1") > 0
    assert fleet.boards["press-1"].run("ls -d /opt/shoal /etc/shoal 2>/dev/null || true") == ""
    assert API_TOKEN not in checked.output


def test_a_machine_becomes_controller_authority_and_broker(fleet: Fleet) -> None:
    play = fleet.typed(f"{SITE} --limit controllers")
    assert play.status == 0, play.output
    assert json.loads(fleet.shoal("status --json"))["broker_connected"]


def test_boards_enrol_and_join_the_fleet(fleet: Fleet) -> None:
    play = fleet.typed("ansible-playbook shoal.edge.enrol -i inventory.yml")
    assert play.status == 0, play.output
    for board, guest in fleet.boards.items():
        node = fleet.node(board)
        assert node["online"]
        assert node["labels"] == {"site": "oslo"}
        # The token is used up and gone; the key was made here and is nobody else's.
        assert guest.run("ls /var/lib/shoal/token 2>/dev/null || true") == ""
        assert (
            guest.run("stat -Lc '%a %U' /var/lib/shoal/identity/current/key.pem") == "600 shoal\n"
        )


def test_the_second_run_changes_nothing_anywhere(fleet: Fleet) -> None:
    play = fleet.typed(SITE)
    assert play.status == 0, play.output
    for host in ("hub", *BOARDS):
        assert play.changed(host) == 0, play.output


def test_a_model_serves_on_every_board(fleet: Fleet) -> None:
    for line in (
        "shoal nodes",
        "shoal release add fleet/shoal_fleet/digits/v1",
        "shoal rollout start digits@1.0.0 --wait",
    ):
        done = fleet.typed(line)
        assert done.status == 0, done.output
    for board in BOARDS:
        until(lambda board=board: _residence(fleet.node(board)) == "serving", 60)
        assert fleet.serves(board)


def test_the_agent_is_confined_and_its_unit_stands_in_the_release(fleet: Fleet) -> None:
    guest = fleet.boards["press-1"]
    table = guest.run("systemd-analyze security --no-pager shoal-agent.service")
    verdict = re.search(r"Overall exposure level for shoal-agent.service: ([0-9.]+)", table)
    assert verdict is not None, table
    print(verdict.group(0))
    assert float(verdict.group(1)) <= EXPOSURE_LIMIT, table
    shown = guest.run("systemctl show -p Type -p User -p WatchdogUSec shoal-agent.service").split()
    assert sorted(shown) == ["Type=notify", "User=shoal", "WatchdogUSec=1min"]
    assert guest.run("readlink -f /etc/systemd/system/shoal-agent.service").strip() == (
        f"/opt/shoal/releases/{FIRST}/etc/shoal-agent.service"
    )
    assert guest.run("stat -c '%a %U' /etc/shoal/local-api-token").strip() == "600 root"
    assert API_TOKEN not in guest.run("cat /opt/shoal/current/etc/*")


def test_an_agent_that_is_killed_comes_back_and_serves(fleet: Fleet) -> None:
    guest = fleet.boards["press-1"]
    main = "systemctl show -P MainPID shoal-agent.service"
    restarts = "systemctl show -P NRestarts shoal-agent.service"
    killed = guest.run(main).strip()
    before = int(guest.run(restarts))
    killed_ms = int(guest.run(f"kill -9 {killed} && date +%s%3N"))

    def is_back() -> bool:
        """By the word of the new process: what the old one said last is still retained."""
        node = fleet.node("press-1")
        said = node["online"] and node["reported"]["at_ms"] > killed_ms
        return said and _residence(node) == "serving"

    until(is_back, 60)
    assert guest.run(main).strip() not in {killed, "0"}
    assert int(guest.run(restarts)) == before + 1
    assert fleet.serves("press-1")


def test_the_controllers_inventory_reaches_boards_by_their_labels(fleet: Fleet) -> None:
    (fleet.scratch / "oslo.shoal.yml").write_text(
        json.dumps(
            {
                "plugin": "shoal.edge.fleet",
                "url": f"https://{fleet.hub.address}:8750",
                "state_dir": str(fleet.scratch / "control"),
            }
        )
    )
    done = fleet.typed("ansible -i inventory.yml -i oslo.shoal.yml -m ping site_oslo", nothing=None)
    assert done.status == 0, done.output
    assert done.output.count("SUCCESS") == len(BOARDS)


def test_a_setting_that_the_agent_refuses_never_reaches_the_board(fleet: Fleet) -> None:
    guest = fleet.boards["press-1"]
    before = guest.run("cat /opt/shoal/current/etc/agent.toml")
    pipeline = {"stream": "s", "device": "nobody", "channel": 0, "model": "digits"}
    play = fleet.typed(f"{SITE} --limit press-1", shoal_agent_pipelines=[pipeline])
    assert play.status != 0
    assert "is not a [[device]]" in play.output
    assert guest.run("cat /opt/shoal/current/etc/agent.toml") == before


def test_boards_are_upgraded_one_first_and_serve_on(fleet: Fleet) -> None:
    play = fleet.typed(
        "ansible-playbook shoal.edge.upgrade -i inventory.yml -e shoal_agent_release=$PWD/dist/board-2.tar.gz"
    )
    assert play.status == 0, play.output
    # Each batch is a play of its own: one board, a quarter, and the rest.
    assert play.output.count("PLAY [Boards are upgraded in batches]") == 3
    for board in BOARDS:
        assert fleet.current(board) == SECOND
        assert fleet.node(board)["reported"]["version"] == SECOND
        assert fleet.serves(board)


def test_a_broken_upgrade_stops_at_the_first_board_which_goes_back_and_serves(fleet: Fleet) -> None:
    play = fleet.typed(
        "ansible-playbook shoal.edge.upgrade -i inventory.yml",
        shoal_agent_release=str(fleet.scratch / "dist/broken.tar.gz"),
        shoal_upgrade_timeout_s=15,
    )
    assert play.status != 0
    said = " ".join(play.output.split())
    # The release itself was heard, not only its silence.
    assert "it does not serve digits" in said, play.output
    assert "press-1 went back to 0.1.0+second" in said, play.output
    for board in BOARDS:
        assert fleet.current(board) == SECOND
        assert fleet.serves(board)
    # Whoever rolls back from here comes to what worked, not to what failed.
    previous = fleet.boards["press-1"].run("basename $(readlink /opt/shoal/previous)").strip()
    assert previous == FIRST
    # The others were not touched at all.
    assert BROKEN in fleet.boards["press-1"].run("ls /opt/shoal/releases")
    assert BROKEN not in fleet.boards["press-2"].run("ls /opt/shoal/releases")


def test_boards_roll_back_to_the_release_before_with_its_own_configuration(fleet: Fleet) -> None:
    play = fleet.typed(
        "ansible-playbook shoal.edge.rollback -i inventory.yml --limit press-2,press-3"
    )
    assert play.status == 0, play.output
    for board in ("press-2", "press-3"):
        assert fleet.current(board) == FIRST
        assert fleet.serves(board)
        unit = fleet.boards[board].run("readlink -f /etc/systemd/system/shoal-agent.service")
        assert f"/releases/{FIRST}/" in unit


def test_a_retired_board_is_out_of_the_fleet_and_keeps_nothing(fleet: Fleet) -> None:
    refused = fleet.typed("ansible-playbook shoal.edge.retire -i inventory.yml", nothing=None)
    assert refused.status != 0
    assert "Say which boards" in refused.output
    play = fleet.typed("ansible-playbook shoal.edge.retire -i inventory.yml --limit press-3")
    assert play.status == 0, play.output
    guest = fleet.boards["press-3"]
    left = guest.run(
        "ls -d /opt/shoal /etc/shoal /var/lib/shoal 2>/dev/null; id shoal 2>&1 || true"
    )
    assert "no such user" in left
    assert "/" not in left
    node = fleet.node("press-3")
    assert node["identity"]["revoked_ms"]
    # The broker has the list, through systemd: the controller may not touch it.
    lists = "/var/lib/shoal-fleet/ca/ca.crl /etc/mosquitto/certs/revoked.pem"
    until(lambda: fleet.hub.run(f"cmp {lists} && echo same || true").strip() == "same", 20)
    assert fleet.serves("press-1")


def test_the_boards_needed_no_network_but_this_one(fleet: Fleet) -> None:
    for guest in fleet.boards.values():
        links = guest.run("ls /sys/class/net").split()
        routes = guest.run("tail -n +2 /proc/net/route").splitlines()
        assert sorted(links) == ["host0", "lo"]
        # One route, to the link itself; no destination 00000000, the way out.
        assert [line.split()[0] for line in routes] == ["host0"]
        assert routes[0].split()[1] != "00000000"


def test_every_line_of_the_page_was_typed() -> None:
    assert set(PAGE) == TYPED


def _residence(node: dict) -> str:
    models = (node["reported"] or {}).get("models", [])
    return next((model["residence"] for model in models if model["model"] == "digits"), "")


def until(holds, timeout_s: float) -> None:
    """Return once it holds."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it does not come to pass"
        time.sleep(0.3)
