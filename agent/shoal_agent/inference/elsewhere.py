"""Asks other nodes for what this one does not serve: neighbours that have the model first, then upstream.

Who keeps failing is left alone for a while. Whether to ask at all is the router's matter.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

import structlog
from msgspec.structs import replace

from shoal_agent.inference.errors import DeadlineError
from shoal_agent.inference.limits import Breaker
from shoal_agent.peers.client import PeerClient
from shoal_agent.peers.errors import PeerBusyError, PeerError, PeerUnreachableError
from shoal_agent.peers.peer import Peer, Role
from shoal_contract.messages import InferReply, InferRequest

if TYPE_CHECKING:
    from shoal_agent.peers.discovery import Discovery

log = structlog.get_logger()

T = TypeVar("T")

_MAX_BREAKERS: Final = 512
_MAX_ASKED: Final = 4
"""Nodes asked for one request, so that a full site does not ask itself to death."""


class Elsewhere:
    """The other nodes.

    Args:
        node: who we are.
        discovery: knows neighbours; None: there are none.
        client: asks them.
        upstream: a configured upstream node's peer address.
    """

    def __init__(
        self,
        *,
        node: str,
        discovery: Discovery | None,
        client: PeerClient,
        upstream: tuple[str, int] | None,
    ) -> None:
        self._node = node
        self._discovery = discovery
        self._client = client
        self._upstream = upstream
        self._clock = asyncio.get_running_loop().time
        self._breakers: dict[tuple[str, int], Breaker] = {}

    def willing(self, model: str, said: list[str]) -> list[Peer]:
        """Who may be asked for it; who is left alone for its failures is added to `said`."""
        willing = []
        for peer in self._candidates(model):
            if self._breaker(peer).is_open:
                said.append(f"{peer.node or peer.host}: left alone after failures")
            else:
                willing.append(peer)
        return willing

    async def ask(
        self,
        request: InferRequest,
        read: Callable[[InferReply], T | None],
        deadline: float,
        said: list[str],
    ) -> tuple[T, Role] | None:
        """The first answer, and what gave it; what the others said is added to `said`.

        `read` is what a reply says, None of a refusal; it raises PeerUnreachableError for nonsense.
        """
        candidates = self.willing(request.model, said)
        for index, peer in enumerate(candidates):
            left_s = deadline - self._clock()
            if left_s <= 0:
                said.append("the deadline is over")
                break
            is_last = index == len(candidates) - 1
            if not self._breaker(peer).allows():
                continue
            # Half of what is left: one that hangs must leave time for the next.
            timeout_s = left_s if is_last else left_s / 2
            try:
                return await self._ask(peer, request, read, timeout_s), peer.role
            except (PeerError, DeadlineError) as exc:
                said.append(f"{peer.node or peer.host}: {exc}")
        return None

    def _candidates(self, model: str) -> list[Peer]:
        """Neighbours that announce the model, then upstream ones, each address once."""
        found: list[Peer] = []
        if self._discovery is not None:
            having = self._discovery.find(model)
            found += [peer for peer in having if peer.role == "node"][:_MAX_ASKED]
            found += self._discovery.upstream()[:_MAX_ASKED]
        if self._upstream is not None:
            found.append(Peer("", *self._upstream, role="upstream"))
        others = [peer for peer in found if peer.node != self._node]
        return list({(peer.host, peer.port): peer for peer in others}.values())

    async def _ask(
        self,
        peer: Peer,
        request: InferRequest,
        read: Callable[[InferReply], T | None],
        timeout_s: float,
    ) -> T:
        breaker = self._breaker(peer)
        question = replace(
            request,
            id=os.urandom(8),
            deadline_ms=min(60_000, max(1, int(timeout_s * 1000))),
            hops=max(1, request.hops),
        )
        try:
            reply = await self._client.ask(peer, question, timeout_s)
            served = read(reply)
        except PeerBusyError:
            breaker.succeeded()  # it may be well: it is we who ask too much
            raise
        except PeerUnreachableError as exc:
            breaker.failed()
            log.debug("neighbour did not answer", peer=peer.node, reason=str(exc))
            raise
        breaker.succeeded()
        if served is None:
            raise PeerError(reply.reason)
        return served

    def _breaker(self, peer: Peer) -> Breaker:
        address = (peer.host, peer.port)
        if address not in self._breakers and len(self._breakers) >= _MAX_BREAKERS:
            del self._breakers[next(iter(self._breakers))]
        return self._breakers.setdefault(address, Breaker(self._clock))
