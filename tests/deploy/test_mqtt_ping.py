"""The module `mqtt_ping`, run as Ansible runs it, against the embedded broker."""

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt import publish
from tests.deploy.ansible_venv import BIN, COLLECTION, REPOSITORY, needs_ansible
from tests.shoal_broker.render.rendered_mosquitto import Authority
from tests.support.mosquitto import Mosquitto
from tests.support.tls_listener import client_files, tls_listener

from shoal_broker.server import Broker, BrokerConfig
from shoal_broker.server.passwords import set_password
from shoal_contract import messages
from shoal_contract.messages import Presence
from shoal_contract.topics import Topics

pytestmark = needs_ansible

BOOT = b"\x01\x02\x03\x04"


@pytest.fixture
async def broker() -> AsyncIterator[Broker]:
    async with Broker.open(BrokerConfig(port=0)) as broker:
        yield broker


async def test_an_online_node_is_found_and_nothing_is_changed(broker: Broker) -> None:
    await _publish(broker, messages.encode(Presence(True, BOOT, 1234)))
    answer = await _ping(broker.port)
    assert answer["changed"] is False
    assert (answer["boot"], answer["since_ms"]) == (BOOT.hex(), 1234)


async def test_it_waits_for_a_node_that_comes_later(broker: Broker) -> None:
    await _publish(broker, messages.encode(Presence(False, BOOT, 1)))
    waiting = asyncio.create_task(_ping(broker.port, timeout_s=10))
    async with asyncio.timeout(10):
        while broker.counters.connections < 2:  # noqa: ASYNC110 - the broker has no event for it
            await asyncio.sleep(0.01)
    await _publish(broker, messages.encode(Presence(True, BOOT, 2)))
    assert (await waiting)["since_ms"] == 2


async def test_an_offline_node_is_named_as_such(broker: Broker) -> None:
    await _publish(broker, messages.encode(Presence(False, BOOT, 1)))
    answer = await _ping(broker.port, timeout_s=1)
    assert answer["failed"] is True
    assert answer["msg"].endswith("not online after 1 s: it is offline")


async def test_the_run_before_a_restart_does_not_count(broker: Broker) -> None:
    await _publish(broker, messages.encode(Presence(True, BOOT, 1)))
    answer = await _ping(broker.port, timeout_s=1, not_boot=BOOT.hex())
    assert answer["msg"].endswith("it has not restarted yet")


async def test_a_node_that_never_spoke_is_named_as_such(broker: Broker) -> None:
    answer = await _ping(broker.port, timeout_s=1)
    assert answer["msg"].endswith("the node has published no presence")


@pytest.mark.parametrize("payload", [b"online", b"\xff" * 4096, b"\x80", b"\x82\x05\xf5"])
async def test_a_presence_that_is_none_is_refused(broker: Broker, payload: bytes) -> None:
    await _publish(broker, payload)
    answer = await _ping(broker.port, timeout_s=1)
    assert "its presence cannot be read" in answer["msg"]
    assert "Traceback" not in json.dumps(answer)


async def test_a_name_that_is_no_node_id_is_refused_at_once() -> None:
    answer = await _ping(1, node="Board/1")
    assert "'Board/1' is not a node id" in answer["msg"]


async def test_a_password_does_not_leave_this_machine_in_the_clear_by_accident() -> None:
    answer = await _ping(1, host="192.0.2.1", username="operator", password="secret")
    assert "192.0.2.1 is another machine" in answer["msg"]
    assert "plaintext: true" in answer["msg"]
    answer = await _ping(1, host="192.0.2.1", plaintext=True, timeout_s=1)
    assert "another machine" not in answer["msg"]


async def test_an_unreachable_broker_is_named_as_such() -> None:
    answer = await _ping(1, timeout_s=1)
    assert "the broker was not reached" in answer["msg"]


async def test_a_wrong_password_is_not_tried_again(tmp_path: Path) -> None:
    users = tmp_path / "users"
    set_password(users, "operator", "right")
    async with Broker.open(BrokerConfig(port=0, password_file=users)) as broker:
        answer = await _ping(broker.port, timeout_s=10, username="operator", password="wrong")
    assert "the broker refuses the connection" in answer["msg"]
    assert "wrong" not in json.dumps(answer)


@pytest.mark.system
async def test_over_tls_a_certificate_that_is_refused_is_not_tried_again(tmp_path: Path) -> None:
    if Mosquitto.found() is None:
        pytest.skip("mosquitto is not installed (apt-get install mosquitto)")
    authority, stranger = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    authority.issue("expired", days=-1)
    async with Mosquitto.open(tmp_path, extra=tls_listener(authority)) as broker:
        for files, told in (
            (client_files(authority), "the node has published no presence"),
            (client_files(authority, "expired"), "refuses our certificate: certificate expired"),
            (client_files(stranger), "we do not accept the broker's certificate"),
        ):
            names = ("ca_file", "cert_file", "key_file")
            given = {name: getattr(files, name) for name in names}
            answer = await _ping(broker.port, timeout_s=1, **given)
            assert told in answer["msg"]
            assert ("not online after" in answer["msg"]) == (told.startswith("the node"))
    answer = await _ping(1, ca_file=str(tmp_path / "none"))
    assert "cannot be read" in answer["msg"]


async def _publish(broker: Broker, payload: bytes) -> None:
    await asyncio.to_thread(
        publish.single,
        Topics().presence("board-1"),
        payload,
        qos=1,
        retain=True,
        hostname="127.0.0.1",
        port=broker.port,
        protocol=mqtt.MQTTv5,
    )


async def _ping(port: int, **arguments: object) -> dict[str, Any]:
    """The module's answer."""
    given = {"node": "board-1", "host": "127.0.0.1", "port": port, "timeout_s": 5, **arguments}
    done = await asyncio.to_thread(
        subprocess.run,
        [BIN / "python", COLLECTION / "plugins/modules/mqtt_ping.py"],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": given}),
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "broker")},
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )
    assert done.stdout.startswith("\n{"), done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    assert ("failed" in answer) == bool(done.returncode)
    return answer
