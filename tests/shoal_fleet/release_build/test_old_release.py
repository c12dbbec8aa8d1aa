"""The old release's scales in a new INT8 model, as ONNX Runtime's quantisers write it."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from tests.shoal_fleet.release_build.float_models import (
    calibration,
    convolutional,
    dynamic,
    perceptron,
    static,
    tuned,
)

import shoal_delta
from shoal_fleet.release_build.old_release import with_old_scales


def content(model):
    return model.SerializeToString(deterministic=True)


def tensors(model):
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def update_bytes(old, new):
    return shoal_delta.estimate(content(old), content(new)).delta_bytes


def answers(model, values):
    session = onnxruntime.InferenceSession(content(model), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": values})[0]


@pytest.fixture(scope="module")
def convolutions():
    """(float weights, old INT8 model, new INT8 model, float model) of a convolution net."""
    before = convolutional(1)
    after = tuned(before, 2, 0.004)
    items = calibration((1, 8, 8), 64)
    return tensors(after), static(before, items), static(after, items), after


@pytest.fixture(scope="module")
def perceptrons():
    before = perceptron(1)
    after = tuned(before, 2, 0.004)
    return tensors(after), dynamic(before), dynamic(after), after


@pytest.mark.parametrize("pair", ["convolutions", "perceptrons"])
def test_the_update_is_smaller_and_the_answers_are_as_near(pair, request):
    weights, old, fresh, float_model = request.getfixturevalue(pair)
    found = with_old_scales(fresh, old, weights, is_narrow=False)
    onnx.checker.check_model(found.model)
    kept, scales = found.channels
    assert 0 < kept <= scales
    sizes = [update_bytes(old, m) for m in (fresh, found.model)]
    assert sizes[1] < sizes[0]
    shape = (1, 8, 8) if pair == "convolutions" else (96,)
    values = calibration(shape, 50, seed=5)
    truth = answers(float_model, values)
    errors = [np.abs(answers(m, values) - truth).mean() for m in (fresh, found.model)]
    assert errors[1] < 1.5 * errors[0] + 1e-6
    lazy = with_old_scales(fresh, old, weights, is_narrow=False, tau=0.5)
    assert update_bytes(old, lazy.model) < sizes[1]


def test_a_model_on_its_own_scales_stays_byte_for_byte_the_same(convolutions):
    weights, _, fresh, _ = convolutions
    found = with_old_scales(fresh, fresh, weights, is_narrow=False)
    assert found.channels[0] == found.channels[1]
    assert found.activations_kept == found.activations > 0
    before, after = tensors(fresh), tensors(found.model)
    for name, value in before.items():
        step = 1 if value.dtype == np.int32 else 0
        assert np.abs(value.astype(np.float64) - after[name]).max(initial=0) <= step, name


def test_biases_keep_their_values_on_whatever_scales_their_layer_has(convolutions):
    weights, old, fresh, _ = convolutions
    found = tensors(with_old_scales(fresh, old, weights, is_narrow=False).model)
    for name in ("conv1.bias", "conv2.bias", "dense.bias"):
        value = found[f"{name}_quantized"] * found[f"{name}_quantized_scale"].astype(np.float64)
        np.testing.assert_allclose(value, weights[name], atol=2e-4)


def test_an_activation_that_outgrew_its_old_range_gets_the_new_one():
    before, items = convolutional(1), calibration((1, 8, 8), 64)
    old, wider = static(before, items), static(before, items * 3)
    found = with_old_scales(wider, old, tensors(before), is_narrow=False)
    assert found.activations_kept < found.activations
    assert tensors(found.model)["x_scale"] == tensors(wider)["x_scale"]


def test_what_has_no_counterpart_stays_as_it_is(convolutions, perceptrons):
    weights, _, fresh, _ = convolutions
    other = perceptrons[1]
    found = with_old_scales(fresh, other, weights, is_narrow=False)
    assert found.weights == {}
    assert found.channels == (0, 0)
    unchanged, changed = tensors(fresh), tensors(found.model)
    for name in unchanged:
        if "bias" not in name:
            assert (unchanged[name] == changed[name]).all()


def test_a_layer_of_another_shape_gets_fresh_scales_and_the_others_keep_theirs(convolutions):
    _, old, _, _ = convolutions
    grown = convolutional(1, classes=7)
    fresh = static(grown, calibration((1, 8, 8), 64))
    found = with_old_scales(fresh, old, tensors(grown), is_narrow=False)
    assert found.weights.keys() == {"conv1.weight", "conv2.weight"}


def test_narrow_weights_stay_narrow():
    before = convolutional(1)
    after = tuned(before, 2, 0.02)
    items = calibration((1, 8, 8), 64)
    old, fresh = (static(model, items, is_narrow=True) for model in (before, after))
    found = with_old_scales(fresh, old, tensors(after), is_narrow=True)
    for name in ("conv1.weight", "conv2.weight", "dense.weight"):
        assert np.abs(tensors(found.model)[f"{name}_quantized"].astype(int)).max() <= 64


def test_what_a_release_leaves_unsaid_is_carried_by_weight(perceptrons):
    weights, old, fresh, _ = perceptrons
    first = with_old_scales(fresh, old, weights, is_narrow=False, tau=0.5)
    assert first.carry.keys() == {"hidden.weight", "dense.weight"}
    named = {name: value.reshape(weights[name].shape) for name, value in first.carry.items()}
    second = with_old_scales(fresh, old, weights, is_narrow=False, tau=0.5, carried=named)
    assert any(
        (second.weights[name].levels != first.weights[name].levels).any() for name in first.weights
    )
