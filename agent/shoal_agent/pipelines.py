"""A pipeline: device sample -> model -> reading on the bus and a command back to the device.

The reading is safe, on our disk or at the controller, before the sample is answered, so a sample is lost
neither with the uplink cut nor by a kill; what cannot be served now is left unanswered and comes again.
The device is commanded meanwhile: its loop waits for nobody but the model.
"""

import asyncio
import math
import time
from dataclasses import dataclass

import structlog

from shoal_agent.config import PipelineTable
from shoal_agent.devices import DeviceLink, NotNowError, Sample
from shoal_agent.errors import DeviceError, TooLongError
from shoal_agent.inference.errors import BadInputError, InferenceError
from shoal_agent.inference.router import Router
from shoal_broker.bus_errors import BusError
from shoal_broker.outbox import Lane
from shoal_broker.session import Session
from shoal_contract import messages, receipts
from shoal_contract.messages import Reading
from shoal_contract.topics import Topics

log = structlog.get_logger()

_TAG_BYTES = 4


@dataclass(slots=True)
class PipelineStats:
    """Counters since the start."""

    served: int = 0
    waiting: int = 0
    bad_input: int = 0
    command_failed: int = 0
    text_labels: int = 0


class Pipeline:
    """Connects one device channel with one model."""

    def __init__(
        self,
        config: PipelineTable,
        *,
        node: str,
        topics: Topics,
        session: Session,
        router: Router,
        device: DeviceLink,
    ) -> None:
        self.config = config
        self.stats = PipelineStats()
        self._topic = topics.telemetry(node, config.stream)
        self._session = session
        self._router = router
        self._device = device
        self._complained = False
        device.on_sample(config.channel, self._take)

    async def _take(self, sample: Sample) -> None:
        started = time.perf_counter_ns()
        try:
            served = await self._router.infer(
                self.config.model, [sample.payload], deadline_s=self.config.deadline_s
            )
        except BadInputError as exc:
            # It will never be right: answer it, so that the device goes on.
            self.stats.bad_input += 1
            log.warning("sample does not fit the model", device=sample.seq, reason=str(exc))
            return
        except InferenceError as exc:
            self.stats.waiting += 1
            if not self._complained:
                log.warning("nobody serves", model=self.config.model, reason=str(exc))
                self._complained = True
            raise NotNowError from exc
        self._complained = False
        answer = served.answers[0]
        reading = Reading(
            device=self.config.device,
            boot=sample.boot,
            seq=sample.seq,
            label=answer.label,
            # A model that computes NaN has none; a reading with one would be refused.
            confidence=round(answer.confidence, 4) if math.isfinite(answer.confidence) else 0.0,
            release=served.release[:8],
            by=served.by,
            at_ms=time.time_ns() // 1_000_000,
            latency_us=(time.perf_counter_ns() - started) // 1000,
        )
        failure: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._tell(reading), name="pipeline.tell")
                await self._command(sample, answer.label, served.release)
        except* (BusError, DeviceError) as group:
            failure = group
        if failure is not None:
            raise NotNowError from failure
        self.stats.served += 1

    async def _tell(self, reading: Reading) -> None:
        """Return when the reading is safe."""
        payload = messages.encode(reading)
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

    async def _command(self, sample: Sample, label: str, release: bytes) -> None:
        command = self.config.command
        if command is None:
            return
        value: int | str = label
        if command.value == "number":
            try:
                value = int(label)
            except ValueError:
                self.stats.text_labels += 1
                return
        try:
            await self._device.set(command.channel, value, sample.seq, release[:_TAG_BYTES])
        except TooLongError as exc:
            # It will never fit: the reading says it all, and the device goes on.
            self.stats.command_failed += 1
            log.warning("label does not fit a command", label=label[:64], reason=str(exc))
        except DeviceError as exc:
            self.stats.command_failed += 1
            log.warning("device command failed", device=self.config.device, reason=str(exc))
            raise
