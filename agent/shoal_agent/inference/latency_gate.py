"""Whether a new release is too slow beside the one that serves: p95 of one golden input, both measured here.

The new one's trial is held against what the old one's trial on this board gave. Only when that looks bad both are
measured again, in turns: whatever disturbs a measurement makes it slower, so the best of each counts.
"""

from collections.abc import Awaitable, Callable
from typing import Final

from shoal_agent.inference.errors import ModelRefusedError

SLACK_US: Final = 200
"""A smaller difference says nothing: it is what the scheduler of a busy board does to a small model."""
ATTEMPTS: Final = 3

MeasureUs = Callable[[], Awaitable[int]]


def is_too_slow(new_us: int, old_us: int, factor: float) -> bool:
    """Whether `new_us` is more than `factor` times `old_us`, and by more than chance; a factor of 0 never is."""
    return factor > 0 and new_us > factor * old_us and new_us - old_us > SLACK_US


async def require_pace(
    new_us: int, old_us: int, factor: float, *, measure_new: MeasureUs, measure_old: MeasureUs
) -> None:
    """Return when the new release is quick enough.

    Args:
        new_us: p95 of its trial.
        old_us: p95 of the trial of the one that serves; 0: not known.
        factor: how many times as slow it may be; 0: any.
        measure_new: measures it once more.
        measure_old: measures the one that serves.

    Raises:
        ModelRefusedError: it is too slow each time; the message has both figures.
        InferenceError: whatever the measurements raise.
    """
    if factor <= 0:
        return
    if old_us == 0:
        old_us = await measure_old()
    for attempt in range(ATTEMPTS):
        if not is_too_slow(new_us, old_us, factor):
            return
        if attempt < ATTEMPTS - 1:
            old_us = min(old_us, await measure_old()) if attempt else await measure_old()
            new_us = min(new_us, await measure_new())
    raise ModelRefusedError(
        f"too slow: p95 of a golden input is {new_us} us, {new_us / max(1, old_us):.1f} times the {old_us} us of the"
        f" release that serves; its release allows {factor:g} times"
    )
