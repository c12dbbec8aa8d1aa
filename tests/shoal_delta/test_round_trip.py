import lzma
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.shoal_delta.onnx_files import (
    FLOAT,
    INT8,
    INT32,
    UINT8,
    Layer,
    model,
    network,
    node,
    tensor,
)

import shoal_delta

HEADER_BYTES = 60
DIGITS = Path(__file__).parents[2] / "fleet" / "shoal_fleet" / "digits"


def best_compression(data: bytes) -> int:
    xz = lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)
    return min(len(xz), len(zstandard.ZstdCompressor(level=19).compress(data)))


def kinds(old: bytes, new: bytes) -> set[str]:
    info = shoal_delta.inspect(shoal_delta.diff(old, new), old)
    return {mode for part in info.tensors for mode in part.modes}


def round_trip(old: bytes, new: bytes) -> bytes:
    delta = shoal_delta.diff(old, new)
    assert shoal_delta.apply(old, delta) == new
    return delta


@given(st.binary(max_size=300), st.binary(max_size=300))
@settings(max_examples=60)
def test_any_two_files_round_trip(old, new):
    delta = round_trip(old, new)
    assert len(delta) <= len(new) + HEADER_BYTES


@given(st.binary(min_size=50, max_size=400), st.data())
@settings(max_examples=60)
def test_a_file_edited_anywhere_round_trips(old, data):
    at = data.draw(st.integers(0, len(old)))
    gone = data.draw(st.integers(0, 40))
    new = old[:at] + data.draw(st.binary(max_size=40)) + old[at + gone :]
    assert len(round_trip(old, new)) <= len(new) + HEADER_BYTES


# NaNs, infinities, zeros of both signs and denormals are drawn as bytes like everything else.
ELEMENT_BYTES = {FLOAT: 4, UINT8: 1, INT8: 1, INT32: 4, 5: 2, 7: 8, 10: 2, 11: 8, 16: 2}


@st.composite
def parts(draw, name):
    dtype = draw(st.sampled_from(sorted(ELEMENT_BYTES)))
    count = draw(st.integers(0, 40))
    size = count * ELEMENT_BYTES[dtype] + draw(st.sampled_from([0, 0, 0, 1]))
    return [name, dtype, (count,), draw(st.binary(min_size=size, max_size=size))]


def mutate(draw, after):
    at = draw(st.integers(0, len(after) - 1))
    match draw(st.sampled_from(["name", "swap", "add", "drop", "nudge", "grow", "dtype"])):
        case "name":
            after[at][0] += "_quantized"
        case "swap":
            after[0], after[at] = after[at], after[0]
        case "add":
            after.insert(at, draw(parts("t9")))
        case "drop" if len(after) > 1:
            del after[at]
        case "nudge":
            after[at][3] = bytes(b + draw(st.integers(0, 2)) & 0xFF for b in after[at][3])
        case "grow":
            after[at][3] += draw(st.binary(max_size=80))
        case "dtype":
            after[at][1] = draw(st.sampled_from(sorted(ELEMENT_BYTES)))


@st.composite
def model_pairs(draw):
    before = [draw(parts(f"t{k % 4}")) for k in range(draw(st.integers(1, 6)))]
    after = [list(part) for part in before]
    for _ in range(draw(st.integers(0, 4))):
        mutate(draw, after)

    def file(tensors):
        names = st.sampled_from([part[0] for part in tensors])
        nodes = [
            node("DequantizeLinear", [draw(names) for _ in range(3)], "y", axis=0) for _ in range(2)
        ]
        return model(nodes, [tensor(*part) for part in tensors])

    return file(before), file(after)


@pytest.mark.slow
@given(model_pairs())
@settings(max_examples=120)
def test_any_two_models_round_trip(pair):
    round_trip(*pair)


def test_equal_files_cost_a_header_and_a_few_bytes():
    old = np.random.default_rng(1).bytes(3 << 20)
    assert len(round_trip(old, old)) <= 40
    assert len(round_trip(b"", b"")) <= 40


def test_one_changed_byte_costs_little_more_than_the_header():
    old = network(1)
    assert len(round_trip(old, old[:3000] + bytes([old[3000] ^ 9]) + old[3001:])) <= 48


