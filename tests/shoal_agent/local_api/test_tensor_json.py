"""Elements of tensors as JSON, and what is not taken for a tensor."""

import json
import struct

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal_agent.inference.errors import BadInputError
from shoal_agent.inference.tensors import Tensor
from shoal_agent.local_api.errors import ApiError
from shoal_agent.local_api.tensor_json import MAX_ELEMENTS, dtype_of, from_json, to_list

WHOLE = {
    "uint8": (0, 255, "B"),
    "int8": (-128, 127, "b"),
    "uint16": (0, 65535, "H"),
    "int16": (-32768, 32767, "h"),
    "uint32": (0, 2**32 - 1, "I"),
    "int32": (-(2**31), 2**31 - 1, "i"),
    "uint64": (0, 2**64 - 1, "Q"),
    "int64": (-(2**63), 2**63 - 1, "q"),
}
# However slow the machine is at the moment.
patient = settings(suppress_health_check=[HealthCheck.too_slow])


def raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(value).encode())


@patient
@given(st.data())
def test_whole_numbers_come_back_as_they_were(data):
    dtype = data.draw(st.sampled_from(sorted(WHOLE)))
    low, high, code = WHOLE[dtype]
    numbers = data.draw(st.lists(st.integers(low, high), max_size=20))
    tensor = from_json(dtype, [len(numbers)], raw(numbers))
    assert tensor.data == struct.pack(f"<{len(numbers)}{code}", *numbers)
    assert to_list("y", tensor) == numbers


@patient
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=20))
def test_floats_of_32_bits_come_back_as_they_were(numbers):
    tensor = from_json("float32", [len(numbers)], raw(numbers))
    assert tensor.data == struct.pack(f"<{len(numbers)}f", *numbers)
    assert to_list("y", tensor) == numbers


@patient
@given(st.lists(st.booleans(), max_size=20))
def test_truths_come_back_as_they_were(truths):
    assert to_list("y", from_json("bool", [len(truths)], raw(truths))) == truths


@patient
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_nested_and_flat_data_are_the_same_tensor(a, b, c):
    flat = list(range(a * b * c))
    nested = [[flat[(i * b + j) * c : (i * b + j + 1) * c] for j in range(b)] for i in range(a)]
    assert from_json("int32", [a, b, c], raw(nested)) == from_json("int32", [a, b, c], raw(flat))


@pytest.mark.parametrize(
    ("dtype", "shape", "text"),
    [
        ("uint8", [1], "[256]"),
        ("uint8", [1], "[-1]"),
        ("int64", [1], "[9223372036854775808]"),
        ("int32", [1], "[1.5]"),
        ("int32", [1], "[true]"),
        ("int32", [1], '["1"]'),
        ("int32", [1], "[null]"),
        ("bool", [1], "[1]"),
        ("float32", [1], "[1e300]"),
        ("float64", [1], "[1e999]"),
        ("float32", [1], "[NaN]"),
        ("float32", [2], "[1]"),
        ("float32", [2, 2], "[[1, 2], [3]]"),
        ("float32", [2, 2], "[[1, 2]]"),
        ("float32", [2, 2], "[[1, 2], [3, 4], [5, 6]]"),
        ("float32", [2, 2], "[1, 2, [3, 4]]"),
        ("float32", [1, 1], "[[[1]]]"),
        ("float32", [1], "[" * 1000),
        ("float32", [1], "1"),
        ("float32", [1], '{"a": 1}'),
        ("float16", [1], "[1]"),
    ],
)
def test_data_that_is_not_what_type_and_shape_say_is_refused(dtype, shape, text):
    with pytest.raises(BadInputError):
        from_json(dtype, shape, msgspec.Raw(text.encode()))


@pytest.mark.parametrize("datatype", ["BYTES", "BF16", "fp32", ""])
def test_a_type_that_is_not_served_is_refused(datatype):
    with pytest.raises(BadInputError, match="FP32"):
        dtype_of(datatype)


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor("float16", (1,), b"\0\0"),
        Tensor("float32", (1,), struct.pack("<f", float("nan"))),
        Tensor("float64", (1,), struct.pack("<d", float("-inf"))),
        Tensor("uint8", (MAX_ELEMENTS + 1,), bytes(MAX_ELEMENTS + 1)),
    ],
)
def test_what_json_has_no_form_for_is_refused_with_what_to_ask_for(tensor):
    with pytest.raises(ApiError, match="binary data"):
        to_list("y", tensor)


def test_a_sum_beyond_every_number_is_not_taken_for_an_infinite_element():
    large = struct.pack("<2d", 1.7e308, 1.7e308)
    assert to_list("y", Tensor("float64", (2,), large)) == [1.7e308, 1.7e308]
