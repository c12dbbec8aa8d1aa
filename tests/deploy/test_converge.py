"""The role on a real systemd: a Debian boots beside the tests, is converged twice and joins a broker."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from tests.deploy import ansible_venv
from tests.deploy.ansible_venv import REPOSITORY, needs_ansible
from tests.deploy.guest import Guest, booted, why_no_guest

from shoal_contract import envelope, messages
from shoal_contract.messages import Command, CommandUpdate, Presence, State
from shoal_contract.signatures import Signer
from shoal_contract.topics import Topics

NODE = "board-1"
PASSWORD = 'a "quoted" pass\\word'
TOPICS = Topics()
SIGNER = Signer(b"k" * 32)
EXPOSURE_LIMIT = 1.5

pytestmark = [
    pytest.mark.root,
    pytest.mark.system,
    pytest.mark.timeout(300),
    pytest.mark.skipif(why_no_guest() is not None, reason=f"no guest: {why_no_guest()}"),
    needs_ansible,
]


@dataclass(frozen=True, slots=True)
class Play:
    """What one run of ansible-playbook said."""

    status: int
    output: str

    @property
    def changed(self) -> int:
        counts = re.findall(rf"^{NODE} +:.* changed=(\d+)", self.output, re.MULTILINE)
        assert len(counts) == 1, self.output
        return int(counts[0])


@dataclass(frozen=True, slots=True)
class Board:
    """A guest, the broker it is to join and the means to converge it."""

    guest: Guest
    port: int
    scratch: Path
    release: dict[str, object]

    def play(self, *arguments: str, **settings: object) -> Play:
        """Run the collection's site playbook, as a user would."""
        done = ansible_venv.run(
            *("ansible-playbook", "shoal.edge.site"),
            *("--inventory", self.scratch / "inventory.json"),
            *("--extra-vars", json.dumps(settings)),
            *arguments,
            home=self.scratch,
            timeout_s=200,
        )
        return Play(done.returncode, done.stdout + done.stderr)

    @contextmanager
    def operator(self) -> Iterator["Operator"]:
        """A client of the fleet's side."""
        operator = Operator(self.guest.host_address, self.port)
        try:
            yield operator
        finally:
            operator.close()


class Operator:
    """Sends commands to the board and reads what it says, over MQTT alone."""

    def __init__(self, host: str, port: int) -> None:
        self._received: list[messages.Message] = []
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self._client.username_pw_set("operator", PASSWORD)
        self._client.on_connect = self._subscribe
        self._client.on_message = self._take
        self._client.connect(host, port)

    def presence(self) -> Presence:
        """The first word that the node is online."""
        return self._wait(lambda m: isinstance(m, Presence) and m.online)

    def command(self, op: str) -> CommandUpdate:
        """Send a signed command; its final state."""
        now = time.time_ns() // 1_000_000
        command = Command(os.urandom(8), op, {}, now, now + 30_000)
        topic = TOPICS.commands(NODE)
        # The board takes nothing else: in the unit, too, it can check signatures.
        self._client.publish(topic, SIGNER.sign(messages.encode(command), topic=topic), qos=1)
        return self._wait(
            lambda m: isinstance(m, CommandUpdate) and m.id == command.id and m.state.is_final
        )

    def close(self) -> None:
        self._client.disconnect()

    def _wait(self, wanted):
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for message in self._received:
                if wanted(message):
                    return message
            assert self._client.loop(0.1) == mqtt.MQTT_ERR_SUCCESS
        raise AssertionError(f"nothing like it in 30 s; received: {self._received}")

    def _subscribe(self, client, _data, _flags, reason, _more) -> None:
        assert not reason.is_failure, reason
        client.subscribe([(TOPICS.presence(NODE), 1), (TOPICS.results(NODE), 1)])

    def _take(self, _client, _data, message) -> None:
        self._received.append(messages.decode(message.payload))


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """A bare board, and a broker that lets in who knows the password."""
    scratch = tmp_path_factory.mktemp("board")
    root = Path(_output(REPOSITORY / "tools/nspawn-root"))
    manifest = Path(
        _output(sys.executable, REPOSITORY / "tools/board_release.py", "--out", scratch / "dist")
    )
    ansible_venv.install_collection(scratch)
    with (
        tempfile.TemporaryDirectory(prefix="shoal-ssh-") as sockets,
        booted(root, scratch) as guest,
        _broker(guest.host_address, scratch) as port,
    ):
        variables = {
            "ansible_host": guest.address,
            "ansible_user": "root",
            # A socket's path is short: the folder of the test's own files may be too long for it.
            "ansible_control_path_dir": sockets,
            "ansible_ssh_common_args": " ".join(["-F", "none", *guest.ssh_options]),
            "shoal_control_python": sys.executable,
            "shoal_control_username": "operator",
            "shoal_control_password": PASSWORD,
            "shoal_agent_release": f"{manifest.parent}/shoal-board-{{{{ ansible_facts.machine }}}}.json",
            "shoal_agent_broker_host": guest.host_address,
            "shoal_agent_broker_plaintext": True,
            "shoal_agent_broker_port": port,
            "shoal_agent_broker_username": NODE,
            "shoal_agent_broker_password": PASSWORD,
            "shoal_agent_command_keys": [envelope.key_text(SIGNER.public_key)],
        }
        inventory = {"boards": {"hosts": {NODE: variables}}}
        (scratch / "inventory.json").write_text(json.dumps(inventory))
        yield Board(guest, port, scratch, json.loads(manifest.read_text()))


