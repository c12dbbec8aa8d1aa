"""The collection without a board: files, documentation, templates and the unit."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from tests.deploy import ansible_venv
from tests.deploy.ansible_venv import COLLECTION, REPOSITORY, needs_ansible

import shoal_firmware_bridge.config
import shoal_fleet.config
from shoal_agent.config import load
from shoal_agent.errors import ConfigError
from shoal_broker.server import config_file
from shoal_broker.tls import TlsFiles
from shoal_contract import envelope

pytestmark = needs_ansible

EXPOSURE_LIMIT = 1.5
ROLES = ("agent", "bridge", "broker", "ca", "fleet", "release")
# What a value may look like that a person wrote into an inventory.
AWKWARD = 'quote " backslash \\ tab \t brace {{ }} é 🐟'


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("collection")
    ansible_venv.install_collection(home)
    return home


@pytest.fixture(scope="module")
def yaml() -> dict[str, object]:
    paths = [*COLLECTION.rglob("*.yml"), COLLECTION / ".ansible-lint"]
    loaded = ansible_venv.load_yaml(*paths)
    return {path.relative_to(COLLECTION).as_posix(): content for path, content in loaded.items()}


@pytest.mark.timeout(90)
def test_the_linter_finds_nothing_at_its_strictest_profile(installed: Path) -> None:
    lint = subprocess.run(
        [ansible_venv.BIN / "ansible-lint", "--nocolor"],
        env=ansible_venv.environment(installed),
        cwd=COLLECTION,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert lint.returncode == 0, lint.stdout + lint.stderr
    assert "'production' was required, and it passed" in lint.stdout + lint.stderr


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("module", "mqtt_ping"),
        ("lookup", "release_tree"),
        ("filter", "to_toml"),
        ("inventory", "fleet"),
        *(("role", role) for role in ROLES),
    ],
)
def test_ansible_shows_the_documentation(installed: Path, kind: str, name: str) -> None:
    shown = ansible_venv.run("ansible-doc", "-t", kind, f"shoal.edge.{name}", home=installed)
    assert shown.returncode == 0, shown.stderr
    assert f"shoal.edge.{name}".upper() in shown.stdout.upper()


@pytest.mark.parametrize("name", ["site", "enrol", "upgrade", "rollback", "retire"])
def test_a_playbook_is_found_by_its_name_and_reads_well(installed: Path, name: str) -> None:
    checked = ansible_venv.run(
        *("ansible-playbook", f"shoal.edge.{name}", "--syntax-check", "--inventory", "board-1,"),
        home=installed,
    )
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("role", ROLES)
def test_every_default_is_described_with_the_same_value(yaml: dict, role: str) -> None:
    defaults = yaml[f"roles/{role}/defaults/main.yml"]
    described = {}
    for entry in yaml[f"roles/{role}/meta/argument_specs.yml"]["argument_specs"].values():
        for name, option in entry["options"].items():
            assert ("default" in option) != bool(option.get("required")), name
            if "default" in option:
                described[name] = option["default"]
    # What only another entry point takes has its default there.
    beyond = {name for name in set(described) - set(defaults) if name.startswith("shoal_ca_token")}
    assert {name: described[name] for name in set(described) - beyond} == defaults


@pytest.mark.parametrize("role", ROLES)
def test_the_readme_of_the_role_names_every_variable(yaml: dict, role: str) -> None:
    entries = yaml[f"roles/{role}/meta/argument_specs.yml"]["argument_specs"].values()
    names = {name for entry in entries for name in entry["options"]}
    readme = (COLLECTION / f"roles/{role}/README.md").read_text()
    assert set(re.findall(r"^\| `(shoal_\w+)`", readme, re.MULTILINE)) == names


def test_the_collection_has_the_version_of_shoal(yaml: dict) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    galaxy = yaml["galaxy.yml"]
    assert galaxy["version"] == project["version"]
    assert (galaxy["namespace"], galaxy["name"]) == ("shoal", "edge")
    assert f"## {galaxy['version']}" in (COLLECTION / "CHANGELOG.md").read_text()


def test_modules_are_named_in_full(yaml: dict) -> None:
    def names(tasks: list[dict]) -> list[str]:
        found = []
        for task in tasks:
            found += [key for key in task if "." in key]
            assert "block" in task or any("." in key for key in task), task
            for inner in ("block", "rescue", "always"):
                found += names(task.get(inner, []))
        return found

    for path, content in yaml.items():
        if "/tasks/" in path or "/handlers/" in path:
            assert names(content), path


def test_the_agent_accepts_the_smallest_configuration(tmp_path: Path) -> None:
    config = load(_config(tmp_path))
    assert config.node == "board-1"
    assert config.broker.username is None
    assert config.broker.password_file is None
    assert config.broker.tls() is None
    assert config.command_keys == ()
    assert config.state_dir == "/var/lib/shoal"


def test_the_agent_accepts_a_configuration_with_everything(tmp_path: Path) -> None:
    device = {"name": "meter", "socket": f"/run/{AWKWARD}"}
    command = {"channel": 3, "value": "text"}
    plain = {"stream": "other", "device": "meter", "channel": 2, "model": "digits"}
    pipeline = {**plain, "stream": "reading", "channel": 1, "deadline_s": 1.5, "command": command}
    unset = {"deadline_s": None, "command": None, "topic": None}
    source = {"filter": "zigbee2mqtt/+", "values": ["$.a", "$['b c']"], "retained": True}
    by_topic = {
        "stream": "climate",
        "model": "climate",
        "topic": source,
        "command": {"channel": 1, "device": "meter"},
        "publish": {"topic": "verdict/{1}", "qos": 0, "expiry_s": None},
        "file": {"path": f"/var/log/{AWKWARD}"},
    }
    pictures = {"path": "/srv/pictures", "formats": ["jpeg"], "after": "delete"}
    by_picture = {"stream": "seen", "model": "parts", "images": pictures}
    camera = {"url": "rtsp://10.0.0.9/1", "options": {"rtsp_transport": "tcp"}, "rate_hz": 1}
    by_camera = {"stream": "door", "model": "parts", "camera": camera}
    config = load(
        _config(
            tmp_path,
            shoal_agent_broker_username=AWKWARD,
            shoal_agent_broker_password="secret",
            shoal_agent_broker_ca_file="/etc/tls/ca.crt",
            shoal_agent_broker_cert_file=f"/etc/tls/{AWKWARD}",
            shoal_agent_broker_key_file="/etc/tls/me.key",
            shoal_agent_command_keys=[envelope.key_text(b"k" * 32), envelope.key_text(b"l" * 32)],
            shoal_agent_root_file=f"/etc/{AWKWARD}",
            shoal_agent_release_groups=["oslo"],
            shoal_agent_peers_upstream="hub.local:9000",
            shoal_agent_enrolment_url="https://controller.example.net:8884",
            shoal_agent_enrolment_ca_file="ca.crt",
            shoal_agent_metrics={"port": 9750},
            shoal_agent_local_api={"host": "0.0.0.0"},
            shoal_agent_local_api_token="x",
            shoal_agent_inference={"threads": 2, "cpus": [2, 3]},
            shoal_agent_folders=[f"/srv/{AWKWARD}"],
            shoal_agent_role="upstream",
            shoal_agent_devices=[device],
            shoal_agent_pipelines=[pipeline, {**plain, **unset}, by_topic, by_picture, by_camera],
        )
    )
    assert config.broker.username == AWKWARD
    assert config.broker.password_file is not None
    assert config.broker.tls() == TlsFiles(
        ca_file="/etc/tls/ca.crt", cert_file=f"/etc/tls/{AWKWARD}", key_file="/etc/tls/me.key"
    )
    assert config.command_keys == (b"k" * 32, b"l" * 32)
    assert config.trust.root_file == f"/etc/{AWKWARD}"
    assert config.trust.release_groups == ("oslo",)
    assert config.upstream == ("hub.local", 9000)
    assert config.enrolment is not None
    assert config.enrolment.ca_file == "/opt/shoal/releases/0.1.0/etc/ca.crt"
    assert config.enrolment.token_file == "/var/lib/shoal/token"
    assert config.local_api is not None
    assert config.local_api.token_file == "/run/credentials/shoal-agent.service/local-api-token"
    assert config.inference.cpus == (2, 3)
    assert config.pipelines.folders == (f"/srv/{AWKWARD}",)
    assert config.pipeline[3].images is not None
    assert config.pipeline[4].camera is not None
    assert config.pipeline[4].camera.options == {"rtsp_transport": "tcp"}
    assert config.device[0].socket == f"/run/{AWKWARD}"
    assert config.pipeline[0].deadline_s == 1.5
    assert config.pipeline[0].command is not None
    assert config.pipeline[0].command.value == "text"
    assert config.pipeline[1].command is None


def test_a_broker_in_the_network_without_tls_is_refused_unless_it_is_allowed(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match=r"broker\.example\.net is another machine"):
        load(_config(tmp_path, shoal_agent_broker_plaintext=False))
    assert load(_config(tmp_path)).broker.plaintext
    assert not load(_config(tmp_path)).peers.plaintext
    assert load(_config(tmp_path, shoal_agent_peers_plaintext=True)).peers.plaintext


def test_the_password_stays_out_of_configuration_and_unit(tmp_path: Path) -> None:
    secret = "not-to-be-seen"
    config = _config(tmp_path, shoal_agent_broker_password=secret).read_text()
    unit = _unit(tmp_path, "agent", "shoal-agent", shoal_agent_broker_password=secret).read_text()
    assert secret not in config + unit
    name = re.search(r"^LoadCredential=(.*):", unit, re.MULTILINE)
    assert name is not None
    assert f"/run/credentials/shoal-agent.service/{name.group(1)}" in config


UNITS = [
    ("agent", "shoal-agent", {}),
    (
        "agent",
        "shoal-agent",
        {"shoal_agent_broker_password": "x", "shoal_agent_folders": ["/srv/pictures"]},
    ),
    (
        "agent",
        "shoal-agent",
        {"shoal_agent_local_api_token": "x", "shoal_agent_cameras": ["/dev/video0"]},
    ),
    ("bridge", "shoal-bridge", {}),
    (
        "fleet",
        "shoal-fleet",
        {"shoal_fleet_broker_password": "x", "shoal_fleet_ca_passphrase": "x"},
    ),
    ("broker", "shoal-broker", {}),
]
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd is not installed"
)


@needs_systemd
@pytest.mark.parametrize(("role", "unit", "settings"), UNITS)
def test_systemd_accepts_the_unit_without_a_word(
    tmp_path: Path, role: str, unit: str, settings: dict
) -> None:
    path = _unit(tmp_path, role, unit, **settings)
    verify = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", path],
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )
    # It ends with 0 for keys that it does not know; what it writes is what counts.
    assert (verify.returncode, verify.stdout + verify.stderr) == (0, "")


@needs_systemd
@pytest.mark.parametrize(
    ("role", "unit"), [unit[:2] for unit in UNITS if unit[2] == {}] + [("fleet", "shoal-fleet")]
)
def test_a_unit_leaves_its_program_little_to_break(tmp_path: Path, role: str, unit: str) -> None:
    judged = subprocess.run(
        *(
            [
                "systemd-analyze",
                "security",
                "--offline=true",
                "--no-pager",
                _unit(tmp_path, role, unit),
            ],
        ),
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )
    verdict = re.search(r"Overall exposure level for \S+: ([0-9.]+)", judged.stdout)
    assert verdict is not None, judged.stdout + judged.stderr
    assert float(verdict.group(1)) <= EXPOSURE_LIMIT, judged.stdout


@needs_systemd
def test_the_units_that_hand_revocations_on_are_accepted_without_a_word(tmp_path: Path) -> None:
    for unit in ("shoal-revoked.service", "shoal-revoked.path"):
        text = ansible_venv.render(
            COLLECTION / f"roles/broker/templates/{unit}.j2",
            {
                **_variables("broker"),
                "shoal_broker_user": "root",
                "shoal_broker_certs": "/etc/mosquitto/certs",
                "shoal_broker_unit": "mosquitto.service",
            },
        )
        (tmp_path / unit).write_text(text)
    verify = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / "shoal-revoked.path"],
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )
    assert (verify.returncode, verify.stdout + verify.stderr) == (0, "")


def test_the_bridge_accepts_its_configuration(tmp_path: Path) -> None:
    devices = [
        {"name": "meter", "link": "serial", "path": "/dev/ttyUSB0", "baud": 9600},
        {
            "name": "pump",
            "link": "tcp",
            "host": "10.0.0.9",
            "port": 4000,
            "allow_unauthenticated": True,
        },
    ]
    path = tmp_path / "bridge.toml"
    path.write_text(_rendered("bridge", "bridge.toml", shoal_bridge_devices=devices))
    config = shoal_firmware_bridge.config.load(path)
    assert [device.name for device in config.device] == ["meter", "pump"]
    assert str(config.socket(config.device[0])) == "/run/shoal-bridge/meter.sock"


def test_the_controller_accepts_its_configuration(tmp_path: Path) -> None:
    path = tmp_path / "controller.toml"
    door = {"user": "homeassistant", "ops": ["ping"], "nodes": "site=oslo", "telemetry": True}
    settings = {"webhook_url": "https://example.net/hook", "door": [door]}
    path.write_text(
        _rendered(
            "fleet",
            "controller.toml",
            shoal_fleet_broker_host="broker.example.net",
            shoal_fleet_names=["controller.example.net"],
            shoal_fleet_ca_passphrase="x",
            shoal_fleet_settings=settings,
        )
    )
    config = shoal_fleet.config.load(path)
    assert config.identity is not None
    assert config.identity.names == ("controller.example.net",)
    assert config.identity.passphrase_file == "/run/credentials/shoal-fleet.service/ca-passphrase"
    assert config.door[0].user == "homeassistant"
    assert config.broker.tls() is not None


def test_the_embedded_broker_accepts_its_configuration(tmp_path: Path) -> None:
    path = tmp_path / "broker.toml"
    path.write_text(
        _rendered(
            "broker",
            "broker.toml",
            shoal_broker_certs="/etc/shoal-broker",
            shoal_broker_settings={"limits": {"max_connections": 2000}},
        )
    )
    config_file.load(path)
    assert 'observers = ["ansible"]' in path.read_text()


def test_toml_says_what_a_configuration_holds(tmp_path: Path) -> None:
    table = {
        "text": AWKWARD + "\x7f\x00\n",
        "yes": True,
        "count": 5,
        "share": 0.5,
        "small": 1e-9,
        "none": None,
        "list": ["a", 1],
        "empty": [],
        "inner": {"a key": "x", "deeper": {"y": 1}},
        "many": [{"z": 1, "in": {"b": 2}}, {"z": 2}],
    }
    template = tmp_path / "x.j2"
    template.write_text("{{ table | shoal.edge.to_toml }}")
    text = ansible_venv.render(template, {"table": table})
    del table["none"]
    assert tomllib.loads(text) == table


def _variables(role: str) -> dict[str, object]:
    paths = [COLLECTION / f"roles/{role}/{kind}/main.yml" for kind in ("defaults", "vars")]
    loaded = ansible_venv.load_yaml(*paths)
    variables = {name: value for path in paths for name, value in loaded[path].items()}
    return {"ansible_managed": "Ansible managed", **variables}


def _rendered(role: str, name: str, **settings: object) -> str:
    template = COLLECTION / f"roles/{role}/templates/{name}.j2"
    return ansible_venv.render(template, {**_variables(role), **settings})


def _config(folder: Path, **settings: object) -> Path:
    path = folder / "agent.toml"
    given = {
        "shoal_agent_node": "board-1",
        "shoal_agent_tree": "/opt/shoal/releases/0.1.0",
        "shoal_agent_broker_host": "broker.example.net",
        "shoal_agent_broker_plaintext": True,
    }
    path.write_text(_rendered("agent", "agent.toml", **{**given, **settings}))
    return path


def _unit(folder: Path, role: str, unit: str, **settings: object) -> Path:
    """The unit, for a release tree that is really there."""
    for command in ("shoal-agent", "shoal-bridge", "shoal", "shoal-broker"):
        program = folder / "home/current/bin" / command
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    settings[f"shoal_{role}_home"] = str(folder / "home")
    path = folder / f"{unit}.service"
    path.write_text(_rendered(role, f"{unit}.service", **settings))
    return path
