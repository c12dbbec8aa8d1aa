"""A board's seed: what stands in it, and what never does."""

import json
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from tests.deploy.collection_modules import module_utils

from shoal_agent.config import load

seed = module_utils("board_seed")
table = module_utils("board_table")

AWKWARD = 'quote " backslash \\ brace {{ }} é #: 🐟'
BOARD = table.Board("press-4", "T" * 43)
WIRED = table.Board("press-5", "U" * 43, "192.168.7.20/24", "192.168.7.1", ("192.168.7.1",))


def settings(**given: object):
    return seed.Settings(
        **{
            "form": "cidata",
            "user": "shoal-admin",
            "keys": ("ssh-ed25519 AAAA anna@desk",),
            "broker_host": "broker.example.net",
            "broker_port": 8883,
            "enrol_url": "https://controller.example.net:8884",
            "ca_pin": "sha256:" + "5f" * 32,
            **given,
        }
    )


def test_the_agent_accepts_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_bytes(seed.files(BOARD, settings())["shoal/agent.toml"])
    config = load(tmp_path / "agent.toml")
    assert (config.node, config.broker.host, config.broker.port) == (
        "press-4",
        "broker.example.net",
        8883,
    )
    assert config.enrolment is not None
    assert config.enrolment.token_file == "/var/lib/shoal/token"


def test_awkward_words_stay_what_they_are() -> None:
    files = seed.files(BOARD, settings(root=AWKWARD, wifi_ssid=AWKWARD, wifi_password=AWKWARD))
    assert tomllib.loads(files["shoal/agent.toml"].decode())["root"] == AWKWARD
    points = json.loads(files["network-config"])["wifis"]["wlan0"]["access-points"]
    assert points == {AWKWARD: {"password": AWKWARD}}


def test_user_data_is_cloud_config_with_name_key_and_no_password() -> None:
    first, rest = seed.files(BOARD, settings())["user-data"].decode().split("\n", 1)
    assert first == "#cloud-config"
    data = json.loads(rest)
    assert data["hostname"] == "press-4"
    assert data["ssh_pwauth"] is False
    (user,) = data["users"]
    assert user["lock_passwd"] is True
    assert user["ssh_authorized_keys"] == ["ssh-ed25519 AAAA anna@desk"]


def test_the_boot_partition_of_a_raspberry_pi_asks_for_its_ssh_server() -> None:
    data = seed.files(BOARD, settings(form="bootfs"))["user-data"].decode()
    assert '"enable_ssh": true' in data
    assert "/boot/firmware/shoal/first-boot.sh" in data
    assert "CIDATA" not in data


def test_a_board_on_a_wire_with_dhcp_has_no_network_configuration() -> None:
    assert "network-config" not in seed.files(BOARD, settings())


def test_a_fixed_address_is_written_with_its_gateway_and_name_servers() -> None:
    network = json.loads(seed.files(WIRED, settings())["network-config"])
    wired = network["ethernets"]["wired"]
    assert wired["addresses"] == ["192.168.7.20/24"]
    assert wired["routes"] == [{"to": "default", "via": "192.168.7.1"}]
    assert wired["nameservers"] == {"addresses": ["192.168.7.1"]}


def test_the_token_stands_in_one_file_and_in_nobody_elses_seed() -> None:
    for board, other in ((BOARD, WIRED), (WIRED, BOARD)):
        files = seed.files(board, settings())
        assert [name for name, text in files.items() if board.token.encode() in text] == [
            "shoal/token"
        ]
        assert not any(other.token.encode() in text for text in files.values())


def test_another_seed_is_another_instance_for_cloud_init() -> None:
    def instance(**given: object) -> str:
        found: str = json.loads(seed.files(BOARD, settings(**given))["meta-data"])["instance-id"]
        return found

    assert instance() == instance()
    assert instance() != instance(broker_port=1)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"keys": ("ssh-ed25519",)}, "no line of authorized_keys"),
        ({"keys": ("ssh-ed25519 AAAA\nroot",)}, "no line of authorized_keys"),
        ({"broker_host": "a\nb"}, "broker_host has a control character"),
        ({"wifi_password": "a\x00"}, "wifi_password has a control character"),
        ({"wifi_ssid": "net"}, "wifi_ssid needs wifi_password"),
        ({"enrol_url": "http://controller"}, "enrol_url is not https"),
        ({"ca_pin": ""}, "ca_pin is empty"),
        ({"form": "floppy"}, "form 'floppy' is none of"),
    ],
)
def test_settings_that_would_make_a_dead_board_are_refused(given: dict, says: str) -> None:
    with pytest.raises(seed.SeedError, match=says):
        seed.files(BOARD, settings(**given))


def test_a_shell_reads_the_script_of_the_first_boot(tmp_path: Path) -> None:
    script = tmp_path / "first-boot.sh"
    script.write_bytes(seed.files(BOARD, settings())["shoal/first-boot.sh"])
    subprocess.run(["sh", "-n", script], check=True, timeout=15)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_unit_without_a_word(tmp_path: Path) -> None:
    program = tmp_path / "shoal-agent"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    text = seed.files(BOARD, settings())["shoal/shoal-agent.service"].decode()
    unit = tmp_path / "shoal-agent.service"
    unit.write_text(text.replace("/opt/shoal/current/bin/shoal-agent", str(program)))
    verify = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit],
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )
    assert (verify.returncode, verify.stdout + verify.stderr) == (0, "")
