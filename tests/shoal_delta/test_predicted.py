from dataclasses import replace

import numpy as np
import pytest
from tests.shoal_delta.predicted import old_file, predicted

import shoal_delta
from shoal_delta import CorruptDeltaError, DeltaError, operations
from shoal_delta.operations import MAX_GAIN_BITS, Gains, Kind, Operation, Scaling

OLD = old_file()
DELTA, NEW = predicted(OLD)


def test_every_prediction_and_view_gives_the_new_file():
    assert shoal_delta.apply(OLD, DELTA) == NEW


def test_inspect_names_what_they_are():
    info = shoal_delta.inspect(DELTA, OLD)
    kinds = {mode for part in info.tensors for mode in part.modes}
    assert {"gained-s8", "gained-u8", "scaled-i32", "scaled-s8", "global", "copy"} <= kinds
    assert sum(part.size for part in info.tensors) == len(NEW)
    assert shoal_delta.inspect(DELTA).global_size == info.global_size == 40


@pytest.mark.slow
def test_no_flipped_bit_of_it_makes_a_wrong_file():
    wrong = []
    # The coder of text takes its time: one bit in seventeen bytes.
    for position in range(0, len(DELTA), 17):
        flipped = bytearray(DELTA)
        flipped[position] ^= 1 << (position & 7)
        try:
            made = shoal_delta.apply(OLD, bytes(flipped))
        except DeltaError:
            continue
        if made != NEW:
            wrong.append(position)
    assert wrong == []


def test_it_cut_at_any_length_is_refused():
    for size in range(0, len(DELTA), 5):
        with pytest.raises(DeltaError):
            shoal_delta.apply(OLD, DELTA[:size])


GAINS = Gains(0, 4, 4, 0, 10, 0, 0)
SCALING = Scaling(0, 1, 4, 0, 0, 0, 0)
PRODUCT = Operation(Kind.PRODUCT, 16, 0, factor=16)
GAINED = Operation(Kind.GAINED_S8, 16, 0, gains=GAINS)
INTEGERS = Operation(Kind.SCALED_I32, 16, 0, SCALING)


@pytest.mark.parametrize("operation", [PRODUCT, GAINED, INTEGERS])
def test_predictions_survive_the_wire(operation):
    data = operations.encode([operation], 0)
    assert operations.decode(data, 0, operation.size, 100, 40) == [operation]


@pytest.mark.parametrize(
    "operation",
    [
        replace(PRODUCT, factor=37),
        replace(PRODUCT, source=25),
        replace(PRODUCT, size=10),
        replace(GAINED, gains=replace(GAINS, codes=37)),
        replace(GAINED, gains=replace(GAINS, channels=41)),
        replace(GAINED, gains=replace(GAINS, channels=0)),
        replace(GAINED, gains=replace(GAINS, inner=0)),
        replace(GAINED, gains=replace(GAINS, first=1 << 60)),
        replace(GAINED, gains=replace(GAINS, bits=7)),
        replace(GAINED, gains=replace(GAINS, bits=MAX_GAIN_BITS + 1)),
        replace(GAINED, gains=replace(GAINS, old_zero_point=128)),
        replace(GAINED, gains=replace(GAINS, new_zero_point=-129)),
        replace(INTEGERS, scaling=replace(SCALING, new_scales=25)),
        replace(INTEGERS, scaling=replace(SCALING, old_scales=85)),
        replace(INTEGERS, scaling=replace(SCALING, old_zero_point=1)),
        replace(INTEGERS, size=15),
        replace(INTEGERS, source=90),
    ],
)
def test_a_prediction_from_outside_its_sources_is_refused(operation):
    data = operations.encode([operation], 0)
    with pytest.raises(CorruptDeltaError):
        operations.decode(data, 0, operation.size, 100, 40)


def test_the_global_block_reads_only_what_it_has_made():
    made = Operation(Kind.FRESH, 20)
    for late, is_fine in (
        (replace(PRODUCT, factor=16), True),
        (replace(PRODUCT, factor=17), False),
    ):
        data = operations.encode([made, late], 0)
        if is_fine:
            assert operations.decode(data, 0, 36, 100, None) == [made, late]
        else:
            with pytest.raises(CorruptDeltaError):
                operations.decode(data, 0, 36, 100, None)


def test_the_global_block_holds_no_weights_that_are_predicted_from_itself():
    data = operations.encode([Operation(Kind.FRESH, 20), GAINED], 0)
    with pytest.raises(CorruptDeltaError):
        operations.decode(data, 0, 36, 100, None)


def test_an_operation_in_two_parts_gives_the_same_channels():
    left, right = INTEGERS.split(8)
    assert (left.size, right.size, right.source) == (8, 8, 8)
    assert right.scaling is not None
    assert right.scaling.first == 2
    assert GAINED.split(5)[1].gains == replace(GAINS, first=5)
    assert np.array([left.scaling == SCALING]).all()
