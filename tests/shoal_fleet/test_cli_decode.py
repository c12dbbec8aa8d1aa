import json
import signal
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from shoal_contract import envelope, frames, messages
from shoal_contract.frames import Frame, Kind, Op
from shoal_contract.messages import (
    Cancel,
    CommandUpdate,
    Hardware,
    ModelState,
    Phase,
    Reported,
    State,
)
from shoal_contract.signatures import Signer
from shoal_contract.topics import Channel, Topics
from shoal_fleet import cli

TOPICS = Topics()
UPDATE = CommandUpdate(b"12345678", State.RUNNING, 5, progress=3, result={"raw": b"\x01\x02"})


def line(topic, payload):
    return f"{topic} {payload.hex()}\n"


def decode(*arguments, stdin=""):
    found = CliRunner().invoke(cli.app, ["decode", *map(str, arguments)], input=stdin)
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return found.exit_code, [json.loads(text) for text in found.stdout.splitlines()]


def test_a_message_has_its_names_and_its_bytes_are_hex():
    stdin = line(TOPICS.results("n1"), messages.encode(UPDATE))
    assert decode(stdin=stdin) == (
        0,
        [
            {
                "topic": "shoal/n/n1/r",
                "node": "n1",
                "channel": "results",
                "kind": "CommandUpdate",
                "message": {
                    "id": "3132333435363738",
                    "state": "running",
                    "at_ms": 5,
                    "reason": "",
                    "result": {"raw": "0102"},
                    "progress": 3,
                },
            }
        ],
    )


def test_a_signed_message_is_opened_and_its_key_named():
    signer = Signer(b"k" * 32)
    topic = TOPICS.commands("n1")
    payload = signer.sign(messages.encode(Cancel(b"12345678")), topic=topic)
    code, (found,) = decode(stdin=line(topic, payload))
    assert (code, found["kind"], found["message"]) == (0, "Cancel", {"id": "3132333435363738"})
    assert found["signed_by"] == envelope.key_id(signer.public_key).hex()
    assert decode(stdin=line(topic, payload[:-1]))[0] == 1


def test_pieces_of_messages_have_their_names_too():
    model = ModelState("digits", b"", "1.0.0", b"r" * 32, Phase.FETCHING)
    hardware = Hardware(model="Pi", os="Debian", machine="aarch64", cpus=4)
    state = Reported("0.1.0", b"boot", 5, hardware, [model], ["meter"])
    _, (found,) = decode(stdin=line(TOPICS.state("n1"), messages.encode(state)))
    assert found["message"]["models"][0]["phase"] == "fetching"
    assert found["message"]["hardware"]["cpus"] == 4


def test_every_kind_of_topic_is_told_apart():
    stdin = "".join(
        [
            line(TOPICS.telemetry("n1", "digits"), messages.encode(UPDATE)),
            line(TOPICS.group_commands("oslo"), messages.encode(UPDATE)),
            line(TOPICS.chunk(b"\xab" * 32, 7), b"raw bytes"),
            line(TOPICS.update("timestamp"), b"\x01"),
            line(TOPICS.door("ha", "n1", Channel.COMMANDS), b'{"op": "ping", "args": {"x": NaN}}'),
            line(TOPICS.state("n1"), b""),
            messages.encode(UPDATE).hex() + "\n",
        ]
    )
    code, found = decode(stdin=stdin)
    assert code == 0
    telemetry, group, chunk, update, door, cleared, bare = found
    assert (telemetry["channel"], telemetry["leaf"]) == ("telemetry", "digits")
    assert group["group"] == "oslo"
    assert (chunk["blob"], chunk["chunk"], chunk["size_bytes"]) == ("ab" * 32, 7, 9)
    assert (update["update"], update["payload"]) == ("timestamp", "01")
    assert (door["door"], door["json"]) == ("ha", {"op": "ping", "args": {"x": "nan"}})
    assert cleared["cleared"] is True
    assert (bare["kind"], "topic" in bare) == ("CommandUpdate", False)


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        ("shoal/n/n1/r zz", "hex"),
        ("shoal/n/n1/r 0", "hex"),
        ("shoal/n/n1/r ff", "CBOR"),
        ("shoal/n/n1/r 8218c801", "kind 200"),
        ("shoal/n/n1/x 00", "not a topic"),
        ("other/n/n1/r 00", "not below"),
        ("nothing", "hex"),
        (line(TOPICS.door("ha", "n1", Channel.COMMANDS), b"ping").strip(), "not JSON"),
        (line(TOPICS.door("ha", "n1", Channel.COMMANDS), b'"\\ud800"').strip(), "not JSON"),
        ("shoal/n/n1/r " + "00" * 98_305, "98304"),
        ("x" * 300_000, "a line of more than"),
    ],
)
def test_a_malformed_line_is_an_error_and_the_next_one_is_decoded(bad, complaint):
    good = line(TOPICS.results("n1"), messages.encode(UPDATE))
    code, (error, found) = decode(stdin=f"{bad}\n{good}")
    assert code == 1
    assert error["line"] == 1
    assert complaint in error["error"]
    assert found["kind"] == "CommandUpdate"