def test_a_fine_tuned_model_on_the_same_scales_beats_compression_and_plain_subtraction():
    old, new = network(1), network(2, drift=0.003)
    residual = np.frombuffer(new, np.uint8) - np.frombuffer(old, np.uint8)
    delta = round_trip(old, new)
    assert len(delta) <= 0.5 * best_compression(new)
    assert len(delta) < len(lzma.compress(residual.tobytes(), preset=9 | lzma.PRESET_EXTREME))
    assert {"subtract", "integer32", "copy"} <= kinds(old, new)


def test_the_digits_release_travels_as_less_than_half_of_its_best_compression():
    old, new = ((DIGITS / version / "model.onnx").read_bytes() for version in ("v1", "v2"))
    assert len(round_trip(old, new)) <= 0.5 * best_compression(new)


def test_weights_on_new_scales_are_predicted_from_both_scales():
    old, new = network(1), network(2, drift=0.02, own_scales=True)
    assert len(round_trip(old, new)) <= 0.75 * best_compression(new)
    assert {"scaled-s8", "global"} <= kinds(old, new)


def test_renamed_and_reordered_tensors_are_copied():
    layers = (Layer(), Layer(32, 144))
    old, new = network(1, layers=layers), network(1, layers=layers[::-1], prefix="block")
    assert len(round_trip(network(1), network(1, prefix="block"))) < 0.15 * len(new)
    assert round_trip(old, new)


def test_a_model_that_shares_nothing_costs_no_more_than_its_best_compression():
    rng = np.random.default_rng(3)
    old, new = rng.bytes(9000), network(5)
    assert len(round_trip(old, new)) <= best_compression(new) + HEADER_BYTES
    large = b"".join(rng.bytes(20_000) * 12 for _ in range(6))
    assert len(round_trip(old, large)) <= best_compression(large) + HEADER_BYTES


def test_text_moved_around_in_a_file_that_is_no_model_is_found():
    rng = np.random.default_rng(4)
    parts = [rng.bytes(4000) for _ in range(5)]
    assert len(round_trip(b"".join(parts), b"".join(parts[::-1]))) < 400


def test_rows_put_into_a_table_cost_less_than_with_the_old_file_as_a_dictionary():
    rng = np.random.default_rng(6)
    rows = [b"%d,node%02d,%d\n" % (17 * k, *rng.integers(10, 90, 2)) for k in range(4000)]
    old = b"".join(rows)
    for at in range(300, 3900, 400):
        rows.insert(at, b"%d,node%02d,%d\n" % (rng.integers(68_000), 7, 7))
    new = b"".join(rows)
    prefix = zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    patch = zstandard.ZstdCompressor(level=19, dict_data=prefix).compress(new)
    assert len(round_trip(old, new)) < len(patch) + 24


def test_code_that_was_linked_anew_costs_a_small_part_of_its_changed_addresses():
    rng = np.random.default_rng(7)
    old = bytearray(rng.bytes(60_000))
    new = bytearray(old)
    for at in range(0, 60_000, 60):
        old[at : at + 4] = int(rng.integers(1 << 16)).to_bytes(4, "little")
        new[at : at + 4] = (int.from_bytes(old[at : at + 4], "little") + 48).to_bytes(4, "little")
    grown = bytes(new[:30_000]) + rng.bytes(48) + bytes(new[30_000:])
    assert len(round_trip(bytes(old), grown)) < 48 + 400


def test_a_file_of_many_segments_round_trips_and_long_copies_cost_nothing():
    rng = np.random.default_rng(5)
    old = rng.bytes(2_500_000)
    new = old[:1_200_000] + bytes(b ^ 1 for b in old[1_200_000:1_300_000]) + old[1_300_000:]
    delta = round_trip(old, new)
    info = shoal_delta.inspect(delta)
    assert len(info.segments) == 3
    assert info.segments[0].coded_size == 0


def test_the_same_two_files_give_the_same_bytes_whatever_the_number_of_threads():
    old, new = network(1), network(2, drift=0.003)
    deltas = {shoal_delta.diff(old, new, workers=workers) for workers in (1, 2, 5)}
    assert len(deltas) == 1
