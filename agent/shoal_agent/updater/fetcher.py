"""The one fetcher below python-tuf, over any source: bounded in time as a whole, and no slower than a minimum.

python-tuf bounds the size. It has no total deadline and no minimum rate: a server that sends a byte now and
then would hold an update up for ever.
"""

import time
from collections.abc import Callable, Iterator
from typing import Final

from tuf.api.exceptions import DownloadError, DownloadHTTPError, SlowRetrievalError
from tuf.ngclient import FetcherInterface

from shoal_agent.updater.sources import MissingError, Source

DEADLINE_S: Final = 120.0
"""For everything that one look at the metadata fetches."""
MIN_BYTES_PER_S: Final = 32
GRACE_S: Final = 10.0
"""The rate counts from then on: the first byte over a slow line takes its time."""


class Fetcher(FetcherInterface):
    """Fetches files whose address begins with that of a source.

    Args:
        sources: beginning of the address -> source.
        clock_s: monotonic.
    """

    def __init__(
        self,
        sources: dict[str, Source],
        *,
        deadline_s: float = DEADLINE_S,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.received_bytes = 0
        self._sources = sources
        self._clock_s = clock_s
        self._ends_s = clock_s() + deadline_s

    def _fetch(self, url: str) -> Iterator[bytes]:
        """See FetcherInterface."""
        for beginning, source in self._sources.items():
            if url.startswith(beginning):
                return self._paced(source, url.removeprefix(beginning))
        raise DownloadError(f"nobody has {url[:80]}")

    def _paced(self, source: Source, name: str) -> Iterator[bytes]:
        began_s, received_bytes = self._clock_s(), 0
        try:
            for piece in source.pieces(name, left_s=self._left_s):
                received_bytes += len(piece)
                self.received_bytes += len(piece)
                taken_s = self._clock_s() - began_s
                if taken_s > GRACE_S and received_bytes < MIN_BYTES_PER_S * taken_s:
                    raise SlowRetrievalError(
                        f"{name[:80]}: {received_bytes} bytes in {taken_s:.0f} s"
                    )
                self._left_s()
                yield piece
        except MissingError as exc:
            raise DownloadHTTPError(str(exc), exc.status) from exc
        except (OSError, ValueError) as exc:
            raise DownloadError(f"{name[:80]}: {exc}") from exc

    def _left_s(self) -> float:
        """Of the time for everything, at most the grace for one read."""
        left_s = self._ends_s - self._clock_s()
        if left_s <= 0:
            raise SlowRetrievalError("the metadata did not come in time")
        return min(left_s, GRACE_S)
