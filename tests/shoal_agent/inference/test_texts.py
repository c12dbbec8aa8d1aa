import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_agent.inference import texts
from shoal_agent.inference.errors import BadInputError


@given(st.lists(st.text(max_size=20).map(str.encode), max_size=6))
def test_texts_behind_their_lengths_come_back(given_texts):
    assert texts.split(texts.joined(given_texts), len(given_texts)) == given_texts


@given(st.binary(max_size=40), st.integers(0, 6))
def test_any_bytes_are_texts_or_refused(data, count):
    with contextlib.suppress(BadInputError):
        assert texts.joined(texts.split(data, count)) == data


def test_a_text_is_a_row_filled_up_with_zeros():
    tensor = texts.text_tensor([b"hot", "ü".encode(), b""])
    rows = np.frombuffer(tensor.data, np.uint8).reshape(tensor.shape)
    assert tensor.shape == (3, 3)
    assert [row.tobytes().rstrip(b"\0").decode() for row in rows] == ["hot", "ü", ""]


@pytest.mark.parametrize(
    ("given_texts", "reason"),
    [
        ([b"hot", b"\xff"], "text 1 is not UTF-8"),
        ([b"a\0b"], "text 0 has a zero character"),
        ([b"x" * 8192, *[b"y"] * 4096], "4097 texts, the longest of 8192 bytes, are too many"),
    ],
)
def test_what_is_no_text_is_refused_with_the_reason(given_texts, reason):
    with pytest.raises(BadInputError, match=reason):
        texts.text_tensor(given_texts)
