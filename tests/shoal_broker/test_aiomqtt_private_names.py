"""The transport reaches into aiomqtt and paho: these tests fail when an upgrade moves something."""

import importlib.metadata
import inspect
import re
import tomllib
from pathlib import Path

import aiomqtt
import paho.mqtt.client as paho
import pytest

from shoal_broker import aiomqtt_transport
from shoal_broker.aiomqtt_transport import PRIVATE_ATTRIBUTES, PRIVATE_NAMES, _Client
from shoal_broker.session import SessionConfig

SOURCE = inspect.getsource(aiomqtt_transport)


@pytest.fixture
async def client() -> _Client:
    return _Client(SessionConfig(host="127.0.0.1", client_id="n"), None)


def test_the_pins_in_pyproject_are_exact_and_installed():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    wanted = tomllib.loads(text)["project"]["optional-dependencies"]["agent"]
    for package in ("aiomqtt", "paho-mqtt"):
        assert f"{package}=={importlib.metadata.version(package)}" in wanted


@pytest.mark.parametrize(
    ("owner", "name"), [(owner, name) for owner, names in PRIVATE_NAMES.items() for name in names]
)
def test_each_private_method_exists(owner, name):
    assert callable(getattr(owner, name))


async def test_each_private_attribute_exists(client):
    owners = {aiomqtt.Client: client, paho.Client: client.engine}
    for owner, names in PRIVATE_ATTRIBUTES.items():
        for name in names:
            assert name in vars(owners[owner]), f"{owner.__name__}.{name}"


def test_no_private_name_is_used_that_is_not_listed():
    listed = {name for names in PRIVATE_NAMES.values() for name in names}
    listed |= {name for names in PRIVATE_ATTRIBUTES.values() for name in names}
    ours = set(vars(_Client)) | set(re.findall(r"self\.(_\w+)(?:: [^=]+)? = ", SOURCE))
    ours |= set(vars(aiomqtt_transport.AiomqttLink))
    used = set(re.findall(r"\.(_[a-z]\w+)", SOURCE)) - {"_link_error"}
    assert used - ours <= listed
    assert listed <= used | set(vars(_Client))


async def test_manual_ack_is_on_before_the_connection_is_made(client):
    assert client.engine._manual_ack is True
    assert client.engine.socket() is None


async def test_paho_sends_no_puback_by_itself_with_manual_ack(client):
    # A QoS 1 PUBLISH of topic "t", packet id 7, no properties, payload "x".
    client.engine._in_packet["command"] = 0x32
    client.engine._in_packet["packet"] = bytearray(b"\x00\x01t\x00\x07\x00x")
    client.engine._handle_publish()
    assert [arrival.packet_id for arrival in client.arrivals] == [7]
    assert not client.engine._out_packet
    client.engine.manual_ack_set(False)
    client.engine._handle_publish()
    assert client.engine._out_packet[0]["packet"][:4] == b"\x40\x02\x00\x07"


async def test_ack_sends_the_puback_of_the_packet(client):
    client.engine.ack(7, 1)
    assert client.engine._out_packet[0]["packet"][:4] == b"\x40\x02\x00\x07"


async def test_aiomqtt_binds_our_callbacks(client):
    assert client.engine.on_message == client._on_message
    assert client.engine.on_connect == client._on_connect
    assert client.engine.on_publish == client._on_publish
    assert client.engine.on_socket_open == client._on_socket_open


async def test_aiomqtt_starts_no_task_of_its_own(client):
    assert client._misc_task is None
    assert "create_task" not in inspect.getsource(aiomqtt.Client._on_socket_register_write)


def test_paho_counts_time_on_the_clock_that_the_session_uses():
    assert paho.time_func is __import__("time").monotonic
