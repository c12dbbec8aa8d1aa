"""Which plans are packed in earnest."""

from __future__ import annotations

import numpy as np

from shoal_delta.byte_coders import ZstdSizes, zstd_compress
from shoal_delta.estimate import promising
from shoal_delta.operations import Kind, Operation
from shoal_delta.plan import Plan

SIZE = 4096
RANDOM = np.random.default_rng(3)
OLD = RANDOM.bytes(SIZE)
NEW = OLD[:100] + bytes([OLD[100] ^ 1]) + OLD[101:]


def plan(*operations: Operation, block: bytes = b"") -> Plan:
    return Plan(operations, lambda _start, _size: (), block)


SUBTRACTED = plan(Operation(Kind.SUBTRACT, SIZE, 0))
RUNS = plan(
    Operation(Kind.COPY, 100, 0), Operation(Kind.LITERAL, 1), Operation(Kind.COPY, SIZE - 101, 101)
)
# Subtracted from the wrong place: noise from noise.
MISPLACED = (Operation(Kind.SUBTRACT, SIZE - 1, 1), Operation(Kind.LITERAL, 1))


def test_a_plan_that_looks_far_larger_is_not_packed_though_there_is_room_for_it():
    assert promising([plan(*MISPLACED), SUBTRACTED, RUNS], OLD, NEW, 3) == [SUBTRACTED, RUNS]


def test_a_plan_with_a_global_block_is_packed_however_large_it_looks():
    blocked = plan(*MISPLACED, block=b"\0")
    assert promising([blocked, SUBTRACTED, RUNS], OLD, NEW, 3) == [blocked, SUBTRACTED, RUNS]


def test_of_more_plans_than_are_wanted_the_smallest_stay():
    blocked = plan(*MISPLACED, block=b"\0")
    assert promising([blocked, RUNS, SUBTRACTED], OLD, NEW, 2) == [RUNS, SUBTRACTED]


def test_the_only_plan_is_taken_as_it_is():
    only = plan(*MISPLACED)
    assert promising([only], OLD, NEW, 1) == [only]


def test_sizes_with_a_loaded_dictionary_are_about_those_of_real_frames():
    sizes = ZstdSizes(OLD, 19, SIZE)
    for raw in (OLD[500:1500], NEW, RANDOM.bytes(300)):
        assert abs(sizes.size(raw) - len(zstd_compress(raw, OLD, 19))) <= 4
