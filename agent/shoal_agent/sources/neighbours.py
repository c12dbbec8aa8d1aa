"""Chunks from nodes on the same network that hold the blob. Who they are, the peer protocol proves; what they send, the hash."""

import random
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeVar

from shoal_agent.peers.complaints import Complaints
from shoal_agent.peers.errors import PeerBusyError, PeerError
from shoal_agent.peers.peer import Peer
from shoal_agent.sources.errors import NotHereError
from shoal_contract import blobs
from shoal_contract.messages import BlobRef, ChunkReply, ChunkRequest

Key = TypeVar("Key")

TIMEOUT_S: Final = 5.0
"""For one chunk, connecting too: who is slower is not near."""
ASK_AT_MOST: Final = 4
"""Neighbours for one chunk: where nobody has it, a fleet that begins together must not ask everybody."""
LACKS_S: Final = 10.0
UNREACHABLE_S: Final = 60.0
LIAR_S: Final = 3600.0
_ID: Final = bytes(8)


class AsksForChunks(Protocol):
    """What is needed of `PeerClient`."""

    async def ask_for_chunk(
        self, peer: Peer, request: ChunkRequest, timeout_s: float
    ) -> ChunkReply:
        """See `PeerClient.ask_for_chunk`."""
        ...


class Neighbours:
    """Asks those in sight that share, the one that gave something last before the others.

    Args:
        nearby: the neighbours that hand out chunks, at the moment.
        clock: seconds that only grow.

    Attributes:
        liars: chunks that were not what was asked for.
    """

    name = "peers"
    side_by_side = 2

    def __init__(
        self,
        client: AsksForChunks,
        nearby: Callable[[], Sequence[Peer]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.liars = 0
        self._client = client
        self._nearby = nearby
        self._clock = clock
        self._complaints = Complaints(clock)
        self._avoided_until_s: dict[str, float] = {}
        self._lacks_until_s: dict[tuple[str, bytes], float] = {}
        self._giver = ""

    async def find(self, ref: BlobRef) -> bool:
        """See ChunkSource: one byte is asked for."""
        if not blobs.chunk_count(ref):
            return False
        for peer in self._candidates(ref):
            if await self._asked(peer, ChunkRequest(_ID, ref.digest, 0, 1)) is not None:
                self._giver = peer.node
                return True
        return False

    async def chunk(self, ref: BlobRef, index: int) -> bytes:
        """See ChunkSource."""
        size_bytes = blobs.chunk_bytes_of(ref, index)
        request = ChunkRequest(_ID, ref.digest, index * ref.chunk_bytes, size_bytes)
        for peer in self._candidates(ref):
            data = await self._asked(peer, request)
            if data is None:
                continue
            if len(data) == size_bytes and blobs.chunk_is_good(ref, index, data):
                self._giver = peer.node
                return data
            self.liars += 1
            self._avoided_until_s[peer.node] = self._clock() + LIAR_S
            self._complaints.warn(
                "a neighbour sent a wrong chunk",
                peer=peer.node,
                blob=ref.digest.hex()[:12],
                index=index,
            )
        raise NotHereError("no neighbour has it, or gives it")

    def close(self) -> None:
        """See ChunkSource: the client closes idle connections by itself."""

    def _candidates(self, ref: BlobRef) -> list[Peer]:
        now_s = self._clock()
        self._avoided_until_s = _still(self._avoided_until_s, now_s)
        self._lacks_until_s = _still(self._lacks_until_s, now_s)
        found = [
            peer
            for peer in self._nearby()
            if peer.node not in self._avoided_until_s
            and (peer.node, ref.digest) not in self._lacks_until_s
        ]
        random.shuffle(found)
        found.sort(key=lambda peer: peer.node != self._giver)
        return found[:ASK_AT_MOST]

    async def _asked(self, peer: Peer, request: ChunkRequest) -> bytes | None:
        """The bytes, unchecked; None: it gives none, and is left alone for a while."""
        try:
            reply = await self._client.ask_for_chunk(peer, request, TIMEOUT_S)
        except PeerBusyError:
            return None
        except PeerError:
            self._avoided_until_s[peer.node] = self._clock() + UNREACHABLE_S
            return None
        if reply.reason:
            self._lacks_until_s[peer.node, request.blob] = self._clock() + LACKS_S
            return None
        return reply.data


def _still(until_s: dict[Key, float], now_s: float) -> dict[Key, float]:
    return {key: moment_s for key, moment_s in until_s.items() if moment_s > now_s}
