import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_contract.messages import MAX_MESSAGE_BYTES
from shoal_fleet.config import DoorTable
from shoal_fleet.errors import DoorRefusedError
from shoal_fleet.json_door_rules import (
    MAX_COMMAND_BYTES,
    DoorCommand,
    DoorUser,
    answer,
    command_id,
    parse_command,
)
from shoal_fleet.registry import Node


def refusal(payload):
    with pytest.raises(DoorRefusedError) as caught:
        parse_command(payload)
    return caught.value


def test_only_the_operation_must_be_said():
    assert parse_command(b'{"op": "ping"}') == DoorCommand(op="ping")
    whole = b'{"op":"device.set","args":{"channel":2},"id":"a-1","expires_s":5,"priority":9}'
    assert parse_command(whole) == DoorCommand(
        op="device.set", args={"channel": 2}, id="a-1", expires_s=5.0, priority=9
    )


@pytest.mark.parametrize(
    ("payload", "why", "complaint"),
    [
        (b"ping", "json", "not JSON"),
        (b"\xff\xfe", "json", "not JSON"),
        (b'{"op": "ping"', "json", "not JSON"),
        (b'{"op": "ping"} x', "json", "not JSON"),
        (b'{"op": "ping", "op": "reboot"}', "json", "twice"),
        (b'{"op": "ping", "args": {"x": NaN}}', "json", "NaN"),
        (b'{"op": "ping", "args": {"x": 1e999}}', "json", "too large"),
        (b'{"op": "ping", "args": {"x": 18446744073709551616}}', "json", "64 bits"),
        (b'{"op": "ping", "args": {"x": ' + b"9" * 5000 + b"}}", "json", "not JSON"),
        (b'{"op": "ping", "args": ' + b'{"a":' * 5000 + b"1" + b"}" * 5001, "json", "deep"),
        (b" " * (MAX_COMMAND_BYTES + 1), "size", str(MAX_COMMAND_BYTES)),
        (b"[]", "shape", "object"),
        (b'"ping"', "shape", "object"),
        (b"null", "shape", "object"),
        (b"{}", "shape", "op"),
        (b'{"op": 1}', "shape", "op"),
        (b'{"op": ""}', "shape", "op"),
        (b'{"op": "a b"}', "shape", "op"),
        (b'{"op": "ping", "colour": 1}', "shape", "colour"),
        (b'{"op": "ping", "\\ud800": 1}', "json", "surrogate"),
        (b'{"op": "\\ud800"}', "json", "surrogate"),
        (b'{"op": "ping", "args": []}', "shape", "args"),
        (b'{"op": "ping", "id": 7}', "shape", "id"),
        (b'{"op": "ping", "id": ""}', "shape", "id"),
        (b'{"op": "ping", "id": "a\\nb"}', "shape", "id"),
        (b'{"op": "ping", "id": "\\ud800"}', "json", "surrogate"),
        (b'{"op": "ping", "expires_s": 0}', "shape", "expires_s"),
        (b'{"op": "ping", "expires_s": "5"}', "shape", "expires_s"),
        (b'{"op": "ping", "expires_s": 1e300}', "shape", "expires_s"),
        (b'{"op": "ping", "priority": true}', "shape", "priority"),
        (b'{"op": "ping", "priority": 10}', "shape", "priority"),
    ],
)
def test_what_is_no_command_is_refused_with_its_reason(payload, why, complaint):
    error = refusal(payload)
    assert (error.why, complaint in str(error)) == (why, True), error


def test_a_refusal_says_which_command_it_means():
    assert refusal(b'{"op": 1, "id": "a-1"}').request == "a-1"
    assert refusal(b'{"op": "a b", "id": "a-1"}').request == "a-1"
    assert refusal(b'{"op": "ping", "id": 7}').request is None


@given(st.binary(max_size=200))
def test_any_bytes_are_a_command_or_a_refusal(payload):
    with contextlib.suppress(DoorRefusedError):
        assert parse_command(payload).op


# With halves of surrogate pairs, which JSON can say.
texts = st.text(st.characters(exclude_categories=()), max_size=10)
names = st.sampled_from(["op", "args", "id", "expires_s", "priority"]) | texts


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | texts,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=5),
    )
)
def test_any_json_is_a_command_or_a_refusal_that_can_be_said(value):
    try:
        parse_command(json.dumps(value).encode())
    except DoorRefusedError as exc:
        said = answer(node="n0", at_ms=0, state="refused", request=exc.request, reason=str(exc))
        assert json.loads(said)["command"] is None


# ------------------------------------------------------------------ who may what
def user(*ops, nodes=""):
    return DoorUser.of(DoorTable(user="ha", nodes=nodes, ops=ops))


@pytest.mark.parametrize(
    ("ops", "op", "allowed"),
    [
        ((), "ping", False),
        (("ping",), "ping", True),
        (("ping",), "pingx", False),
        (("ping",), "pin", False),
        (("device.*",), "device.set", True),
        (("device.*",), "device", False),
        (("device.*",), "devices.set", False),
        (("*",), "anything.at.all", True),
        (("logs.tail", "device.*"), "device.get", True),
    ],
)
def test_an_operation_is_in_the_scope_by_name_or_by_what_it_begins_with(ops, op, allowed):
    assert user(*ops).may(op) is allowed


def test_nodes_are_in_the_scope_by_their_labels_and_unknown_ones_never():
    oslo = Node(name="a", first_seen_ms=0, labels={"site": "oslo"})
    bergen = Node(name="b", first_seen_ms=0, labels={"site": "bergen"})
    assert user(nodes="site=oslo").sees(oslo)
    assert not user(nodes="site=oslo").sees(bergen)
    assert user().sees(bergen)
    assert not user().sees(None)


# ------------------------------------------------------------------ names of commands
def test_the_same_command_has_the_same_id_and_no_other_one_has_it():
    first = command_id("ha", "n0", "1", None)
    assert first == command_id("ha", "n0", "1", b"other")
    assert len(first) == 8
    others = {
        command_id("ha", "n0", "2", None),
        command_id("ha", "n1", "1", None),
        command_id("hb", "n0", "1", None),
        command_id("ha", "n0", None, b"1"),
        command_id("ha", "n0", None, b"2"),
    }
    assert len(others | {first}) == 6
    assert command_id("ha", "n0", None, None) is None
    assert command_id("ha", "n0", None, b"") is None


# ------------------------------------------------------------------ answers
def test_an_answer_has_every_key_always():
    said = json.loads(answer(node="n0", at_ms=5, state="accepted", command=b"12345678", op="ping"))
    assert said == {
        "id": None,
        "command": "3132333435363738",
        "node": "n0",
        "op": "ping",
        "state": "accepted",
        "at_ms": 5,
        "progress": 0,
        "reason": "",
        "result": None,
    }


def test_a_result_that_is_too_large_is_left_out_and_said_so():
    said = answer(node="n0", at_ms=0, state="succeeded", result="x" * MAX_MESSAGE_BYTES)
    assert len(said) <= MAX_MESSAGE_BYTES
    assert json.loads(said)["result"] is None
    assert "too large" in json.loads(said)["reason"]
