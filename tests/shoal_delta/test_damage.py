import hashlib
import multiprocessing
import time
import tracemalloc
from collections import Counter
from functools import partial

import numpy as np
import pytest
from tests.shoal_delta import golden_rows
from tests.shoal_delta.make_golden import OLD as GOLDEN_OLD
from tests.shoal_delta.onnx_files import Layer, message, network

import shoal_delta
from shoal_delta import (
    CorruptDeltaError,
    DeltaError,
    LimitError,
    UnknownVersionError,
    WrongBaseError,
    operations,
)
from shoal_delta.coders import Mode, pack, unpack
from shoal_delta.container import Layout, Segment, encode_header
from shoal_delta.operations import Kind, Operation

SMALL = (Layer(4, 18), Layer(4, 36))
OLD = network(1, layers=SMALL)
NEW = network(2, drift=0.02, own_scales=True, layers=SMALL)
DELTA = shoal_delta.diff(OLD, NEW)


def outcome(delta: bytes) -> bytes | None:
    try:
        return shoal_delta.apply(OLD, delta)
    except DeltaError:
        return None


def header(layout=Layout.SEGMENTED, *, old_size=0, new_size=1, segments=(), **sizes):
    return encode_header(
        layout,
        sizes=(old_size, new_size),
        sha256=(hashlib.sha256(b"").digest(), bytes(32)),
        segments=list(segments),
        **sizes,
    )


def test_no_flipped_bit_makes_a_wrong_file():
    wrong = []
    for position in range(len(DELTA)):
        for bit in range(8):
            flipped = bytearray(DELTA)
            flipped[position] ^= 1 << bit
            if outcome(bytes(flipped)) not in {None, NEW}:
                wrong.append((position, bit))
    assert wrong == []


@pytest.fixture(scope="module")
def mixed():
    """A pair whose delta of about 5 KB holds an entropy-coded stream, literals and planes."""
    rng = np.random.default_rng(9)
    layers = (Layer(16, 144),)
    old = network(1, layers=layers) + message((50, rng.bytes(200)))
    new = network(2, drift=0.03, own_scales=True, layers=layers) + message((50, rng.bytes(3500)))
    # The fast one: mode 9 has a test of its own, and 40,000 flips of it would take hours.
    delta = shoal_delta.diff(old, new, profile="fast")
    assert 4500 < len(delta) < 6500
    streams = {s.mode for segment in shoal_delta.inspect(delta).segments for s in segment.streams}
    assert {"ans", "raw"} <= streams
    return old, new, delta


def flipped_outcome(pair, position):
    """ "refused", "harmless" or "wrong": what becomes of the delta with one bit flipped."""
    old, new, delta = pair
    flipped = bytearray(delta)
    flipped[position >> 3] ^= 1 << (position & 7)
    try:
        made = shoal_delta.apply(old, bytes(flipped))
    except DeltaError:
        return "refused"
    return "harmless" if made == new else "wrong"


def test_a_sample_of_flipped_bits_of_a_5_kb_delta_makes_no_wrong_file(mixed):
    positions = np.random.default_rng(10).integers(0, 8 * len(mixed[2]), 40)
    found = Counter(flipped_outcome(mixed, int(position)) for position in positions)
    print(f"{found.total()} flips: {dict(found)}")
    assert found["wrong"] == 0


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_no_flipped_bit_of_a_5_kb_delta_makes_a_wrong_file(mixed):
    with multiprocessing.get_context("fork").Pool() as pool:
        found = Counter(pool.map(partial(flipped_outcome, mixed), range(8 * len(mixed[2]))))
    print(f"{found.total()} flips: {dict(found)}")
    assert found["wrong"] == 0
    assert found["refused"] > 0.99 * found.total()


