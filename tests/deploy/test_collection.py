"""The collection without a board: files, documentation, templates and the unit."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from tests.deploy import ansible_venv
from tests.deploy.ansible_venv import COLLECTION, REPOSITORY, ROLE, needs_ansible

from shoal_agent.config import load
from shoal_agent.errors import ConfigError
from shoal_broker.tls import TlsFiles
from shoal_contract import envelope

pytestmark = needs_ansible

EXPOSURE_LIMIT = 1.5
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


@pytest.mark.parametrize(("kind", "name"), [("module", "mqtt_ping"), ("role", "agent")])
def test_ansible_shows_the_documentation(installed: Path, kind: str, name: str) -> None:
    shown = ansible_venv.run("ansible-doc", "-t", kind, f"shoal.edge.{name}", home=installed)
    assert shown.returncode == 0, shown.stderr
    assert f"shoal.edge.{name}".upper() in shown.stdout.upper()


def test_the_site_playbook_is_found_by_its_name(installed: Path) -> None:
    listed = ansible_venv.run(
        *("ansible-playbook", "shoal.edge.site", "--list-tasks", "--inventory", "board-1,"),
        home=installed,
    )
    assert listed.returncode == 0, listed.stderr
    assert "Wait until the node is online on the broker" in listed.stdout


def test_every_default_is_described_with_the_same_value(yaml: dict) -> None:
    defaults = yaml["roles/agent/defaults/main.yml"]
    options = yaml["roles/agent/meta/argument_specs.yml"]["argument_specs"]["main"]["options"]
    described = {name: option["default"] for name, option in options.items() if "default" in option}
    assert described == defaults
    without = {name for name, option in options.items() if "default" not in option}
    assert without == {name for name in without if options[name].get("required")}


def test_the_readme_of_the_role_names_every_variable(yaml: dict) -> None:
    options = yaml["roles/agent/meta/argument_specs.yml"]["argument_specs"]["main"]["options"]
    readme = (ROLE / "README.md").read_text()
    assert set(re.findall(r"^\| `(shoal_agent_\w+)`", readme, re.MULTILINE)) == set(options)


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
            found += names(task.get("block", []))
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
    # Ansible hands options that were not given on as null.
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
            shoal_agent_role="upstream",
            shoal_agent_devices=[device],
            shoal_agent_pipelines=[pipeline, {**plain, **unset}, by_topic],
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
    unit = _unit(tmp_path, shoal_agent_broker_password=secret).read_text()
    assert secret not in config + unit
    name = re.search(r"^LoadCredential=(.*):", unit, re.MULTILINE)
    assert name is not None
    assert f"/run/credentials/shoal-agent.service/{name.group(1)}" in config


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("password", ["", "secret"])
def test_systemd_accepts_the_unit_without_a_word(tmp_path: Path, password: str) -> None:
    unit = _unit(tmp_path, shoal_agent_broker_password=password)
    verify = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit],
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )
    # It ends with 0 for keys that it does not know; what it writes is what counts.
    assert (verify.returncode, verify.stdout + verify.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_the_unit_leaves_the_agent_little_to_break(tmp_path: Path) -> None:
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", _unit(tmp_path)],
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )
    verdict = re.search(r"Overall exposure level for \S+: ([0-9.]+)", judged.stdout)
    assert verdict is not None, judged.stdout + judged.stderr
    assert float(verdict.group(1)) <= EXPOSURE_LIMIT, judged.stdout


def _variables() -> dict[str, object]:
    paths = [ROLE / "defaults/main.yml", ROLE / "vars/main.yml"]
    loaded = ansible_venv.load_yaml(*paths)
    variables = {name: value for path in paths for name, value in loaded[path].items()}
    return {
        **variables,
        "ansible_managed": "Ansible managed",
        "shoal_agent_node": "board-1",
        "shoal_agent_broker_host": "broker.example.net",
        "shoal_agent_broker_plaintext": True,
    }


def _config(folder: Path, **settings: object) -> Path:
    path = folder / "agent.toml"
    path.write_text(
        ansible_venv.render(ROLE / "templates/agent.toml.j2", {**_variables(), **settings})
    )
    return path


def _unit(folder: Path, **settings: object) -> Path:
    """The unit, for a release tree that is really there."""
    program = folder / "home/current/bin/shoal-agent"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    settings["shoal_agent_home"] = str(folder / "home")
    unit = folder / "shoal-agent.service"
    unit.write_text(
        ansible_venv.render(ROLE / "templates/shoal-agent.service.j2", {**_variables(), **settings})
    )
    return unit
