import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_agent.inference.backlog import Piece, Request
from shoal_agent.inference.batching import batch_of
from shoal_agent.inference.errors import BadInputError
from shoal_agent.inference.signature import Forms, Signature, TensorInfo, bucket, item_form
from shoal_agent.inference.tensors import ELEMENT_BYTES, Tensor, element, joined, rows


@pytest.mark.parametrize("dtype", ELEMENT_BYTES)
def test_the_sizes_are_those_of_numpys_types(dtype):
    assert np.dtype(dtype).itemsize == ELEMENT_BYTES[dtype]


@pytest.mark.parametrize(
    ("dtype", "shape", "data", "reason"),
    [
        ("float32", (2,), bytes(7), "has 8 bytes, not 7"),
        ("float32", (1 << 40, 1 << 40), b"", "too large"),
        ("float32", (-1, 4), b"", "none negative"),
        ("float32", (1,) * 9, bytes(4), "at most 8 dimensions"),
        ("object", (1,), bytes(8), "'object' is no type"),
    ],
)
def test_bytes_that_are_no_such_tensor_are_refused(dtype, shape, data, reason):
    with pytest.raises(BadInputError, match=reason):
        Tensor.of(dtype, shape, data)


@given(st.integers(1, 9), st.integers(1, 5), st.data())
def test_the_rows_of_a_tensor_put_together_again_are_the_tensor(count, width, data):
    array = np.arange(count * width, dtype=np.int16).reshape(count, width)
    whole = Tensor.of("int16", array.shape, array.tobytes())
    cut = data.draw(st.integers(0, count))
    parts = [
        Tensor.of("int16", (stop - start, width), rows(whole, start, stop))
        for start, stop in ((0, cut), (cut, count))
        if stop > start
    ]
    assert bytes(joined(parts).data) == whole.data
    assert joined(parts).shape == whole.shape


TWO = Signature(
    (TensorInfo("a", "float32", (-1, 3)), TensorInfo("ids", "int64", (-1, -1))),
    (TensorInfo("y", "float32", (-1, 2)), TensorInfo("z", "float32", (-1, 1))),
)


def zeros(dtype: str, *shape: int) -> Tensor:
    return Tensor.of(dtype, shape, bytes(int(np.prod(shape)) * ELEMENT_BYTES[dtype]))


def test_requests_of_one_form_have_rows_of_one_shape_and_want_the_same():
    form, count = TWO.form({"ids": zeros("int64", 4, 7), "a": zeros("float32", 4, 3)}, ())
    assert count == 4
    assert form.outputs == ("y", "z")
    assert form.shapes(9) == [("float32", (9, 3)), ("int64", (9, 7))]
    other, _ = TWO.form({"a": zeros("float32", 1, 3), "ids": zeros("int64", 1, 7)}, ["z", "y"])
    longer, _ = TWO.form({"a": zeros("float32", 1, 3), "ids": zeros("int64", 1, 8)}, ())
    fewer, _ = TWO.form({"a": zeros("float32", 1, 3), "ids": zeros("int64", 1, 7)}, ["z"])
    assert form == other
    assert len({form, longer, fewer}) == 3
    assert not form.is_items
    assert item_form(4).is_items


def test_a_model_without_batches_is_asked_one_by_one():
    signature = Signature(
        (TensorInfo("x", "uint8", (2, -1)),), (TensorInfo("y", "uint8", ()),), False
    )
    form, count = signature.form({"x": zeros("uint8", 2, 5)}, ())
    assert (count, form.shapes(1)) == (1, [("uint8", (2, 5))])


@pytest.mark.parametrize(
    ("inputs", "outputs", "reason"),
    [
        ({}, (), r"0 inputs; the model has \['a', 'ids'\]"),
        ({"a": zeros("float32", 1, 3), "b": zeros("int64", 1, 1)}, (), "no input 'ids'"),
        (
            {"a": zeros("float32", 1, 2), "ids": zeros("int64", 1, 1)},
            (),
            r"'a' is float32 \[1, 2\]",
        ),
        ({"a": zeros("float64", 1, 3), "ids": zeros("int64", 1, 1)}, (), "not float32"),
        (
            {"a": zeros("float32", 3), "ids": zeros("int64", 1, 1)},
            (),
            r"\[3\], not float32 \[-1, 3\]",
        ),
        ({"a": zeros("float32", 0, 3), "ids": zeros("int64", 0, 1)}, (), r"float32 \[0, 3\]"),
        ({"a": zeros("float32", 1, 3), "ids": zeros("int64", 1, 0)}, (), r"int64 \[1, 0\]"),
        ({"a": zeros("float32", 1, 3), "ids": zeros("int64", 2, 1)}, (), "2 rows, not 1"),
        ({"a": zeros("float32", 1, 3), "ids": zeros("int64", 1, 1)}, ["q"], "no output 'q'"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_place(inputs, outputs, reason):
    with pytest.raises(BadInputError, match=reason):
        TWO.form(inputs, outputs)


@pytest.mark.parametrize("dtype", ELEMENT_BYTES)
@pytest.mark.parametrize("value", [0, 1, -1])
def test_an_element_has_the_bytes_that_numpy_gives_it(dtype, value):
    assert element(dtype, value) == np.array(value).astype(dtype).tobytes()


@given(st.integers(1, 1 << 20))
def test_a_bucket_is_never_shorter_at_most_half_longer_and_its_own_bucket(length):
    assert length <= bucket(length) <= max(length * 1.5, length + 7)
    assert bucket(bucket(length)) == bucket(length)


TEXT = Signature(
    (
        TensorInfo("ids", "int64", (-1, -1), 0),
        TensorInfo("emb", "float32", (-1, -1, 2), 7),
        TensorInfo("kind", "uint8", (-1, 1)),
    ),
    (TensorInfo("y", "float32", (-1, 2)),),
)


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(33, 48)), min_size=1, max_size=5))
def test_rows_of_one_bucket_make_one_batch_as_long_as_the_longest_filled_up_behind(shapes):
    forms, pieces, wanted = Forms(TEXT), [], []
    longest = max(length for _, length in shapes)
    for number, (count, length) in enumerate(shapes, 1):
        ids = np.full((count, length), number)
        emb = np.full((count, length, 2), number, np.float32)
        kind = np.full((count, 1), number, np.uint8)
        tensors = {
            name: Tensor.of(x.dtype.name, x.shape, x.tobytes())
            for name, x in (("ids", ids), ("emb", emb), ("kind", kind))
        }
        form, row_count = forms.of(tensors, ())
        pieces.append(
            Piece(Request(form, list(tensors.values()), count, 1.0, 1, 0.0, None), 0, row_count)
        )
        more = longest - length
        wanted.append(
            (
                np.pad(ids, ((0, 0), (0, more))),
                np.pad(emb, ((0, 0), (0, more), (0, 0)), constant_values=7),
                kind,
            )
        )
    assert len({id(piece.request.form) for piece in pieces}) == 1
    total = sum(count for count, _ in shapes)
    batch = batch_of(pieces, total)
    for (dtype, shape), chunks, *expected in zip(
        batch.form.shapes(total), batch.chunks, *wanted, strict=True
    ):
        got = np.frombuffer(b"".join(chunks), dtype).reshape(shape)
        np.testing.assert_array_equal(got, np.concatenate(expected))
