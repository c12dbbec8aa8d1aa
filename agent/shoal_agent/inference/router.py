"""Who serves a request: this node, else a neighbour that has the model, else upstream, else nobody.

A request that came from another node is served here or not at all (`hops`), so nothing goes in circles.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
import structlog
from msgspec.structs import replace

from shoal_agent.errors import AgentError
from shoal_agent.inference import remote
from shoal_agent.inference.backlog import Priority
from shoal_agent.inference.engine import Engine, Inferred, Served
from shoal_agent.inference.errors import (
    BadInputError,
    DeadlineError,
    InferenceError,
    ModelFailedError,
    NobodyServesError,
    NotServingError,
    QueueFullError,
    WorkerLostError,
)
from shoal_agent.inference.limits import Breaker
from shoal_agent.inference.served import ModelFacts
from shoal_agent.inference.tensors import Tensor
from shoal_agent.peers.client import PeerClient
from shoal_agent.peers.errors import PeerBusyError, PeerError, PeerUnreachableError
from shoal_agent.peers.peer import Peer
from shoal_contract.messages import InferReply, InferRequest

if TYPE_CHECKING:
    from shoal_agent.peers.discovery import Discovery

log = structlog.get_logger()

T = TypeVar("T")

_MAX_REASON: Final = 1024
_MAX_BREAKERS: Final = 512
_MAX_ASKED: Final = 4
"""Nodes asked for one request, so that a full site does not ask itself to death."""


@dataclass(slots=True)
class RouterStats:
    """Requests since the start, by who served them; `refused`: nobody."""

    served_local: int = 0
    served_peer: int = 0
    served_upstream: int = 0
    refused: int = 0


class Router:
    """Serves requests for models, wherever they run.

    Args:
        node: who we are: `by` of what this node served.
        engine: serves locally.
        discovery: knows neighbours; None: there are none.
        client: asks them.
        upstream: a configured upstream node's peer address.

    Attributes:
        stats: counters since the start.
    """

    def __init__(
        self,
        *,
        node: str,
        engine: Engine,
        discovery: Discovery | None,
        client: PeerClient,
        upstream: tuple[str, int] | None,
    ) -> None:
        self.stats = RouterStats()
        self._node = node
        self._engine = engine
        self._discovery = discovery
        self._client = client
        self._upstream = upstream
        self._clock = asyncio.get_running_loop().time
        self._breakers: dict[tuple[str, int], Breaker] = {}

    def describe(self) -> list[ModelFacts]:
        """The models that serve here."""
        return self._engine.describe()

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Tensor],
        *,
        outputs: Sequence[str] = (),
        priority: int = Priority.NORMAL,
        deadline_s: float = 1.0,
        hops: int = 0,
    ) -> Inferred:
        """Run a model on tensors, with the node that really ran it.

        Args:
            model: its name.
            inputs: every input of the model, by name.
            outputs: those wanted; none: all.
            priority: of which class it is.
            deadline_s: seconds from now, for everything.
            hops: how many nodes passed it on; from 1 on, only this node may serve it.

        Raises:
            BadInputError: the tensors do not fit the model.
            DeadlineError: this node accepted it and was not done in time.
            QueueFullError: too much is waiting, here and elsewhere; says when to come again.
            ModelFailedError: the model failed at them, and nobody else answered.
            NobodyServesError: what each that was asked said.
        """
        deadline = self._clock() + deadline_s
        may_go = hops == 0 and bool(self._willing(model, []))
        try:
            done = await self._engine.infer(
                model,
                inputs,
                outputs=outputs,
                priority=priority,
                deadline_s=deadline_s,
                retry=not may_go,
            )
        except (NotServingError, QueueFullError, WorkerLostError, ModelFailedError) as exc:
            failure: InferenceError = exc
        except InferenceError:
            self.stats.refused += 1
            raise
        else:
            self.stats.served_local += 1
            return replace(done, by=self._node)
        said = [f"{self._node}: {failure}"]
        if may_go:
            tensors = remote.as_parts(inputs)
            request = InferRequest(b"", model, [], tensors=tensors, outputs=list(outputs))
            read = partial(remote.tensors_in, wanted=frozenset(outputs))
            elsewhere = await self._ask_around(request, read, deadline, said)
            if elsewhere is not None:
                return elsewhere
        self.stats.refused += 1
        if isinstance(failure, (QueueFullError, ModelFailedError)):
            raise failure
        raise NobodyServesError(f"nobody serves {model!r}: " + "; ".join(said)) from failure

    async def classify(
        self,
        model: str,
        items: Sequence[bytes],
        *,
        deadline_s: float = 1.0,
        hops: int = 0,
        priority: int = Priority.HIGH,
    ) -> Served:
        """One answer an item, in order, with the node that really ran them.

        Args:
            model: its name.
            items: each encoded as the release's [input] says.
            deadline_s: seconds from now, for everything.
            hops: how many nodes passed it on; from 1 on, only this node may serve it.
            priority: of which class it is; the board's own loops ask here, and go before everybody else.

        Raises:
            BadInputError: the items do not fit the model.
            DeadlineError: this node accepted it and was not done in time.
            NobodyServesError: what each that was asked said.
        """
        deadline = self._clock() + deadline_s
        try:
            # Who may be asked instead is not kept waiting for a worker that has to start again.
            may_go = hops == 0 and bool(self._willing(model, []))
            served = await self._engine.classify(
                model, items, deadline_s=deadline_s, priority=priority, retry=not may_go
            )
        except (NotServingError, QueueFullError, WorkerLostError, ModelFailedError) as exc:
            said = [f"{self._node}: {exc}"]
            failure = exc
        except InferenceError:
            self.stats.refused += 1
            raise
        else:
            self.stats.served_local += 1
            return replace(served, by=self._node)
        if hops == 0:
            request = InferRequest(b"", model, list(items))
            read = partial(remote.answers_in, items=len(items))
            elsewhere = await self._ask_around(request, read, deadline, said)
            if elsewhere is not None:
                return elsewhere
            if isinstance(failure, WorkerLostError) and may_go:
                again = await self._once_more(model, items, deadline, said)
                if again is not None:
                    return again
        self.stats.refused += 1
        raise NobodyServesError(f"nobody serves {model!r}: " + "; ".join(said))

    async def _once_more(
        self, model: str, items: Sequence[bytes], deadline: float, said: list[str]
    ) -> Served | None:
        """Here after all: nobody else could, and the worker may be back."""
        try:
            served = await self._engine.classify(model, items, deadline_s=deadline - self._clock())
        except InferenceError as exc:
            said.append(f"{self._node}: {exc}")
            return None
        self.stats.served_local += 1
        return replace(served, by=self._node)

    async def answer(self, request: InferRequest) -> InferReply:
        """The reply to a request from a neighbour or from MQTT; a refusal has its reason filled in."""
        try:
            if request.tensors:
                return await self._answer_tensors(request)
            served = await self.classify(
                request.model,
                request.items,
                deadline_s=request.deadline_ms / 1000,
                hops=request.hops,
                priority=Priority.NORMAL,
            )
        except AgentError as exc:
            return InferReply(request.id, self._node, b"", [], str(exc)[:_MAX_REASON])
        return InferReply(request.id, served.by, served.release, served.answers)

    async def _answer_tensors(self, request: InferRequest) -> InferReply:
        done = await self.infer(
            request.model,
            remote.as_tensors(request.tensors),
            outputs=request.outputs,
            deadline_s=request.deadline_ms / 1000,
            hops=request.hops,
        )
        parts = remote.as_parts(done.outputs)
        if (size_bytes := sum(len(part.data) for part in parts)) > remote.MAX_TENSOR_BYTES:
            raise BadInputError(f"{size_bytes} bytes of outputs are too many to travel")
        return InferReply(request.id, done.by, done.release, [], tensors=parts)

    async def _ask_around(
        self,
        request: InferRequest,
        read: Callable[[InferReply], T | None],
        deadline: float,
        said: list[str],
    ) -> T | None:
        """The first answer from elsewhere; what the others said is added to `said`.

        `read` is what a reply says, None of a refusal; it raises PeerUnreachableError for nonsense.
        """
        candidates = self._willing(request.model, said)
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
                served = await self._ask(peer, request, read, timeout_s)
            except (PeerError, DeadlineError) as exc:
                said.append(f"{peer.node or peer.host}: {exc}")
                continue
            if peer.role == "upstream":
                self.stats.served_upstream += 1
            else:
                self.stats.served_peer += 1
            return served
        return None

    def _willing(self, model: str, said: list[str]) -> list[Peer]:
        """The candidates that are not left alone for their failures; the others are added to `said`."""
        willing = []
        for peer in self._candidates(model):
            if self._breaker(peer).is_open:
                said.append(f"{peer.node or peer.host}: left alone after failures")
            else:
                willing.append(peer)
        return willing

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
        question = msgspec.structs.replace(
            request,
            id=os.urandom(8),
            deadline_ms=min(60_000, max(1, int(timeout_s * 1000))),
            hops=1,
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
