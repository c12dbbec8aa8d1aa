"""What is read of messages that other programs send; and what is not."""

import contextlib
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_agent.errors import PayloadError
from shoal_agent.inference.encodings import to_tensor
from shoal_agent.pipelines.values import (
    MAX_PAYLOAD_BYTES,
    MAX_VALUES,
    ItemReader,
    encoded,
)
from shoal_contract import cbor
from shoal_contract.errors import PathError
from shoal_contract.json_path import parse_path
from shoal_contract.release import InputTable

ZIGBEE = b'{"battery": 97.5, "occupancy": true, "axes": [1, [-2, 3]], "last seen": 4}'


def read(payload: bytes, *paths: str, form: str = "json", encoding: str = "f32") -> list[float]:
    reader = ItemReader(form, tuple(map(parse_path, paths)), encoding)
    item = reader.item(payload)
    return list(struct.unpack(f"<{len(item) // 4}f", item))


def refusal(payload: bytes, *paths: str, form: str = "json", encoding: str = "f32") -> str:
    with pytest.raises(PayloadError) as caught:
        ItemReader(form, tuple(map(parse_path, paths)), encoding).item(payload)
    return str(caught.value)


def test_values_stand_in_the_order_of_the_paths_and_lists_are_flattened():
    assert read(ZIGBEE, "$.axes", "$.battery") == [1, -2, 3, 97.5]


def test_true_and_false_are_one_and_zero():
    assert read(ZIGBEE, "$.occupancy") == [1]


def test_an_index_and_a_quoted_name_lead_on():
    assert read(ZIGBEE, "$.axes[1][0]", "$['last seen']") == [-2, 4]


def test_the_whole_message_can_be_the_value():
    assert read(b"21.5", "$") == [21.5]
    assert read(b"[1, 2]", "$") == [1, 2]


def test_cbor_is_read_like_json():
    payload = cbor.encode({"t": [1.5, 2], "u": False})
    assert read(payload, "$.u", "$.t", form="cbor") == [0, 1.5, 2]


def test_a_raw_message_is_the_item():
    assert ItemReader("raw", (), "u8").item(b"\x00\xff") == b"\x00\xff"


@pytest.mark.parametrize("path", ["$.none", "$.axes[2]", "$.battery.deeper", "$[0]", "$.axes.x"])
def test_a_path_that_leads_nowhere_is_named(path):
    assert refusal(ZIGBEE, path) == f"there is no {path}"


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b'"warm"', "$ leads to text, not to a number"),
        (b"null", "$ leads to null, not to a number"),
        (b"[1, {}]", "$ leads to an object, not to a number"),
        (b"1e999", "not JSON"),
        (b"NaN", "not JSON"),
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"1e39", "a value is too large for a float of 32 bits"),
        (b"1" * 400, "$ is not a finite number"),
    ],
)
def test_what_is_no_number_says_so(payload, said):
    assert refusal(payload, "$").startswith(said)


def test_infinity_in_cbor_is_no_number():
    assert refusal(cbor.encode(float("inf")), "$", form="cbor") == "$ is not a finite number"


def test_a_message_that_is_too_large_is_not_looked_at():
    assert refusal(b" " * (MAX_PAYLOAD_BYTES + 1), "$").startswith(f"{MAX_PAYLOAD_BYTES + 1} bytes")


def test_a_list_of_more_values_than_any_model_takes_ends_early():
    payload = b"[" + b"1," * MAX_VALUES + b"1]"
    assert refusal(payload, "$") == f"more than {MAX_VALUES} values"


def test_a_deep_nest_is_refused_and_not_followed():
    assert refusal(b"[" * 100_000, "$").startswith("not JSON")


@pytest.mark.parametrize(
    "text", ["", "temperature", "$temperature", "$.", "$.a..b", "$[x]", "$['']", "$.a]", "$" * 300]
)
def test_what_is_no_path_is_refused(text):
    with pytest.raises(PathError):
        parse_path(text)


@pytest.mark.parametrize("number", [-1, 256, 0.5])
def test_a_byte_holds_integers_only(number):
    with pytest.raises(PayloadError, match="is no integer from 0 to 255"):
        encoded([number], "u8")


@given(st.lists(st.integers(0, 31), min_size=1, max_size=40), st.sampled_from(["u5", "u8", "f32"]))
def test_the_worker_reads_the_very_numbers_that_were_encoded(numbers, encoding):
    table = InputTable(
        name="x", dtype="float32", shape=[len(numbers)], encoding=encoding, units="1"
    )
    item = encoded(numbers, encoding)
    assert len(item) == table.item_bytes
    raw = np.frombuffer(item, np.uint8)[None]
    assert to_tensor(raw, table).reshape(-1).tolist() == numbers


@given(st.binary(max_size=200), st.sampled_from(["json", "cbor"]))
def test_no_bytes_at_all_lead_to_another_error(payload, form):
    reader = ItemReader(form, (parse_path("$.a[0]"), parse_path("$")), "f32")
    with contextlib.suppress(PayloadError):
        reader.item(payload)


def text_of(payload: bytes, *paths: str, form: str = "json") -> str:
    row = ItemReader(form, tuple(map(parse_path, paths)), "text").item(payload)
    return row.rstrip(b"\0").decode()


def test_a_model_of_texts_gets_the_text_that_a_path_leads_to():
    note = '{"who": "Åse", "what": "the pump leaks"}'.encode()
    assert text_of(note, "$.what") == "the pump leaks"
    assert text_of(note, "$.who", "$.what") == "Åse the pump leaks"
    assert text_of(cbor.encode({"what": "hot"}), "$.what", form="cbor") == "hot"
    assert text_of("zu heiß".encode(), form="raw") == "zu heiß"
    assert text_of(b"", form="raw") == ""


@pytest.mark.parametrize(
    ("payload", "paths", "form", "said"),
    [
        (ZIGBEE, ("$.battery",), "json", "$.battery leads to float, not to a text"),
        (ZIGBEE, ("$.nothing",), "json", "there is no $.nothing"),
        (b"\xff", (), "raw", "text 0 is not UTF-8"),
        (b"a\0b", (), "raw", "text 0 has a zero character in it"),
    ],
)
def test_what_is_no_text_says_so(payload, paths, form, said):
    assert refusal(payload, *paths, form=form, encoding="text") == said