@dataclass(frozen=True, slots=True)
class Converged:
    """The board after three runs: one in check mode, then twice for good."""

    board: Board
    checked: Play
    touched_by_check: str
    first: Play
    second: Play


@pytest.fixture(scope="module")
def converged(board: Board) -> Converged:
    checked = board.play("--check", "--diff")
    touched = board.guest.run("ls -d /opt/shoal /etc/shoal /var/lib/shoal 2>/dev/null || true")
    started_s = time.monotonic()
    first = board.play()
    print(f"first converge: {time.monotonic() - started_s:.1f} s")
    assert first.status == 0, first.output
    return Converged(board, checked, touched, first, board.play())


def test_check_mode_on_a_bare_board_passes_and_touches_nothing(converged: Converged) -> None:
    assert converged.checked.status == 0, converged.checked.output
    assert converged.checked.changed > 0
    assert converged.touched_by_check == ""


def test_the_second_run_changes_nothing(converged: Converged) -> None:
    assert converged.first.changed > 0
    assert converged.second.status == 0, converged.second.output
    assert converged.second.changed == 0, converged.second.output


def test_the_agent_joins_the_broker_and_answers_a_command(converged: Converged) -> None:
    with converged.board.operator() as operator:
        assert operator.presence().online
        answer = operator.command("ping")
    assert answer.state is State.SUCCEEDED, answer


def test_the_release_is_complete_and_current_leads_to_it(converged: Converged) -> None:
    board = converged.board
    tree = f"/opt/shoal/releases/{board.release['id']}"
    assert board.guest.run("readlink -f /opt/shoal/current").strip() == tree
    about = json.loads(board.guest.run("cat /opt/shoal/current/RELEASE.json"))
    assert about["id"] == board.release["id"]
    assert board.guest.run(f"ls {tree}").split() == ["RELEASE.json", "agent.toml", "bin", "lib"]
    assert board.guest.run("ls -A /opt/shoal/releases").split() == [board.release["id"]]
    for command in ("shoal-agent", "shoal-bridge"):
        assert command in board.guest.run(f"/opt/shoal/current/bin/{command} --help")


def test_the_agent_is_confined(converged: Converged) -> None:
    guest = converged.board.guest
    table = guest.run("systemd-analyze security --no-pager shoal-agent.service")
    verdict = re.search(r"Overall exposure level for shoal-agent.service: ([0-9.]+)", table)
    assert verdict is not None, table
    print(verdict.group(0))
    assert float(verdict.group(1)) <= EXPOSURE_LIMIT, table
    owner = guest.run("ps -o user= -p $(systemctl show -P MainPID shoal-agent.service)")
    assert owner.strip() == "shoal"


def test_the_password_stands_neither_in_the_configuration_nor_in_the_output(
    converged: Converged,
) -> None:
    config = converged.board.guest.run("cat /opt/shoal/current/agent.toml")
    mode = converged.board.guest.run("stat -c '%a %U' /etc/shoal/broker-password")
    assert mode.strip() == "600 root"
    for text in (config, converged.first.output, converged.checked.output):
        assert PASSWORD not in text
        assert "pass\\\\word" not in text


def test_inference_starts_inside_the_confined_unit(converged: Converged) -> None:
    """The worker's libraries load and run under the unit's own filters and limits."""
    guest = converged.board.guest
    unit = guest.run("cat /etc/systemd/system/shoal-agent.service")
    section = unit.split("[Service]")[1].split("[Install]")[0]
    # Only what starts the agent, and whose credentials it gets, is not for this run.
    ours = ("Type=", "ExecStart=", "Restart", "LoadCredential=", "KillMode=", "#")
    settings = [line for line in section.splitlines() if line.strip() and not line.startswith(ours)]
    properties = " ".join(f"-p '{line}'" for line in settings)
    program = (
        "import onnxruntime, numpy, resource, zstandard, multiprocessing.shared_memory as m;"
        "resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, resource.RLIM_INFINITY));"
        "block = m.SharedMemory(create=True, size=4096); block.close(); block.unlink();"
        "print(numpy.ones((64, 64)).dot(numpy.ones(64)).sum(), onnxruntime.__version__)"
    )
    answer = guest.run(
        f"systemd-run --quiet --wait --pipe {properties} "
        f"-E PYTHONPATH=/opt/shoal/current/lib /usr/bin/python3 -c '{program}'"
    )
    assert answer.startswith("4096.0"), answer


