"""`make bench-broker`: the generator's packets, that it counts what was lost, and a quick run of every load."""

import json
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shoal_broker import codec

BENCH = Path(__file__).resolve().parents[2] / "bench"


def decoded(packet):
    reader = codec.PacketReader()
    reader.feed(packet)
    return reader.next_packet()


def test_what_the_generator_sends_is_what_the_codec_reads(bench):
    mqtt = bench("mqtt_bytes")
    hello = decoded(mqtt.connect(mqtt.MQTT_5, "bench", is_persistent=True))
    assert (hello.client_id, hello.clean_start, hello.receive_max) == ("bench", False, 1024)
    assert hello.session_expiry_interval == 0xFFFFFFFF
    assert decoded(mqtt.connect(mqtt.MQTT_5, "b")).clean_start
    wanted = decoded(mqtt.subscribe(mqtt.MQTT_5, "a/+", 1))
    assert [(w.pattern, int(w.max_qos)) for w in wanted.topic_filters] == [("a/+", 1)]
    assert decoded(mqtt.unsubscribe(mqtt.MQTT_5, "a/+")).patterns == ["a/+"]
    for size_bytes in (0, 64, 130, 20_000):
        message = decoded(
            mqtt.publish(mqtt.MQTT_5, "a/b", b"x" * size_bytes, qos=1, packet_id=300, retain=True)
        )
        assert (message.topic, message.payload) == ("a/b", b"x" * size_bytes)
        assert (message.packet_id, message.retain, int(message.qos)) == (300, True, 1)
    assert decoded(mqtt.reply(mqtt.PUBREL, b"\x01\x02")).packet_id == 0x0102


def test_in_3_1_1_it_is_the_same_without_properties(bench):
    mqtt = bench("mqtt_bytes")
    assert mqtt.connect(mqtt.MQTT_311, "b") == b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01b"
    assert (
        mqtt.publish(mqtt.MQTT_311, "t", b"x", qos=1, packet_id=7) == b"\x32\x06\x00\x01t\x00\x07x"
    )
    assert mqtt.subscribe(mqtt.MQTT_311, "t", 1) == b"\x82\x06\x00\x01\x00\x01t\x01"


@pytest.mark.parametrize("level", [4, 5])
def test_what_comes_in_is_cut_into_packets_wherever_it_was_split(bench, level):
    mqtt = bench("mqtt_bytes")
    stream = b"".join(
        (
            mqtt.publish(level, "t", b"x" * 200, qos=1, packet_id=9),
            mqtt.publish(level, "t", b"y", qos=0),
            mqtt.reply(mqtt.PUBACK, b"\x00\x05"),
        )
    )
    for at in range(len(stream)):
        cutter = mqtt.Cutter(level)
        found = cutter.feed(stream[:at]) + cutter.feed(stream[at:])
        assert [(came.kind, came.packet_id, came.payload) for came in found] == [
            (mqtt.PUBLISH, b"\x00\x09", b"x" * 200),
            (mqtt.PUBLISH, b"", b"y"),
            (mqtt.PUBACK, b"\x00\x05", b""),
        ]


@pytest.mark.parametrize(
    ("packet", "code"),
    [
        (b"\x20\x03\x00\x87\x00", "0x87"),
        (b"\x20\x02\x00\x01", "0x01"),
        (b"\x90\x04\x00\x01\x00\x97", "0x97"),
        (b"\x40\x03\x00\x01\x97", "0x97"),
    ],
)
def test_a_refusal_ends_the_run_with_its_code(bench, packet, code):
    with pytest.raises(bench("measure").BenchError, match=code):
        bench("mqtt_bytes").Cutter(5).feed(packet)


def test_a_message_that_does_not_come_back_is_counted_as_lost(bench, monkeypatch):
    generator, mqtt = bench("generator"), bench("mqtt_bytes")
    ours, theirs = socket.socketpair()

    def swallow_every_third():
        cutter = mqtt.Cutter(5)
        with theirs:
            while received := theirs.recv(1 << 16):
                for came in cutter.feed(received):
                    number = int.from_bytes(came.payload[:8], "big")
                    theirs.sendall(mqtt.reply(mqtt.PUBACK, came.packet_id) if came.qos else b"")
                    if number % 3:
                        theirs.sendall(mqtt.publish(5, "t", came.payload, qos=0))

    broker = threading.Thread(target=swallow_every_third)
    broker.start()
    with ours:
        ours.settimeout(0.5)
        echo = generator.Client(ours, 5).echo("t", 9, in_flight=9, qos=1)
    broker.join()
    assert (echo.sent, echo.delivered) == (9, 6)


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.timeout(90)
def test_a_quick_run_has_every_load_with_nothing_lost(tmp_path):
    out = tmp_path / "bench.json"
    ended = subprocess.run(
        [
            sys.executable,
            BENCH / "run.py",
            "--quick",
            "--area",
            "broker",
            "--json",
            out,
            "--dir",
            tmp_path,
        ],
        capture_output=True,
        text=True,
        timeout=80,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    table = json.loads(out.read_bytes())["areas"]["broker"]
    rows = {row["name"]: row for row in table["rows"]}
    loads = {name.removesuffix(": shoal-broker") for name, row in rows.items() if row["is_ours"]}
    assert loads >= {
        "QoS 1",
        "QoS 0",
        "QoS 2",
        "TLS, QoS 1",
        "3.1.1, QoS 1",
        "durable, QoS 1",
        "many publishers",
        "fan-out, QoS 1",
        "fan-out, QoS 0",
        "chunk, published",
        "chunk, subscribing",
        "idle",
        "idle, subscribed",
    }
    for name, row in rows.items():
        assert not row["lost"], name
        assert row["figures"]["delivered"] == row["figures"]["sent"], name
    goals = {goal["name"]: goal["limit"] for goal in table["goals"]}
    assert goals["CPU a message, QoS 1"] == 25
    assert goals["CPU a message, QoS 0"] == 10
    assert goals["memory of a connection, idle"] == 5
    assert all(name in ended.stdout for name in goals)
    assert [path for path in tmp_path.iterdir() if path != out] == []
