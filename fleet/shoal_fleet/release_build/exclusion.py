"""Which nodes stay float when the whole model does not pass: the noisiest first, within a budget. Pure."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


def noise_share(weight_sqnr_db: float, input_sqnr_db: float) -> float:
    """Noise over signal that quantising a node brings into its output: its weight's and its input's.

    Signal-to-noise ratios as ONNX Runtime's QDQ debugging gives them. What earlier nodes brought is
    not in it: leaving this node float would not take that away.
    """
    return float(10 ** (-weight_sqnr_db / 10) + 10 ** (-input_sqnr_db / 10))


def rounding_sqnr_db(values: NDArray[np.float32]) -> float:
    """Signal to noise of `values` on one 8-bit grid over their range, as dynamic quantisation makes it."""
    if values.size == 0:
        return 200.0
    lowest, highest = min(0.0, float(values.min())), max(0.0, float(values.max()))
    step = (highest - lowest) / 255
    power = float(np.square(values, dtype=np.float64).mean())
    if step == 0 or power == 0:
        return 200.0
    return float(10 * np.log10(power / (step * step / 12)))


def worst_first(noise: Mapping[str, float]) -> list[str]:
    """The nodes by the noise they bring, most first; ties by name."""
    return sorted(noise, key=lambda node: (-noise[node], node))


def exclusions(
    order: Sequence[str], weights: Mapping[str, int], *, share: float
) -> Iterator[tuple[str, ...]]:
    """Growing sets of nodes to leave float: the first 1, 2, 4, 8, ... of `order` that fit.

    Together they have at most `share` of all weights; a node that would not fit is passed over, and a
    later one may. Doubling keeps the number of models that must be made and judged small.
    """
    left = share * sum(weights.values())
    chosen: list[str] = []
    due = 1
    for node in order:
        if weights.get(node, 0) > left:
            continue
        left -= weights.get(node, 0)
        chosen.append(node)
        if len(chosen) == due:
            yield tuple(chosen)
            due *= 2
    if chosen and len(chosen) * 2 != due:
        yield tuple(chosen)