def test_the_agent_comes_back_when_it_is_killed(converged: Converged) -> None:
    board = converged.board
    with board.operator() as operator:
        before = operator.presence()
    board.guest.run("systemctl kill --signal=KILL shoal-agent.service")
    answer = _mqtt_ping(board, not_boot=before.boot.hex())
    assert answer["boot"] != before.boot.hex()
    with board.operator() as operator:
        # Subscribed: an answer that comes before is not for us.
        operator.presence()
        assert operator.command("ping").state is State.SUCCEEDED


def test_a_setting_that_the_agent_refuses_never_reaches_the_board(converged: Converged) -> None:
    board = converged.board
    before = board.guest.run("cat /opt/shoal/current/agent.toml")
    pipeline = {"stream": "s", "device": "nobody", "channel": 0, "model": "digits"}
    play = board.play(shoal_agent_pipelines=[pipeline])
    assert play.status != 0
    assert "is not a [[device]]" in play.output
    assert board.guest.run("cat /opt/shoal/current/agent.toml") == before


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"machine": "aarch64"}, "aarch64 and Python 3."),
        ({"python": "3.99"}, "and Python 3.99"),
        ({"sha256": "0" * 64}, "is missing or is not what"),
    ],
)
def test_a_release_that_does_not_fit_is_refused_before_anything_changes(
    converged: Converged, wrong: dict[str, str], said: str
) -> None:
    board = converged.board
    other = {**board.release, "id": "0.0.0+other", **wrong}
    manifest = board.scratch / "dist/other.json"
    manifest.write_text(json.dumps(other))
    play = board.play(shoal_agent_release=str(manifest))
    assert play.status != 0
    assert said in " ".join(play.output.split())
    assert play.changed == 0
    assert "other" not in board.guest.run("readlink /opt/shoal/current; ls /opt/shoal/releases")


def test_the_board_needed_no_network_but_this_connection(converged: Converged) -> None:
    guest = converged.board.guest
    links = guest.run("ls /sys/class/net").split()
    routes = guest.run("tail -n +2 /proc/net/route").splitlines()
    assert sorted(links) == ["host0", "lo"]
    # One route, to the link itself; no destination 00000000, the way out.
    assert [line.split()[0] for line in routes] == ["host0"]
    assert routes[0].split()[1] != "00000000"


def _mqtt_ping(board: Board, **arguments: object) -> dict[str, object]:
    """What the collection's module answers to these arguments."""
    settings = {
        "node": NODE,
        "host": board.guest.host_address,
        "port": board.port,
        "username": "operator",
        "password": PASSWORD,
        "plaintext": True,
        "timeout_s": 30,
        **arguments,
    }
    done = ansible_venv.run(
        *("ansible", "localhost", "-m", "shoal.edge.mqtt_ping", "-a", json.dumps(settings)),
        *("-e", f"ansible_python_interpreter={sys.executable}"),
        home=board.scratch,
    )
    head, _, answer = done.stdout.partition(" => ")
    assert head.endswith("SUCCESS"), done.stdout + done.stderr
    return json.loads(answer)


@contextmanager
def _broker(host: str, scratch: Path) -> Iterator[int]:
    """`shoal-broker` on our end of the guest's link; its port."""
    ready = scratch / "broker-ready"
    users = scratch / "users"
    for user in (NODE, "operator"):
        _output(
            *(sys.executable, "-c", "import shoal_broker.cli as c; c.main()"),
            *("passwd", users, user),
            given=PASSWORD,
        )
    with (scratch / "broker.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", "import shoal_broker.cli as c; c.main()"),
                *("run", "--host", host, "--port", "0", "--password-file", users),
                *("--operator", "operator"),
                *("--ready-file", ready),
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 20
        while not (ready.exists() and ready.read_text().strip()):
            assert process.poll() is None, (scratch / "broker.log").read_text()
            assert time.monotonic() < deadline, "the broker does not start"
            time.sleep(0.02)
        yield int(ready.read_text())
    finally:
        process.terminate()
        process.wait(timeout=20)


def _output(*command: object, given: str = "") -> str:
    done = subprocess.run(
        [str(word) for word in command],
        input=given,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()
