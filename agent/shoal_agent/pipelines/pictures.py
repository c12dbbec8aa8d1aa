"""Pictures as items: the files of a folder, or a camera. Decoding happens in a process of its own (`decoder`).

A process that dies or hangs is started anew, later each time; the pipelines beside it notice nothing.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit

import structlog

from shoal_agent.background import Background
from shoal_agent.devices import NotNowError
from shoal_agent.errors import DecoderError
from shoal_agent.pipelines import picture_pipe as pipe
from shoal_agent.pipelines.decoder import Decoder
from shoal_agent.pipelines.item import Item
from shoal_agent.pipelines.ledger import Ledger
from shoal_agent.pipelines.pipeline import Pipeline
from shoal_agent.pipelines.sources import RETRY_S, SOURCE_LENGTH
from shoal_broker.bus_errors import StoreError
from shoal_contract.fitting import Fit
from shoal_contract.pipelines import CameraTable, ImagesTable

log = structlog.get_logger()

FIRST_RESTART_S: Final = 0.5
LONGEST_RESTART_S: Final = 60.0
STABLE_S: Final = 30.0
LEAVE_S: Final = 5.0
"""What is under way may take so long when the pipeline changes."""
_LOOK_S: Final = 1.0
_ANSWER_S: Final = 5.0
_DEATHS: Final = 2
"""A process may also be killed from outside: only the second death is the picture's fault."""
_MAX_PASSWORD_BYTES: Final = 1024


class Supervised:
    """Keeps a decoding process running for one pipeline, as a source.

    Args:
        opening: what the process is to read.
        serve: asks it until it fails (DecoderError) or the source is stopped.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        tasks: Background,
        opening: Callable[[], Awaitable[pipe.Opening]],
        serve: Callable[[Decoder, asyncio.Event], Awaitable[None]],
    ) -> None:
        self._pipeline = pipeline
        self._tasks = tasks
        self._opening = opening
        self._serve = serve
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """See `Source`."""
        self._task = self._tasks.hold(self._run(), name=f"pictures.{self._pipeline.config.stream}")

    def stop(self) -> None:
        """See `Source`."""
        self._stopping.set()

    async def ended(self) -> None:
        """See `Source`; what is still under way after `LEAVE_S` is given up."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=LEAVE_S)
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        longest_s = FIRST_RESTART_S
        while not self._stopping.is_set():
            started_s = loop.time()
            try:
                async with Decoder.open(await self._opening()) as decoder:
                    await self._serve(decoder, self._stopping)
                    return
            except (DecoderError, StoreError) as exc:
                if self._stopping.is_set():
                    return
                self._pipeline.stats.source_restarts += 1
                if loop.time() - started_s >= STABLE_S:
                    longest_s = FIRST_RESTART_S
                # Full jitter: many boards may look at the same camera.
                delay_s = random.uniform(0, longest_s)  # noqa: S311 - no secret
                longest_s = min(2 * longest_s, LONGEST_RESTART_S)
                self._pipeline.say(str(exc))
                log.warning(
                    "pictures stopped", stream=self._pipeline.config.stream, reason=str(exc),
                    retry_s=round(delay_s, 1),
                )  # fmt: skip
                await _pause(self._stopping, delay_s)


