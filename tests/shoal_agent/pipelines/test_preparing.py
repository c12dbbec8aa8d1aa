"""Pictures become numbers: held against what numpy makes of the same pixels."""

import numpy as np
import pytest
from PIL import Image

from shoal_agent.inference.encodings import to_tensor
from shoal_agent.pipelines.preparing import MODES, prepared
from shoal_contract.images import ImageTable, Preparation, preparation
from shoal_contract.release import InputTable

PIXELS = np.random.default_rng(5).integers(0, 256, (6, 4, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)


def done(shape, element="uint8", image=PICTURE, **table) -> np.ndarray:
    wanted = preparation(shape, element, ImageTable(**table))
    return np.frombuffer(prepared(image, wanted), element).reshape(wanted.shape)


def test_pixels_keep_their_order_in_either_layout():
    assert (done([6, 4, 3]) == PIXELS).all()
    assert (done([3, 6, 4]) == PIXELS.transpose(2, 0, 1)).all()


def test_blue_comes_first_when_it_is_asked_for():
    assert (done([6, 4, 3], colour="bgr") == PIXELS[:, :, ::-1]).all()


def test_float_values_are_scaled_and_normalised_channel_by_channel():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    found = done([3, 6, 4], "float32", scale=1 / 255, mean=mean, std=std)
    wanted = ((PIXELS / 255.0 - mean) / std).transpose(2, 0, 1)
    assert np.allclose(found, wanted, atol=1e-5)


def test_int8_is_what_mean_makes_of_it_and_cut_off_where_it_ends():
    assert (done([6, 4, 3], "int8", mean=(128.0,)) == PIXELS.astype(int) - 128).all()
    assert (done([6, 4, 3], "int8") == np.minimum(PIXELS, 127)).all()


def test_five_bit_values_are_packed_as_the_worker_reads_them():
    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4)
    wanted = preparation([1, 8, 8], "u5", ImageTable(scale=31 / 252))
    table = InputTable(name="x", dtype="float32", shape=[1, 8, 8], encoding="u5", units="1")
    raw = np.frombuffer(prepared(grey, wanted), np.uint8)[None]
    levels = np.rint(np.arange(64) * 4 * 31 / 252)
    assert (to_tensor(raw, table).reshape(-1) == levels).all()


def test_a_part_of_the_picture_is_cut_out():
    found = done([2, 2, 3], crop=(0.5, 1 / 3, 0.5, 1 / 3))
    assert (found == PIXELS[2:4, 2:4]).all()


def test_cover_takes_the_middle_and_contain_leaves_the_rest_black():
    stripes = np.zeros((10, 30, 3), np.uint8)
    stripes[:, 10:20] = 200
    image = Image.fromarray(stripes)
    assert (done([10, 10, 3], image=image, fit="cover") == 200).all()
    contained = done([30, 30, 3], image=image, fit="contain")
    assert (contained[10:20, 12:18] == 200).all()
    assert not contained[:10].any()
    assert not contained[20:].any()
    stretched = done([10, 30, 3], image=image, fit="stretch")
    assert (stretched == stripes).all()


def test_grey_is_the_luminance_and_alpha_is_left_out():
    grey = done([6, 4], colour="grey")[0]
    weights = PIXELS @ np.array([0.299, 0.587, 0.114])
    assert np.abs(grey - weights).max() <= 1
    clear = np.dstack([PIXELS, np.zeros((6, 4), np.uint8)])
    assert (done([6, 4, 3], image=Image.fromarray(clear)) == PIXELS).all()


@pytest.mark.parametrize("mode", ["I;16", "F", "I", "LAB", "HSV"])
def test_other_kinds_of_pixels_are_refused(mode):
    assert mode not in MODES
    wanted = Preparation(4, 4, "nhwc", "rgb", "uint8")
    with pytest.raises(ValueError, match="pixels of the kind"):
        prepared(Image.new(mode, (4, 4)), wanted)
