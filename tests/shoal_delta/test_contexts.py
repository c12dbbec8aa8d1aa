import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shoal_delta.arithmetic import MAX_SHIFT, gain_ratios, scale_ratios
from shoal_delta.contexts import channel_ratios
from shoal_delta.decoding import reader_of
from shoal_delta.operations import Gains, Scaling

CHANNELS = 7
OLD = b"weights" + np.linspace(0.01, 0.02, CHANNELS, dtype="<f4").tobytes()
BLOCK = b"block" + np.linspace(0.013, 0.017, CHANNELS, dtype="<f4").tobytes()


@given(st.integers(0, 500), st.integers(1, 60), st.integers(1, 90))
def test_only_the_channels_of_an_operations_elements_are_made_ready(first, elements, inner):
    channel = (first + np.arange(elements)) // inner % CHANNELS
    scaling = Scaling(first, inner, CHANNELS, 7, 5, 0, 0)
    gains = Gains(first, inner, CHANNELS, 5, 8, 0, 0)
    all_scales = scale_ratios(OLD[7:], BLOCK[5:], MAX_SHIFT)
    all_gains = gain_ratios(BLOCK[5 : 5 + CHANNELS], 8)
    for channels, whole in ((scaling, all_scales), (gains, all_gains)):
        some, begin = channel_ratios(channels, elements, reader_of(OLD), BLOCK, MAX_SHIFT)
        assert some[0].size == min(CHANNELS, (begin + elements - 1) // inner + 1)
        place = (begin + np.arange(elements)) // inner % some[0].size
        for part, all_of_it in zip(some, whole, strict=True):
            assert (part[place] == all_of_it[channel]).all()
