"""A pipeline: something measured -> model -> reading on the bus, and what else is to follow from it.

The reading is safe, on our disk or at the controller, before the item is done, so an item is lost neither
with the uplink cut nor by a kill; what cannot be served now is left to its source, which brings it again.
Devices are commanded meanwhile: their loop waits for nobody but the model.
"""

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog

from shoal_agent.config import PipelineTable
from shoal_agent.devices import NotNowError
from shoal_agent.errors import DeviceError
from shoal_agent.inference.errors import BadInputError, InferenceError
from shoal_agent.inference.router import Router
from shoal_agent.pipelines.item import Item, Sink, Verdict
from shoal_agent.pipelines.timing import Steps
from shoal_broker.bus_errors import BusError
from shoal_broker.outbox import Lane
from shoal_broker.session import Session
from shoal_contract import messages, receipts
from shoal_contract.messages import Reading
from shoal_contract.topics import Topics

log = structlog.get_logger()

SAY_EVERY_S = 60.0


@dataclass(slots=True)
class PipelineStats:
    """Counters since the start, and how long the newest items took."""

    served: int = 0
    waiting: int = 0
    bad_input: int = 0
    given_up: int = 0
    sink_failed: int = 0
    steps: Steps = field(default_factory=Steps)


class Pipeline:
    """Connects a source with one model and with what follows from its answers.

    Args:
        sinks: what follows, beside the reading.
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
    ) -> None:
        self.config = config
        self.stats = PipelineStats()
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
        try:
            served = await self._router.classify(
                self.config.model, [item.payload], deadline_s=self.config.deadline_s
            )
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

    def refuse(self, source: str, reason: str) -> None:
        """Something came that can never be served: count it, and say so once a minute."""
        self.stats.bad_input += 1
        now_s = time.monotonic()
        if self._said_s is None or now_s - self._said_s >= SAY_EVERY_S:
            log.warning(
                "does not fit the model", stream=self.config.stream, source=source, reason=reason
            )
            self._said_s = now_s

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
