"""Small models trained as the bench's are: every delta gives the file back and stays as small as it was.

The pairs are made by `make delta-test-pairs` (bench/corpus). A bound is about 2 % above what the encoder
made when it was set: lower it when the encoder gets better, and never raise it without a reason.
"""

from pathlib import Path

import pytest

import shoal_delta

PAIRS = Path(__file__).parent / "pairs"
BOUNDS = {
    "cnn/few-steps": 3_040,
    "cnn/many-steps": 4_840,
    "cnn/pruned": 6_980,
    "gru/few-steps": 17_380,
    "gru/pruned": 20_860,
    "mobilenet/few-steps": 4_870,
    "mobilenet/many-steps": 7_400,
    "mobilenet/pruned": 8_640,
    "transformer/few-steps": 9_070,
    "transformer/lora": 840,
    "transformer/pruned": 17_030,
}


def test_every_pair_has_a_bound():
    there = {
        f"{path.parent.name}/{path.stem}" for path in PAIRS.glob("*/*.onnx") if path.stem != "old"
    }
    assert there == BOUNDS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("pair", BOUNDS)
def test_the_delta_of_a_trained_pair_is_exact_and_not_larger_than_before(pair):
    new = (PAIRS / f"{pair}.onnx").read_bytes()
    old = (PAIRS / pair).parent.joinpath("old.onnx").read_bytes()
    delta = shoal_delta.diff(old, new, workers=1)
    assert shoal_delta.apply(old, delta) == new
    assert len(delta) <= BOUNDS[pair]
