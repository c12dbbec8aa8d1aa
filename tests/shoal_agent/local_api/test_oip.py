"""Requests of Open Inference Protocol: what they say, and that no bytes are anything but a request or a refusal."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal_agent.inference import texts
from shoal_agent.inference.errors import BadInputError
from shoal_agent.inference.tensors import Tensor
from shoal_agent.local_api import oip
from shoal_agent.local_api.errors import ApiError

X = {"name": "x", "shape": [2], "datatype": "UINT8", "data": [1, 2]}
AS_BYTES = {"name": "x", "shape": [2], "datatype": "UINT8", "parameters": {"binary_data_size": 2}}
# However slow the machine is at the moment.
patient = settings(suppress_health_check=[HealthCheck.too_slow])


def request(*inputs: dict, **more) -> bytes:
    return json.dumps({"inputs": list(inputs), **more}).encode()


def test_a_tensor_as_bytes_is_taken_from_behind_the_json():
    head = request(AS_BYTES, {**AS_BYTES, "name": "y"}, X | {"name": "z"})
    call = oip.decode(head + b"abcd", len(head))
    assert [bytes(tensor.data) for tensor in call.inputs.values()] == [b"ab", b"cd", b"\1\2"]


def test_outputs_are_in_the_form_that_was_asked_for():
    json_but_y = [{"name": "y", "parameters": {"binary_data": True}}, {"name": "z"}]
    call = oip.decode(request(X, outputs=json_but_y))
    assert (call.outputs, call.is_binary("y"), call.is_binary("z")) == (("y", "z"), True, False)
    bytes_but_z = [{"name": "z", "parameters": {"binary_data": False}}, {"name": "y"}]
    parameters = {"binary_data_output": True}
    call = oip.decode(request(X, outputs=bytes_but_z, parameters=parameters))
    assert (call.is_binary("y"), call.is_binary("z"), call.is_binary("other")) == (
        True,
        False,
        True,
    )


def test_an_answer_has_its_bytes_in_the_order_of_its_outputs():
    call = oip.decode(request(X, id="7", parameters={"binary_data_output": True}))
    outputs = {"b": Tensor("uint8", (2,), b"ab"), "a": Tensor("int8", (1,), b"c")}
    answer = oip.encode(call, outputs, model="m", version="v", parameters={})
    assert json.loads(answer.header) == {
        "model_name": "m",
        "model_version": "v",
        "id": "7",
        "outputs": [
            {"name": "b", "datatype": "UINT8", "shape": [2], "parameters": {"binary_data_size": 2}},
            {"name": "a", "datatype": "INT8", "shape": [1], "parameters": {"binary_data_size": 1}},
        ],
    }
    assert answer.tensors == (b"ab", b"c")
    assert answer.size_bytes == len(answer.header) + 3


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"{}",
        b"[1]",
        b"[" * 100_000,
        request(),
        request(X, X),
        request(*({**X, "name": str(n)} for n in range(65))),
        request({**X, "name": ""}),
        request({**X, "shape": [-1]}),
        request({**X, "shape": [1] * 9}),
        request({**X, "shape": [1 << 31, 1 << 31]}),
        request({**X, "datatype": "BYTES"}),
        request({key: value for key, value in X.items() if key != "data"}),
        request({**X, "parameters": {"binary_data_size": 0}}),
        request(AS_BYTES),
        request({**AS_BYTES, "parameters": {"binary_data_size": -1}}),
        request({**AS_BYTES, "parameters": {"binary_data_size": "2"}}),
        request(X, parameters={"priority": -1}),
        request(X, parameters={"priority": "high"}),
        request(X, parameters={"timeout": 1.5}),
        request(X, parameters={"binary_data_output": 1}),
        request(X, parameters={"sequence_id": 3}),
        request(X, parameters={"sequence_id": []}),
        request(X, parameters={"priority": {}}),
        request({**X, "parameters": {"binary_data_size": [2]}}),
        request(X, outputs=[{"name": "y", "parameters": {"classification": 3}}]),
        request(X, outputs=[{"name": "y", "parameters": {"binary_data": "yes"}}]),
        request(X) + b" {}",
    ],
)
def test_what_is_no_request_is_refused(body):
    with pytest.raises(BadInputError):
        oip.decode(body)


def test_bytes_that_are_no_tensors_are_refused():
    head = request(AS_BYTES)
    with pytest.raises(BadInputError, match="1 bytes follow"):
        oip.decode(head + b"abc", len(head))


def test_more_json_than_is_read_is_refused_unread():
    with pytest.raises(ApiError) as refused:
        oip.decode(b" " * (oip.MAX_JSON_BYTES + 1))
    assert refused.value.status == 413


@patient
@given(st.binary(max_size=300), st.one_of(st.none(), st.integers(-1, 400)))
def test_any_bytes_are_a_request_or_a_refusal(body, header_bytes):
    with pytest.raises(BadInputError):
        oip.decode(body, header_bytes)


_JSON = st.sampled_from(
    [None, True, False, 0, 1, -1, 2**64, 0.5, -0.0, "", "1", [], [1], {}, {"a": {}}, "\ud800"]
)
_PARAMETERS = (
    "sequence_id",
    "priority",
    "timeout",
    "binary_data_output",
    "stream_rows",
    "binary_data_size",
    "binary_data",
    "classification",
)


@patient
@given(
    st.dictionaries(st.sampled_from(_PARAMETERS), _JSON),
    st.dictionaries(st.sampled_from(_PARAMETERS), _JSON),
    st.dictionaries(st.sampled_from(_PARAMETERS), _JSON),
)
def test_any_parameters_are_taken_or_refused(of_request, of_input, of_output):
    part = {**X, "parameters": of_input}
    output = {"name": "y", "parameters": of_output}
    try:
        oip.decode(request(part, parameters=of_request, outputs=[output]))
    except BadInputError:
        return


@patient
@given(st.data())
def test_a_request_with_one_byte_changed_is_a_request_or_a_refusal(data):
    head = bytearray(request(AS_BYTES, {**X, "name": "z"}, outputs=[{"name": "y"}], id="a"))
    head[data.draw(st.integers(0, len(head) - 1))] = data.draw(st.integers(0, 255))
    try:
        call = oip.decode(bytes(head) + b"ab", len(head))
    except BadInputError:
        return
    assert len(call.inputs) == 2


def texts_of(call: oip.Call, name: str = "text") -> list[str]:
    tensor = call.inputs[name]
    count, length = tensor.shape
    assert tensor.dtype == "uint8"
    rows = [bytes(tensor.data[n * length : (n + 1) * length]) for n in range(count)]
    return [row.rstrip(b"\0").decode() for row in rows]


TEXT = {"name": "text", "datatype": "BYTES"}


@pytest.mark.parametrize(
    "more",
    [
        {"shape": [2], "data": ["the pump", "zu heiß"]},
        {"shape": [2, 1], "data": [["the pump"], ["zu heiß"]]},
        {"shape": [2, 1], "data": ["the pump", "zu heiß"]},
    ],
)
def test_texts_are_taken_from_json(more):
    assert texts_of(oip.decode(request(TEXT | more))) == ["the pump", "zu heiß"]


def test_texts_are_taken_from_behind_the_json():
    data = texts.joined([b"hot", "ü".encode()])
    part = TEXT | {"shape": [2], "parameters": {"binary_data_size": len(data)}}
    head = request(part, X)
    assert texts_of(oip.decode(head + data, len(head))) == ["hot", "ü"]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"shape": [2], "data": ["one"]}, "data has 1 texts; its shape says 2"),
        ({"shape": [1], "data": [7]}, "data of BYTES"),
        ({"shape": [1], "data": "one"}, "data of BYTES"),
        ({"shape": [], "data": ["one"]}, r"texts have the shape \[n\]"),
        ({"shape": [1, 2], "data": [["one", "two"]]}, r"texts have the shape \[n\]"),
        ({"shape": [1], "data": [["one"]]}, "nested 2 deep"),
        ({"shape": [1], "data": ["a\0b"]}, "zero character"),
        ({"shape": [1], "parameters": {"binary_data_size": 2}}, "are not 1 texts"),
    ],
)
def test_what_are_no_texts_is_refused_with_the_reason(more, reason):
    head = request(TEXT | more)
    is_binary = "parameters" in more
    with pytest.raises(BadInputError, match=reason):
        oip.decode(head + (b"ab" if is_binary else b""), len(head) if is_binary else None)