def test_a_line_that_is_no_text_is_an_error(tmp_path):
    file = tmp_path / "lines"
    file.write_bytes(b"\xff\xfe 00\n" + line(TOPICS.state("n1"), b"").encode())
    code, (error, found) = decode(file)
    assert (code, error["error"], found["cleared"]) == (1, "not UTF-8 text", True)


def test_a_file_and_one_payload_are_decoded_as_well(tmp_path):
    file = tmp_path / "lines"
    file.write_text(line(TOPICS.results("n1"), messages.encode(UPDATE)) + "\n\n")
    code, (found,) = decode(file)
    assert (code, found["node"]) == (0, "n1")
    code, (found,) = decode(messages.encode(UPDATE).hex())
    assert (code, found["kind"]) == (0, "CommandUpdate")
    large = CommandUpdate(b"12345678", State.SUCCEEDED, 5, result="x" * 3000)
    code, (found,) = decode(messages.encode(large).hex())
    assert (code, found["message"]["result"]) == (0, "x" * 3000)
    code, (found,) = decode(tmp_path / "none")
    assert (code, "hex" in found["error"]) == (1, True)


def test_another_root_is_named():
    stdin = line(Topics("acme/p1").results("n1"), messages.encode(UPDATE))
    assert decode("--root", "acme/p1", stdin=stdin)[1][0]["node"] == "n1"


def test_device_frames_are_decoded_all_that_stand_on_a_line():
    wire = frames.encode(Frame(Kind.REPLY, 7, Op.SET, (0, b"x")))
    wire += frames.encode(Frame(Kind.EVENT, 8, 70, (1.5,)))
    code, found = decode("--frames", stdin=wire.hex() + "\n")
    assert code == 0
    assert found == [
        {"frame": "reply", "seq": 7, "op": "set", "args": [0, "78"], "status": "ok"},
        {"frame": "event", "seq": 8, "op": 70, "args": [1.5]},
    ]
    damaged = bytearray(wire)
    damaged[3] ^= 1
    code, (error,) = decode("--frames", damaged.hex())
    assert (code, "checksum" in error["error"]) == (1, True)


@settings(max_examples=50)
@given(st.binary(max_size=60))
def test_any_payload_is_one_line(payload):
    for topic in (TOPICS.results("n1"), TOPICS.door("ha", "n1", Channel.COMMANDS)):
        _, (found,) = decode(stdin=line(topic, payload))
        assert "error" in found or "kind" in found or "json" in found or "cleared" in found


# ------------------------------------------------------------------ as a filter
def filter_process():
    return subprocess.Popen(
        [sys.executable, "-m", "shoal_fleet", "decode"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.system
def test_each_line_is_answered_at_once_and_ctrl_c_is_quiet():
    with filter_process() as process:
        for _ in range(2):
            process.stdin.write(line(TOPICS.results("n1"), messages.encode(UPDATE)).encode())
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["node"] == "n1"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stderr.read() == b""


@pytest.mark.system
def test_a_reader_that_has_enough_ends_it_quietly():
    with filter_process() as process:
        process.stdin.write(line(TOPICS.results("n1"), messages.encode(UPDATE)).encode())
        process.stdin.flush()
        assert process.stdout.readline()
        process.stdout.close()
        process.stdin.write(2 * line(TOPICS.results("n1"), messages.encode(UPDATE)).encode())
        process.stdin.close()
        assert process.wait(10) == 0
        assert process.stderr.read() == b""
