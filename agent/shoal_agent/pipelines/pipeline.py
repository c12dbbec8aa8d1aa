"""A pipeline: something measured -> model -> reading on the bus, and what else is to follow from it.

The reading is safe, on our disk or at the controller, before the item is done, so an item is lost neither
with the uplink cut nor by a kill; what cannot be served now is left to its source, which brings it again.
Devices are commanded meanwhile: their loop waits for nobody but the model.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog

from shoal_agent.devices import NotNowError
from shoal_agent.errors import DeviceError
from shoal_agent.inference.backlog import Priority
from shoal_agent.inference.errors import BadInputError, InferenceError
from shoal_agent.inference.router import Router
from shoal_agent.inference.served import Served
from shoal_agent.inference.tensors import Tensor
from shoal_agent.pipelines import answers
from shoal_agent.pipelines.item import Item, Sink, Verdict
from shoal_agent.pipelines.timing import Steps
from shoal_broker.bus_errors import BusError
from shoal_broker.outbox import Lane
from shoal_broker.session import Session
from shoal_contract import messages, receipts
from shoal_contract.errors import MisfitError
from shoal_contract.fitting import Fit, fit
from shoal_contract.messages import Reading
from shoal_contract.pipelines import PipelineTable
from shoal_contract.release import ReleaseSpec
from shoal_contract.topics import Topics

log = structlog.get_logger()

SAY_EVERY_S = 60.0


@dataclass(slots=True)
class PipelineStats:
    """Counters since the start, and how long the newest items took.

    `passed_over`: pictures of a camera that a newer one replaced; `source_restarts`: of its decoding process.
    """

    served: int = 0
    waiting: int = 0
    bad_input: int = 0
    given_up: int = 0
    sink_failed: int = 0
    passed_over: int = 0
    source_restarts: int = 0
    steps: Steps = field(default_factory=Steps)


class Pipeline:
    """Connects a source with one model and with what follows from its answers.

    Args:
        sinks: what follows, beside the reading.
        spec_of: the release of a model that serves here; None: none does, or nobody knows it.
        stats: of the pipeline in whose place this one comes.
        on_trouble: told when `trouble` changed.

    Attributes:
        trouble: why nothing goes through at the moment, for a person; empty: nothing is known against it.
    """

    def __init__(
        self,
        config: PipelineTable,
        *,
        node: str,
        topics: Topics,
        session: Session,
        router: Router,
        sinks: Sequence[Sink] = (),
        spec_of: Callable[[str], ReleaseSpec | None] = lambda _: None,
        stats: PipelineStats | None = None,
        on_trouble: Callable[[], None] = lambda: None,
    ) -> None:
        self.config = config
        self.stats = stats or PipelineStats()
        self.trouble = ""
        self._spec_of = spec_of
        self._on_trouble = on_trouble
        self._fitted: tuple[ReleaseSpec, Fit | None, str] | None = None
        self._topic = topics.telemetry(node, config.stream)
        self._session = session
        self._router = router
        self._sinks = sinks
        self._complained = False
        self._said_s: float | None = None

    async def take(self, item: Item) -> None:
        """Return when everything that follows from the item is done, or nothing ever will be.

        Raises:
            NotNowError: bring it again later.
        """
        started = time.perf_counter_ns()
        if item.tensor is None:
            # What does not fit waits for a person, as what nobody serves does.
            self.fit()
        try:
            served = await self._ask(item)
        except BadInputError as exc:
            # It will never be right: it is done, so that the source goes on.
            self.refuse(item.source, str(exc))
            return
        except InferenceError as exc:
            self.stats.waiting += 1
            if not self._complained:
                log.warning("nobody serves", model=self.config.model, reason=str(exc))
                self._complained = True
            raise NotNowError from exc
        self._complained = False
        self.stats.steps.record("model", started)
        answer = served.answers[0]
        verdict = Verdict(
            label=answer.label,
            # A model that computes NaN has none; a reading with one would be refused.
            confidence=round(answer.confidence, 4) if math.isfinite(answer.confidence) else 0.0,
            release=served.release,
            by=served.by,
            at_ms=time.time_ns() // 1_000_000,
        )
        latency_us = (time.perf_counter_ns() - started) // 1000
        failure: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._tell(item, verdict, latency_us), name="pipeline.tell")
                for sink in self._sinks:
                    tasks.create_task(self._put(sink, item, verdict), name=f"pipeline.{sink.name}")
        except* (BusError, DeviceError) as group:
            failure = group
        if failure is not None:
            raise NotNowError from failure
        self.stats.served += 1
        self.stats.steps.record("whole", started)

    def fit(self) -> Fit | None:
        """What makes this pipeline fit the release that serves; None: none is known here.

        Raises:
            NotNowError: nothing makes it fit; `trouble` says why.
        """
        spec = self._spec_of(self.config.model)
        if spec is None:
            return None
        if self._fitted is None or self._fitted[0] is not spec:
            try:
                self._fitted = spec, fit(self.config, spec), ""
            except MisfitError as exc:
                log.error("pipeline does not fit", stream=self.config.stream, reason=str(exc))  # noqa: TRY400 - the message says it all
                self._fitted = spec, None, str(exc)
            self.say(self._fitted[2])
        if self._fitted[2]:
            self.stats.waiting += 1
            raise NotNowError
        return self._fitted[1]

    def fit_is(self, known: Fit) -> bool:
        """Whether what was made to fit like this still does: no other release came meanwhile."""
        try:
            return self.fit() is known
        except NotNowError:
            return False

    def say(self, trouble: str) -> None:
        """Why nothing goes through; empty: it does again."""
        if trouble != self.trouble:
            self.trouble = trouble
            self._on_trouble()

    def refuse(self, source: str, reason: str) -> None:
        """Something came that can never be served: count it, and say so once a minute."""
        self.stats.bad_input += 1
        now_s = time.monotonic()
        if self._said_s is None or now_s - self._said_s >= SAY_EVERY_S:
            log.warning(
                "does not fit the model", stream=self.config.stream, source=source, reason=reason
            )
            self._said_s = now_s

    async def _ask(self, item: Item) -> Served:
        model, deadline_s = self.config.model, self.config.deadline_s
        if item.tensor is None:
            return await self._router.classify(model, [item.payload], deadline_s=deadline_s)
        table = self.config.answer
        assert table is not None  # noqa: S101 - it did not fit without
        name, dtype, shape = item.tensor
        done = await self._router.infer(
            model,
            {name: Tensor.of(dtype, shape, item.payload)},
            outputs=[table.output],
            priority=Priority.HIGH,
            deadline_s=deadline_s,
        )
        return Served([answers.read(done.outputs[table.output], table)], done.release, done.by)

    async def _tell(self, item: Item, verdict: Verdict, latency_us: int) -> None:
        """Return when the reading is safe."""
        started = time.perf_counter_ns()
        payload = messages.encode(
            Reading(
                device=item.source,
                boot=item.boot,
                seq=item.seq,
                label=verdict.label,
                confidence=verdict.confidence,
                release=verdict.release[:8],
                by=verdict.by,
                at_ms=verdict.at_ms,
                latency_us=latency_us,
            )
        )
        await self._session.publish(
            self._topic,
            payload,
            lane=Lane.TELEMETRY,
            droppable=True,
            receipt=receipts.name(self._topic, payload),
            hold=True,
            expiry_s=self.config.keep_s,
            stream_bytes=self.config.keep_bytes,
        )
        self.stats.steps.record("reading", started)

    async def _put(self, sink: Sink, item: Item, verdict: Verdict) -> None:
        started = time.perf_counter_ns()
        try:
            is_done = await sink.put(item, verdict)
        except DeviceError:
            self.stats.sink_failed += 1
            raise
        if is_done:
            self.stats.steps.record(sink.name, started)
        else:
            self.stats.sink_failed += 1
