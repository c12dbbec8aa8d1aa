"""Calibration sets: what is read, what is refused, and that nothing is judged by what it was made with."""

import io
import zipfile

import numpy as np
import pytest

from shoal_fleet.errors import ReleaseBuildError
from shoal_fleet.release_build import calibration
from shoal_fleet.release_build.calibration import Items, read_items, split


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_rows_are_items_and_labels_are_no_input(tmp_path):
    path = save(tmp_path / "set.npz", x=np.ones((9, 4), np.float32), labels=np.arange(9))
    items = read_items(path)
    assert (len(items), list(items.inputs)) == (9, ["x"])
    assert items.labels.tolist() == list(range(9))
    assert len(items.take(slice(3))) == 3


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"x": np.ones((3, 2)), "y": np.ones((4, 2))}, "same number of items"),
        ({"x": np.float32(1)}, "same number of items"),
        ({"labels": np.arange(3)}, "same number of items"),
        ({"x": np.ones((0, 2))}, "same number of items"),
        ({"x": np.ones((3, 2)), "labels": np.arange(4)}, "labels are not 3 whole numbers"),
        ({"x": np.ones((3, 2)), "labels": np.ones(3)}, "labels are not 3 whole numbers"),
        ({"x": np.array([[1.0], [np.nan]])}, "no finite numbers"),
        ({"x": np.array([["a"], ["b"]])}, "no finite numbers"),
        ({"x": np.array([[{}]], dtype=object)}, "not an .npz of inputs"),
    ],
)
def test_a_set_that_cannot_be_used_is_refused_in_one_line(tmp_path, arrays, complaint):
    with pytest.raises(ReleaseBuildError, match=complaint) as caught:
        read_items(save(tmp_path / "set.npz", **arrays))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04" + bytes(60)])
def test_a_file_that_is_no_npz_is_refused(tmp_path, content):
    (tmp_path / "set.npz").write_bytes(content)
    with pytest.raises(ReleaseBuildError, match=r"not an \.npz"):
        read_items(tmp_path / "set.npz")
    with pytest.raises(ReleaseBuildError, match=r"not an \.npz"):
        read_items(tmp_path / "absent.npz")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "MAX_SET_BYTES", 1 << 20)
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(2 << 20))
    (tmp_path / "set.npz").write_bytes(whole.getvalue())
    with pytest.raises(ReleaseBuildError, match="too many"):
        read_items(tmp_path / "set.npz")


def test_no_item_is_both_calibrated_on_and_judged_by():
    items = Items({"x": np.arange(21).reshape(21, 1)}, np.arange(21))
    mine, judged = split(items)
    assert sorted([*mine.inputs["x"].ravel(), *judged.inputs["x"].ravel()]) == list(range(21))
    assert len(judged) == 5
    assert mine.labels.tolist() == mine.inputs["x"].ravel().tolist()
    with pytest.raises(ReleaseBuildError, match="too few"):
        split(items.take(slice(7)))
