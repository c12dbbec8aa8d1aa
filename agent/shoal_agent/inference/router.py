"""Who serves a request: this node, else a neighbour that has the model, else upstream, else nobody.

A request that came from another node is served here or not at all (`hops`), so nothing goes in circles.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from msgspec.structs import replace

from shoal_agent.errors import AgentError
from shoal_agent.inference import remote
from shoal_agent.inference.absence import Cover
from shoal_agent.inference.backlog import Priority
from shoal_agent.inference.elsewhere import Elsewhere
from shoal_agent.inference.engine import Engine, Inferred, Served
from shoal_agent.inference.errors import (
    AwayError,
    BadInputError,
    InferenceError,
    ModelFailedError,
    NobodyServesError,
    NotServingError,
    QueueFullError,
    WorkerLostError,
)
from shoal_agent.inference.hurry import Hurry
from shoal_agent.inference.served import ModelFacts
from shoal_agent.inference.tensors import Tensor
from shoal_agent.peers.client import PeerClient
from shoal_contract.messages import InferReply, InferRequest

if TYPE_CHECKING:
    from shoal_agent.peers.discovery import Discovery

T = TypeVar("T", Served, Inferred)

_MAX_REASON: Final = 1024
_COVER_S: Final = 2.0
"""Who is to serve for us has so long for a request of ours, and no longer than our callers gave us lately."""
_MAX_HURRIES: Final = 256


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
        engine: serves locally; from now on it asks here who else serves a model (`find_cover`).
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
        self._elsewhere = Elsewhere(
            node=node, discovery=discovery, client=client, upstream=upstream
        )
        self._clock = asyncio.get_running_loop().time
        self._hurries: dict[str, Hurry] = {}
        engine.refer_to(self.find_cover)

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
        here = partial(self._engine.infer, model, inputs, outputs=outputs, priority=priority)

        def request() -> InferRequest:
            tensors = remote.as_parts(inputs)
            return InferRequest(b"", model, [], tensors=tensors, outputs=list(outputs))

        return await self._serve(
            model,
            here,
            request,
            partial(remote.tensors_in, wanted=frozenset(outputs)),
            deadline_s=deadline_s,
            hops=hops,
        )

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
            InferenceError: as `infer`.
        """
        return await self._serve(
            model,
            partial(self._engine.classify, model, items, priority=priority),
            lambda: InferRequest(b"", model, list(items)),
            partial(remote.answers_in, items=len(items)),
            deadline_s=deadline_s,
            hops=hops,
        )

    async def _serve(
        self,
        model: str,
        here: Callable[..., Awaitable[T]],
        request: Callable[[], InferRequest],
        read: Callable[[InferReply], T | None],
        *,
        deadline_s: float,
        hops: int,
    ) -> T:
        now = self._clock()
        deadline = now + deadline_s
        if hops >= remote.COUNTS_ON_US:
            self._require_stay(model)
        if hops == 0:
            self._hurry(model).note(deadline_s, now)
        # Who may be asked instead is not kept waiting for a worker that has to start again.
        may_go = hops == 0 and bool(self._elsewhere.willing(model, []))
        try:
            return self._by_us(await here(deadline_s=deadline_s, retry=not may_go))
        except (NotServingError, QueueFullError, WorkerLostError, ModelFailedError) as exc:
            failure: InferenceError = exc
        except InferenceError:
            self.stats.refused += 1
            raise
        said = [f"{self._node}: {failure}"]
        if hops == 0:
            found = await self._elsewhere.ask(request(), read, deadline, said)
            if found is not None:
                answer, role = found
                if role == "upstream":
                    self.stats.served_upstream += 1
                else:
                    self.stats.served_peer += 1
                return answer
            again = await self._once_more(model, here, failure, deadline, said, may_go=may_go)
            if again is not None:
                return again
        self.stats.refused += 1
        if isinstance(failure, (QueueFullError, ModelFailedError)):
            raise failure
        raise NobodyServesError(f"nobody serves {model!r}: " + "; ".join(said)) from failure

    def _by_us(self, answer: T) -> T:
        self.stats.served_local += 1
        return replace(answer, by=self._node)

    async def _once_more(
        self,
        model: str,
        here: Callable[..., Awaitable[T]],
        failure: InferenceError,
        deadline: float,
        said: list[str],
        *,
        may_go: bool,
    ) -> T | None:
        """Here after all, as nobody else could: the worker may be back, or what is away is called back."""
        if isinstance(failure, AwayError):
            if not await self._engine.call_back(model, deadline - self._clock()):
                return None
        elif not (may_go and isinstance(failure, WorkerLostError)):
            return None
        try:
            return self._by_us(await here(deadline_s=deadline - self._clock()))
        except InferenceError as exc:
            said.append(f"{self._node}: {exc}")
            return None

    def _require_stay(self, model: str) -> None:
        """A neighbour is about to leave: it must not count on what is about to leave, too."""
        if self._engine.is_leaving(model):
            self.stats.refused += 1
            raise NobodyServesError(
                f"nobody serves {model!r}: {self._node}: it gives way to its new release"
            )

    def _hurry(self, model: str) -> Hurry:
        found = self._hurries.get(model)
        if found is None:
            if len(self._hurries) >= _MAX_HURRIES:
                self._hurries.clear()
            found = self._hurries[model] = Hurry()
        return found

    async def find_cover(self, model: str) -> Cover:
        """Who serves `model` instead of this node, now: seen by a request of zeros that must be answered in time."""
        signature = self._engine.signature(model)
        if signature is None:
            return Cover("")
        now = self._clock()
        within_s = min(_COVER_S, self._hurry(model).shortest_s(now))
        said: list[str] = []
        request, read = remote.trial_question(model, signature)
        found = await self._elsewhere.ask(request, read, now + within_s, said)
        if found is None:
            return Cover("", tuple(said))
        return Cover(found[0], tuple(said))

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
