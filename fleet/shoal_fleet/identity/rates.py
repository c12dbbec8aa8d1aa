"""How often an address may knock: token buckets in a bounded table. Pure but for the time that is passed in."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

MAX_ADDRESSES: Final = 4096


@dataclass(slots=True)
class _Bucket:
    left: float
    at_s: float


class Rates:
    """Buckets by address.

    Args:
        per_s: so many a second in the long run.
        burst: so many at once.
    """

    def __init__(self, *, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, address: str, at_s: float) -> bool:
        """Whether this one may pass now. Whoever has not come for longest is forgotten for a new one."""
        bucket = self._buckets.pop(address, None)
        if bucket is None:
            if len(self._buckets) >= MAX_ADDRESSES:
                self._buckets.popitem(last=False)
            bucket = _Bucket(self._burst, at_s)
        self._buckets[address] = bucket
        bucket.left = min(self._burst, bucket.left + (at_s - bucket.at_s) * self._per_s)
        bucket.at_s = at_s
        if bucket.left < 1:
            return False
        bucket.left -= 1
        return True