def test_a_delta_cut_at_any_length_is_refused_or_harmless():
    made = [outcome(DELTA[:n]) for n in range(len(DELTA))]
    assert set(made) <= {None, NEW}
    # What the last stream does not need may be missing: a few bytes at its very end.
    assert all(file is None for file in made[:-8])
    assert outcome(DELTA + b"\0") in {None, NEW}


def test_random_bytes_with_a_good_header_are_refused():
    rng = np.random.default_rng(7)
    body_at = shoal_delta.inspect(DELTA).header_size
    for _ in range(300):
        damaged = bytearray(DELTA)
        for _ in range(rng.integers(1, 9)):
            damaged[rng.integers(body_at, len(damaged))] = rng.integers(256)
        assert outcome(bytes(damaged)) in {None, NEW}


def test_looking_into_damaged_deltas_raises_nothing_but_delta_errors():
    for position in range(0, len(DELTA), 3):
        damaged = bytearray(DELTA)
        damaged[position] ^= 0x41
        for old in (None, OLD):
            try:
                shoal_delta.inspect(bytes(damaged), old)
            except DeltaError:
                continue


def test_the_wrong_base_is_refused():
    other = bytes([OLD[0] ^ 1]) + OLD[1:]
    for base in (other, OLD[:-1], b""):
        with pytest.raises(WrongBaseError):
            shoal_delta.apply(base, DELTA)
    with pytest.raises(WrongBaseError):
        shoal_delta.inspect(DELTA, other)


def test_what_is_no_delta_is_called_so():
    for junk in (b"", b"SHD", b"\x08\x08onnx model", bytes(5000)):
        with pytest.raises(CorruptDeltaError):
            shoal_delta.apply(OLD, junk)


@pytest.mark.parametrize("version", [1, 7])
def test_another_version_is_named(version):
    with pytest.raises(UnknownVersionError, match=f"version {version} is not known") as caught:
        shoal_delta.apply(OLD, DELTA[:3] + bytes([version]) + DELTA[4:])
    assert caught.value.version == version


def test_a_bomb_of_4_kb_that_claims_4_gb_is_refused_before_anything_is_allocated(tmp_path):
    segments = [Segment(4 << 20, 0, coded_size=1)] * 300
    bomb = header(new_size=4 << 30, segments=segments).ljust(4096, b"\0")
    paths = [tmp_path / name for name in ("old", "bomb", "new")]
    paths[0].write_bytes(b"")
    paths[1].write_bytes(bomb)
    tracemalloc.start()
    try:
        started_s = time.perf_counter()
        # Even where the operator allows such sizes: it is not plausible.
        for limit, message in ((2 << 30, "limit here"), (1 << 40, "honestly")):
            with pytest.raises(LimitError, match=message):
                shoal_delta.apply(b"", bomb, max_output_bytes=limit)
            with pytest.raises(LimitError, match=message):
                shoal_delta.apply_file(*paths, max_output_bytes=limit)
        took_ms = 1000 * (time.perf_counter() - started_s) / 4
        allocated = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    print(f"refused in {took_ms:.2f} ms")
    assert allocated < 1 << 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bomb", "old"]


def test_sizes_beyond_the_limits_are_refused_before_anything_is_unpacked():
    too_long = header(new_size=5 << 20, segments=[Segment(5 << 20, None, coded_size=900)])
    with pytest.raises(LimitError, match="segment claims"):
        shoal_delta.apply(b"", too_long + bytes(900))
    entries = [Segment(5 << 20, 0, coded_size=900), Segment(1, 0, 1)]
    with pytest.raises(LimitError, match="segment claims"):
        shoal_delta.apply(b"", header(new_size=5 << 20, segments=entries) + bytes(901))
    block = header(segments=[Segment(1, 0, 1)], global_size=5 << 20, global_coded_size=1)
    with pytest.raises(LimitError, match="global"):
        shoal_delta.apply(b"", block + bytes(2))
    table = b"SHD\x02\x04\0\0" + bytes(24) + b"\xff\xff\xff\x0f"
    with pytest.raises(LimitError, match="table"):
        shoal_delta.apply(b"", table + bytes(100))
    with pytest.raises(LimitError):
        shoal_delta.apply(OLD, DELTA, max_output_bytes=len(NEW) - 1)


