"""Chunks from web servers that hold blobs as files named by their sha256 in hex: a mirror, a bucket, a CDN."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from shoal_agent.peers.complaints import Complaints
from shoal_agent.sources.errors import HostileSourceError, NotHereError, SourceError
from shoal_contract import blobs
from shoal_contract.messages import BlobRef

if TYPE_CHECKING:
    from shoal_agent.sources.ranges import RangeServer

UNREACHABLE_S: Final = 60.0
HOSTILE_S: Final = 3600.0
LACKS_S: Final = 60.0
_KEPT_MOST: Final = 256


class Web:
    """Asks the configured servers, in their order.

    Args:
        addresses: as `config` accepts them.
        ca_file: PEM file with who is believed; None: those whom the system believes.
        clock: seconds that only grow.

    Attributes:
        liars: chunks and answers that were not what was asked for.
    """

    name = "https"
    side_by_side = 2

    def __init__(
        self,
        addresses: Sequence[str],
        ca_file: str | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.liars = 0
        self._addresses = addresses
        self._ca_file = ca_file
        self._clock = clock
        self._complaints = Complaints(clock)
        self._servers: dict[str, RangeServer] = {}
        self._avoided_until_s: dict[str, float] = {}
        self._lacks_until_s: dict[tuple[str, bytes], float] = {}

    async def find(self, ref: BlobRef) -> bool:
        """See ChunkSource: whether a server is left that has not refused it lately."""
        return bool(self._candidates(ref))

    async def chunk(self, ref: BlobRef, index: int) -> bytes:
        """See ChunkSource."""
        reason = "no server is left"
        for address in self._candidates(ref):
            try:
                data = await self._asked(address, ref, index)
            except NotHereError as exc:
                reason = str(exc)
                if len(self._lacks_until_s) >= _KEPT_MOST:
                    self._lacks_until_s.clear()
                self._lacks_until_s[address, ref.digest] = self._clock() + LACKS_S
            except HostileSourceError as exc:
                reason = str(exc)
                self.liars += 1
                self._avoid(address, HOSTILE_S)
                self._complaints.warn(
                    "a web server is not asked for an hour",
                    server=address,
                    blob=ref.digest.hex()[:12],
                    reason=reason,
                )
            except SourceError as exc:
                reason = str(exc)
                self._avoid(address, UNREACHABLE_S)
                self._complaints.warn("a web server gives no chunk", server=address, reason=reason)
            else:
                return data
        raise NotHereError(reason)

    def close(self) -> None:
        """See ChunkSource."""
        for server in self._servers.values():
            server.close()
        self._servers.clear()

    async def _asked(self, address: str, ref: BlobRef, index: int) -> bytes:
        data = await self._server(address).get(
            ref.digest.hex(),
            index * ref.chunk_bytes,
            blobs.chunk_bytes_of(ref, index),
            ref.size_bytes,
        )
        if not blobs.chunk_is_good(ref, index, data):
            raise HostileSourceError("it sends a wrong chunk")
        return data

    def _avoid(self, address: str, for_s: float) -> None:
        self._avoided_until_s[address] = self._clock() + for_s
        if (server := self._servers.pop(address, None)) is not None:
            server.close()

    def _candidates(self, ref: BlobRef) -> list[str]:
        now_s = self._clock()
        return [
            address
            for address in self._addresses
            if self._avoided_until_s.get(address, 0.0) <= now_s
            and self._lacks_until_s.get((address, ref.digest), 0.0) <= now_s
        ]

    def _server(self, address: str) -> RangeServer:
        # HTTP only for who asks over it.
        from shoal_agent.sources.ranges import RangeServer  # noqa: PLC0415

        if address not in self._servers:
            context = None
            if address.startswith("https:"):
                try:
                    context = ssl.create_default_context(cafile=self._ca_file)
                except OSError as exc:
                    reason = exc.strerror or type(exc).__name__
                    raise SourceError(f"https_ca_file cannot be used: {reason}") from exc
            self._servers[address] = RangeServer(address, context)
        return self._servers[address]
