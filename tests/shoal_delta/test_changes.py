import numpy as np
from tests.shoal_delta.onnx_files import FLOAT, INT8, model, tensor

from shoal_delta.changes import TensorChange, changes


def file(*tensors):
    return model([], [tensor(*part) for part in tensors])


def floats(*values):
    return np.array(values, dtype="<f4").tobytes()


def test_only_what_moved_is_told_with_how_far():
    old = file(("w", INT8, (4,), bytes([0, 255, 7, 9])), ("b", FLOAT, (2,), floats(1, 2)))
    new = file(("w", INT8, (4,), bytes([0, 1, 7, 5])), ("b", FLOAT, (2,), floats(1, 2)))
    assert changes(old, new) == (TensorChange("w", 4, 2, 3.0, 4.0),)


def test_a_tensor_that_was_not_there_or_has_another_size_is_new():
    old = file(("w", INT8, (4,), bytes(4)))
    new = file(("w", INT8, (5,), bytes(5)), ("v", INT8, (3,), bytes(3)))
    assert changes(old, new) == (
        TensorChange("w", 5, 5, 0.0, 0.0, is_new=True),
        TensorChange("v", 3, 3, 0.0, 0.0, is_new=True),
    )


def test_a_nan_that_stays_has_not_moved_and_one_that_comes_has_no_distance():
    nan = float("nan")
    old = file(("b", FLOAT, (3,), floats(nan, 1, 2)))
    new = file(("b", FLOAT, (3,), floats(nan, nan, 2.5)))
    assert changes(old, new) == (TensorChange("b", 3, 2, 0.5, 0.5),)


def test_files_that_are_no_models_have_no_changes():
    assert changes(b"text", b"other text") == ()