def test_headers_that_contradict_themselves_are_refused():
    for flags in (2, 3, 5, 9, 16, 255):
        with pytest.raises(CorruptDeltaError):
            shoal_delta.apply(b"", b"SHD\x02" + bytes([flags]) + bytes(100))
    # One byte less than nothing; an old file of one byte that makes two without a body.
    for sizes in (b"\0\x01", b"\x01\x02"):
        with pytest.raises(CorruptDeltaError):
            shoal_delta.apply(b"", b"SHD\x02\0" + sizes + bytes(24))


def test_segments_that_do_not_add_up_or_reach_outside_are_refused():
    for segments in ([Segment(2, 0, 1)], [Segment(1, 0, copy_from=0)], []):
        with pytest.raises(CorruptDeltaError):
            shoal_delta.apply(b"", header(segments=segments) + b"\0")


def test_operations_beyond_their_number_are_refused():
    many = operations.encode([Operation(Kind.LITERAL, 1)] * 70_000, 0)
    with pytest.raises(CorruptDeltaError, match="too many"):
        operations.decode(many, 0, 70_000, 0, 0)


def test_a_damaged_solid_delta_is_refused():
    rng = np.random.default_rng(8)
    new = rng.bytes(400_000) * 3
    delta = shoal_delta.diff(b"", new)
    assert shoal_delta.inspect(delta).layout == "solid"
    for position in range(100, len(delta), len(delta) // 12):
        damaged = delta[:position] + bytes([delta[position] ^ 0x55]) + delta[position + 1 :]
        with pytest.raises(CorruptDeltaError):
            shoal_delta.apply(b"", damaged)
    front = header(Layout.SOLID, new_size=9, segments=[Segment(9, None, 1)])
    operations_part = b"\x03\x01\x00\x81"
    for stream in (b"", b"\x00short", b"\x02not zstd", b"\x04", b"\x63unknown"):
        with pytest.raises(CorruptDeltaError):
            shoal_delta.apply(b"", front + operations_part + stream)
    assert shoal_delta.inspect(front + operations_part + b"\x00123456789").tensors


def test_a_solid_delta_with_operations_of_segments_is_refused():
    fresh = b"\x03\x01\x00\x82"
    front = header(Layout.SOLID, new_size=9, segments=[Segment(9, None, 1)])
    with pytest.raises(CorruptDeltaError, match="needs a segment"):
        shoal_delta.apply(b"", front + fresh + b"\x00123456789")


@pytest.mark.parametrize("mode", [*Mode, 5, 6, 7, 8, 255])
def test_no_stream_unpacks_to_more_than_its_size(mode):
    def nothing(_offset, _size):
        raise CorruptDeltaError

    packed = pack(b"abcabcabc" * 500)
    for body in (packed[1:], b"", b"a", bytes(40)):
        try:
            out = unpack(bytes([mode]) + body, 100, nothing)
        except CorruptDeltaError:
            continue
        assert len(out) == 100


def test_no_damaged_byte_of_a_delta_in_mode_9_makes_a_wrong_file():
    delta = golden_rows.delta(GOLDEN_OLD)
    info = shoal_delta.inspect(delta)
    assert "rows" in {s.mode for segment in info.segments for s in segment.streams}
    new = shoal_delta.apply(GOLDEN_OLD, delta)
    outcomes = []
    for position in range(info.header_size, len(delta), 41):
        damaged = bytearray(delta)
        damaged[position] ^= 1 << position % 8
        try:
            outcomes.append(shoal_delta.apply(GOLDEN_OLD, bytes(damaged)) == new)
        except CorruptDeltaError:
            continue
    assert all(outcomes)