class FolderReader:
    """New files of a folder, one after the other, oldest first; each waits until somebody serves it."""

    def __init__(self, table: ImagesTable, pipeline: Pipeline, ledger: Ledger) -> None:
        self._table = table
        self._pipeline = pipeline
        self._ledger = ledger
        self._source = f"{pipeline.config.stream} {table.path}"
        self._deaths: dict[tuple[str, str], int] = {}

    async def opening(self) -> pipe.Opening:
        """What the process is told first."""
        table = self._table
        return pipe.OpenFolder(
            path=table.path,
            formats=list(table.formats),
            poll_s=table.poll_s,
            max_file_bytes=table.max_file_bytes,
            max_pixels=table.max_pixels,
            memory_bytes=table.memory_bytes,
            known=await self._ledger.known(self._source),
        )

    async def serve(self, decoder: Decoder, stopping: asyncio.Event) -> None:
        """Return when the source is stopped.

        Raises:
            DecoderError: the process is of no use any more.
            StoreError: what was read cannot be remembered.
        """
        await self._ledger.forget(self._source, decoder.gone)
        while not stopping.is_set():
            fit = await known_fit(self._pipeline, stopping)
            if fit is None:
                return
            match await decoder.ask(pipe.Look(_LOOK_S), timeout_s=_LOOK_S + _ANSWER_S):
                case pipe.Found(name, stamp):
                    self._pipeline.say("")
                    if not await self._file(decoder, name, stamp, stopping):
                        return
                case _:
                    self._pipeline.say("")

    async def _file(self, decoder: Decoder, name: str, stamp: str, stopping: asyncio.Event) -> bool:
        """Whether the file is done with; False: the source was stopped before."""
        boot, seq = await self._ledger.begin(self._source, name, stamp)
        while True:
            fit = await known_fit(self._pipeline, stopping)
            if fit is None:
                return False
            picture = await self._decoded(decoder, name, stamp, fit)
            if picture is None:
                await self._done(decoder, name, stamp, delete=False)
                return True
            item = _item(self._pipeline, fit, picture, boot, seq, file=name)
            while self._pipeline.fit_is(fit):
                if await _taken(self._pipeline, item):
                    await self._done(decoder, name, stamp, delete=self._table.after == "delete")
                    return True
                if stopping.is_set():
                    return False
                await _pause(stopping, RETRY_S)

    async def _decoded(
        self, decoder: Decoder, name: str, stamp: str, fit: Fit
    ) -> pipe.Picture | None:
        """None: it cannot be used, and that was said."""
        key = (name, stamp)
        assert fit.preparation is not None  # noqa: S101 - a picture's fit has one
        if self._deaths.get(key, 0) >= _DEATHS:
            del self._deaths[key]
            self._pipeline.refuse(name, "decoding it ended the process twice")
            return None
        try:
            answer = await decoder.ask(
                pipe.Decode(name, stamp, fit.preparation), timeout_s=self._table.decode_timeout_s
            )
        except DecoderError:
            self._deaths[key] = self._deaths.get(key, 0) + 1
            raise
        self._deaths.pop(key, None)
        match answer:
            case pipe.Picture():
                return answer
            case pipe.Unusable(reason):
                self._pipeline.refuse(name, reason)
                return None
        raise DecoderError("the process for pictures speaks nonsense")

    async def _done(self, decoder: Decoder, name: str, stamp: str, *, delete: bool) -> None:
        if not delete:
            await self._ledger.finish(self._source, name, stamp)
        match await decoder.ask(pipe.Done(name, stamp, delete), timeout_s=_ANSWER_S):
            case pipe.Unusable(reason):
                self._pipeline.refuse(name, reason)
                await self._ledger.finish(self._source, name, stamp)
            case _ if delete:
                # Behind the deletion: a power cut between the two must not leave a file that nobody deletes.
                await self._ledger.forget(self._source, [name])


