import contextlib

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from shoal_delta import CorruptDeltaError, DeltaError, LimitError, views
from shoal_delta.coders import pack
from shoal_delta.decoding import reader_of
from shoal_delta.views import MAX_MAPPED, MAX_TURNED_BYTES, AxisMap, View, Views
from shoal_delta.wire import Cursor, varint

OLD = np.random.default_rng(1).bytes(5000)


@st.composite
def maps(draw):
    length = draw(st.integers(1, 9))
    kept = sorted(draw(st.sets(st.integers(0, length - 1), min_size=1)))
    for _ in range(draw(st.integers(0, 2))):
        kept.insert(draw(st.integers(0, len(kept))), -1)
    return AxisMap(length, np.array(kept, np.int32))


@st.composite
def seen(draw):
    axes = tuple(draw(st.lists(st.one_of(st.integers(1, 5), maps()), min_size=1, max_size=4)))
    order = draw(st.one_of(st.none(), st.permutations(range(len(axes))).map(tuple)))
    cell, fill = draw(st.sampled_from([1, 2, 4])), draw(st.integers(0, 255))
    view = View(draw(st.integers(0, 10)), cell, axes, fill, order)
    assume(view.source + view.old_size <= len(OLD))
    return view


def wanted(view: View) -> bytes:
    lengths = [a if isinstance(a, int) else a.old_length for a in view.axes]
    old = np.frombuffer(OLD, np.uint8)[view.source : view.source + view.old_size]
    array = old.reshape(*lengths, view.cell)
    for axis, each in enumerate(view.axes):
        if isinstance(each, AxisMap):
            array = np.take(array, np.maximum(each.indices, 0), axis)
            shape = [1] * array.ndim
            shape[axis] = -1
            array = np.where((each.indices < 0).reshape(shape), np.uint8(view.fill), array)
    if view.order is not None:
        array = array.transpose(*view.order, array.ndim - 1)
    return array.tobytes()


def round_trip(some: Views) -> Views:
    cursor = Cursor(views.encode(some))
    again = views.decode(cursor, some.old_size)
    assert cursor.remaining == 0
    return again


@given(st.lists(seen(), min_size=1, max_size=3), st.data())
def test_a_view_shows_the_old_tensor_with_its_axes_changed(some, data):
    old = OLD[: max(view.source + view.old_size for view in some)]
    again = round_trip(Views(tuple(some), len(old)))
    whole = old + b"".join(wanted(view) for view in some)
    assert again.end == len(whole)
    first = data.draw(st.integers(0, len(whole)))
    size = data.draw(st.integers(0, len(whole) - first))
    assert again.reader(reader_of(old))(first, size) == whole[first : first + size]


def test_a_large_view_is_read_in_blocks_and_no_more_of_the_old_file_than_it_shows():
    old = np.random.default_rng(2).bytes(3 << 20)
    few = AxisMap(1024, np.array([1, 1000], np.int32))
    view = View(0, 1, (3 << 10, few))
    read = []

    def counted(offset, size):
        read.append(size)
        return old[offset : offset + size]

    shown = Views((view,), len(old)).reader(counted)(len(old), view.size)
    wanted_rows = np.frombuffer(old, np.uint8).reshape(-1, 1024)[:, [1, 1000]]
    assert shown == wanted_rows.tobytes()
    assert max(read) <= 1 << 20
    assert sum(read) <= 520 * view.size


def test_of_a_large_cell_no_more_is_read_than_is_asked_for():
    old = np.random.default_rng(3).bytes(1 << 20)
    view = View(7, 100_000, (AxisMap(10, np.array([8, -1, 3], np.int32)),), fill=9)
    read = []

    def counted(offset, size):
        read.append(size)
        return old[offset : offset + size]

    whole = old[800_007:900_007] + bytes([9]) * 100_000 + old[300_007:400_007]
    shown = Views((view,), len(old)).reader(counted)
    for first, size in ((5, 3), (99_990, 20), (150_000, 60_000), (0, 300_000), (299_999, 1)):
        read.clear()
        assert shown(len(old) + first, size) == whole[first : first + size]
        assert sum(read) <= size


def test_cells_that_lie_far_apart_are_read_one_by_one():
    old = np.random.default_rng(4).bytes(1 << 20)
    view = View(0, 1, (256, AxisMap(4096, np.array([77], np.int32))))
    read = []

    def counted(offset, size):
        read.append(size)
        return old[offset : offset + size]

    shown = Views((view,), len(old)).reader(counted)(len(old), view.size)
    assert shown == old[77::4096]
    assert sum(read) <= 4096


def test_a_view_is_found_among_thousands_without_looking_at_all_of_them():
    old = bytes(range(250))
    some = Views(tuple(View(at % 250, 1, (1,)) for at in range(4000)), len(old))
    shown = some.reader(reader_of(old))
    assert shown(len(old) + 3000, 500) == bytes(at % 250 for at in range(3000, 3500))
    assert shown(248, 4) == bytes([248, 249, 0, 1])


def table(body: bytes) -> bytes:
    packed = pack(body)
    return b"\xff" + varint(len(body)) + varint(len(packed)) + packed


ONE_MAP = bytes([1, 1, 0, 0, 4, 0])  # one map: one run, four indices kept


@pytest.mark.parametrize(
    "body",
    [
        b"\0",  # nothing follows the maps
        bytes([0, 1, 0, 1, 0, 0]),  # no axes
        bytes([0, 1, 0, 0, 0, 2, 0, 5]),  # elements of no bytes
        bytes([0, 1, 0, 1, 0, 2, 0, 0]),  # an empty axis
        bytes([0, 1, 0, 1, 0, 2, 1]),  # a map that is not there
        bytes([0, 1, 0, 1, 0, 2, 0, 101]),  # beyond the old file
        bytes([0, 1, 1, 1, 0, 2, 0, 5]),  # before it
        bytes([0, 1, 0, 1, 0, 5, 0, 5, 0, 5, 0, 0]),  # the same axis twice
        bytes([0, 1, 0, 1, 0, 2, 0, 5, 7]),  # something follows
        ONE_MAP + bytes([1, 0, 30, 0, 2, 1]),  # a mapped axis beyond the old file
        bytes([9, 1, 0, 0, 4, 0]),  # fewer maps than said
    ],
)
def test_a_table_of_views_that_makes_no_sense_is_refused(body):
    with pytest.raises(CorruptDeltaError):
        views.decode(Cursor(table(body)), 100)


@pytest.mark.parametrize(
    "body",
    [
        bytes([1, 1, 0]) + varint(MAX_MAPPED + 1) + bytes([4, 0]),
        bytes([1, 1, 0, 0]) + varint(1 << 60) + bytes([0]),
        bytes([1, 1]) + varint(1 << 60) + bytes([0, 1, 0]),
        b"\0" + varint(5000),
        b"\0" + bytes([1, 0, 1, 0, 3, 0]) + varint(MAX_TURNED_BYTES + 1) + b"\0",
    ],
)
def test_a_table_of_views_that_claims_too_much_is_refused_before_anything_is_allocated(body):
    with pytest.raises(LimitError):
        views.decode(Cursor(table(body)), 1 << 30)


def test_a_table_larger_than_the_limit_is_not_unpacked():
    with pytest.raises(LimitError):
        views.decode(Cursor(b"\xff" + varint(1 << 40) + varint(3) + b"\1\0"), 100)


@given(st.binary(max_size=40))
def test_any_bytes_are_a_table_of_views_or_a_clear_error(data):
    with contextlib.suppress(DeltaError):
        views.decode(Cursor(b"\xff" + data), 100)
