"""Deltas that every later version must apply, byte for byte: format version 2.

Never change one after a release: a format that cannot read them is another version. Between them they
hold every kind of operation, every mode of stream and every layout. `make_golden` makes them.
"""

import hashlib
import json

import pytest
from tests.shoal_delta.make_golden import GOLDEN, OLD

import shoal_delta
from shoal_delta.coders import Mode
from shoal_delta.container import VERSION, Layout
from shoal_delta.operations import Kind

CASES = json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("name", CASES)
def test_a_golden_delta_still_gives_its_file(name):
    delta = bytes.fromhex(CASES[name]["delta"])
    made = shoal_delta.apply(OLD, delta)
    assert hashlib.sha256(made).hexdigest() == CASES[name]["sha256"]


def test_the_golden_deltas_hold_all_that_the_format_has():
    infos = [shoal_delta.inspect(bytes.fromhex(case["delta"]), OLD) for case in CASES.values()]
    assert {info.version for info in infos} == {VERSION}
    streams = [s for info in infos for segment in info.segments for s in segment.streams]
    assert {s.mode for s in streams} >= {m.name.lower().replace("_", "-") for m in Mode}
    kinds = {mode for info in infos for part in info.tensors for mode in part.modes}
    in_block = {"product"}
    assert kinds == {k.name.lower().replace("_", "-") for k in Kind} - in_block
    assert {info.layout for info in infos} == {layout.name.lower() for layout in Layout}