class CameraReader:
    """The newest picture, `rate_hz` times a second at most; one that nobody serves is passed over."""

    def __init__(self, table: CameraTable, pipeline: Pipeline) -> None:
        self._table = table
        self._pipeline = pipeline
        self._boot = random.SystemRandom().randrange(1 << 31)
        self._seq = 0

    async def opening(self) -> pipe.Opening:
        """What the process is told first.

        Raises:
            DecoderError: the password cannot be read.
        """
        table = self._table
        return pipe.OpenCamera(
            url=await asyncio.to_thread(_with_password, table),
            format=table.format,
            options=table.options,
            open_timeout_s=table.open_timeout_s,
            read_timeout_s=table.stall_s,
            max_pixels=table.max_pixels,
            memory_bytes=table.memory_bytes,
        )

    async def serve(self, decoder: Decoder, stopping: asyncio.Event) -> None:
        """Return when the source is stopped.

        Raises:
            DecoderError: the camera ended or gives nothing.
        """
        loop = asyncio.get_running_loop()
        quiet_until = loop.time() + self._table.open_timeout_s + self._table.stall_s
        while not stopping.is_set():
            started = loop.time()
            fit = await known_fit(self._pipeline, stopping)
            if fit is None:
                return
            assert fit.preparation is not None  # noqa: S101 - a picture's fit has one
            wait_s = min(_LOOK_S, self._table.stall_s)
            answer = await decoder.ask(
                pipe.Newest(wait_s, fit.preparation), timeout_s=wait_s + self._table.stall_s
            )
            match answer:
                case pipe.Picture():
                    quiet_until = loop.time() + self._table.stall_s
                    await self._take(answer, fit)
                    await _pause(stopping, started + 1 / self._table.rate_hz - loop.time())
                case pipe.Unusable(reason):
                    self._pipeline.refuse(self._pipeline.config.stream, reason)
                case _ if loop.time() >= quiet_until:
                    raise DecoderError(f"the camera gave no picture for {self._table.stall_s:g} s")

    async def _take(self, picture: pipe.Picture, fit: Fit) -> None:
        self._pipeline.say("")
        self._pipeline.stats.passed_over += picture.skipped
        self._seq += 1
        item = _item(self._pipeline, fit, picture, self._boot, self._seq)
        if not await _taken(self._pipeline, item):
            # There will be a newer one: an old answer is of no use to anybody.
            self._pipeline.stats.given_up += 1


async def known_fit(pipeline: Pipeline, stopping: asyncio.Event) -> Fit | None:
    """What makes pictures fit the release, once one serves here that they fit; None: stopped before."""
    while not stopping.is_set():
        try:
            fit = pipeline.fit()
        except NotNowError:
            fit = None
        else:
            if fit is not None:
                return fit
            pipeline.say(f"no release of {pipeline.config.model!r} serves on this board yet")
        await _pause(stopping, RETRY_S)
    return None


def _item(
    pipeline: Pipeline, fit: Fit, picture: pipe.Picture, boot: int, seq: int, *, file: str = ""
) -> Item:
    assert fit.preparation is not None  # noqa: S101 - a picture's fit has one
    pipeline.stats.steps.add("decode", picture.decode_us)
    # Since the file was written, or the camera's picture came: a clock that was set back makes it no less than 0.
    age_us = time.time_ns() // 1000 - picture.taken_ms * 1000
    pipeline.stats.steps.add("age", max(0, age_us))
    tensor = None if fit.tensor is None else (fit.tensor, fit.preparation.element, fit.shape)
    return Item(
        source=pipeline.config.stream[-SOURCE_LENGTH:],
        boot=boot,
        seq=seq,
        payload=picture.data,
        matched=(Path(file).stem,) if file else (),
        file=file,
        tensor=tensor,
    )


async def _taken(pipeline: Pipeline, item: Item) -> bool:
    try:
        await pipeline.take(item)
    except NotNowError:
        return False
    return True


async def _pause(stopping: asyncio.Event, delay_s: float) -> None:
    """So long, or until the source is stopped."""
    if delay_s > 0:
        try:
            async with asyncio.timeout(delay_s):
                await stopping.wait()
        except TimeoutError:
            return


def _with_password(table: CameraTable) -> str:
    """The address with name and password in it, as FFmpeg wants it."""
    if table.username is None or table.password_file is None:
        return table.url
    try:
        with Path(table.password_file).open("rb") as file:
            password = file.read(_MAX_PASSWORD_BYTES).decode("utf-8", "replace").strip()
    except OSError as exc:
        raise DecoderError(f"password_file {table.password_file}: {exc.strerror}") from exc
    parts = urlsplit(table.url)
    credentials = f"{quote(table.username, safe='')}:{quote(password, safe='')}"
    return parts._replace(netloc=f"{credentials}@{parts.netloc}").geturl()
