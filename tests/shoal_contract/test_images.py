import pytest

from shoal_contract.images import ImageTable, PreparationError, preparation


def test_the_shape_says_layout_size_and_colour():
    found = preparation([3, 224, 320], "uint8")
    assert (found.layout, found.height, found.width, found.colour) == ("nchw", 224, 320, "rgb")
    found = preparation([224, 320, 1], "float32")
    assert (found.layout, found.height, found.width, found.colour) == ("nhwc", 224, 320, "grey")
    found = preparation([8, 16], "u5")
    assert (found.height, found.width, found.colour, found.shape) == (8, 16, "grey", (1, 8, 16))


def test_the_pipeline_has_the_last_word_key_by_key():
    release = ImageTable(colour="bgr", mean=(1.0, 2.0, 3.0), fit="cover")
    found = preparation([3, 4, 4], "float32", release, ImageTable(fit="contain", scale=0.5))
    assert (found.colour, found.mean, found.fit, found.scale) == (
        "bgr",
        (1.0, 2.0, 3.0),
        "contain",
        0.5,
    )


def test_a_free_side_is_said_by_the_table():
    found = preparation([3, -1, -1], "uint8", ImageTable(width=64, height=32))
    assert found.shape == (3, 32, 64)


@pytest.mark.parametrize(
    ("shape", "table", "says"),
    [
        ([4], ImageTable(), r"shape \[4\] is no picture"),
        ([3, 8, 3], ImageTable(), "either layout: say nchw or nhwc"),
        ([5, 8, 8], ImageTable(), "either layout"),
        ([5, 8, 8], ImageTable(layout="nchw"), "5 channels"),
        ([3, 8, 8], ImageTable(colour="grey"), "does not have the 3 channels"),
        ([1, 8, 8], ImageTable(colour="rgb"), "does not have the 1 channels"),
        ([3, -1, 8], ImageTable(), "height is free: say height"),
        ([3, 8, 8], ImageTable(width=9), "width 9 contradicts the input's 8"),
        ([3, 8, 8], ImageTable(mean=(1.0, 2.0)), "mean has 2 values for 3 channels"),
        ([3, 8, 8], ImageTable(std=(0.0,)), "std is 0"),
        ([3, 8, 8], ImageTable(crop=(0.5, 0.0, 0.6, 1.0)), "no part of a picture"),
        ([3, 8, 8], ImageTable(crop=(0.5, 0.0, 0.0, 1.0)), "no part of a picture"),
        ([3, 8192, 8192], ImageTable(), "more than"),
    ],
)
def test_what_cannot_be_says_why(shape, table, says):
    with pytest.raises(PreparationError, match=says):
        preparation(shape, "uint8", table)
