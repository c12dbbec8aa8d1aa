"""A node that speaks the contract over a real session: presence, state, commands, updates, readings.

No board and no model: what it fetches is checked and kept in memory. How it misbehaves is set by the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import msgspec

import shoal_delta
from shoal_broker.outbox import Outbox
from shoal_broker.session import Inbound, Session, SessionConfig, Will
from shoal_broker.store import Store
from shoal_contract import blobs, envelope, messages, receipts
from shoal_contract.errors import EnvelopeError
from shoal_contract.messages import (
    BlobRef,
    Cancel,
    CancelAnswer,
    Cancelled,
    ChunksMissing,
    Command,
    CommandUpdate,
    Hardware,
    Manifest,
    ModelState,
    ModelWanted,
    Phase,
    Policy,
    Presence,
    Reading,
    Receipt,
    Reported,
    State,
    Wanted,
)
from shoal_contract.operations import Operation
from shoal_contract.release import parse_manifest
from shoal_contract.signatures import Verifier
from shoal_contract.topics import ChunkTopic, Topics

OPERATIONS = (
    Operation(name="ping", about="Answer.", scope="read"),
    Operation(name="ops.list", about="List the operations.", scope="read"),
)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class NodeSimulator:
    """One node. Build it with `NodeSimulator.open`.

    Attributes:
        fails: releases that it cannot bring to serve, with the reason.
        mute: it takes a release and never answers.
        done: ids of the commands that had an effect, in their order.
        fetched_bytes: bytes of blobs by digest, counted once a chunk.
        lose_chunks: so many chunks get lost on the way in.
        trusts: whose signature it asks for on commands and wanted states; None: it takes them signed or not.
        refused: messages that had none.
        policies: those it took.
    """

    def __init__(self, name: str, session: Session, topics: Topics) -> None:
        self.name = name
        self.session = session
        self.topics = topics
        self.fails: dict[bytes, str] = {}
        self.mute = False
        self.blobs: dict[bytes, bytes] = {}
        self.received_bytes: dict[bytes, int] = {}
        self.lose_chunks = 0
        self.wanted: Wanted | None = None
        self.wanted_as_sent = b""
        self.models: dict[str, ModelState] = {}
        self.commands: list[Command] = []
        self.answers: dict[bytes, CommandUpdate] = {}
        self.done: list[bytes] = []
        self.running: dict[bytes, asyncio.Event] = {}
        self.board = "Raspberry Pi 4"
        self.trusts: Verifier | None = None
        self.refused = 0
        self.policies: list[Policy] = []
        self.groups: set[str] = set()
        self._updates: asyncio.Queue[Wanted] = asyncio.Queue()
        self._started_ms = now_ms()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, name: str, port: int, state: Path, **attributes: Any
    ) -> AsyncIterator[Self]:
        """Connect and report; leaving says goodbye."""
        topics = Topics()
        boot = os.urandom(4)

        def presence(*, online: bool) -> bytes:
            return messages.encode(Presence(online=online, boot=boot, since_ms=now_ms()))

        node: Self
        async with Store.open(state / f"{name}.db") as store:
            outbox = await Outbox.load(store)

            async def connected(session: Session, _present: bool) -> None:  # noqa: FBT001 - the session's signature
                await session.publish(
                    topics.presence(name), presence(online=True), retain=True, durable=False
                )

            async def on_command(inbound: Inbound) -> None:
                await node._command(inbound)

            async def on_wanted(inbound: Inbound) -> None:
                if inbound.payload:
                    node.wanted_as_sent = inbound.payload
                    payload = envelope.stripped(inbound.payload)
                    if node.trusts is not None:
                        payload, _ = node.trusts.open(inbound.payload, topic=inbound.topic)
                    node._updates.put_nowait(messages.decode_as(payload, Wanted))

            async with Session.open(
                SessionConfig(host="127.0.0.1", port=port, client_id=name, backoff_initial_s=0.02),
                outbox=outbox,
                will=Will(topics.presence(name), presence(online=False)),
                on_connected=connected,
            ) as session:
                node = cls(name, session, topics)
                for key, value in attributes.items():
                    setattr(node, key, value)
                await session.subscribe(topics.commands(name), on_command)
                await session.subscribe(topics.group_commands("all"), on_command)
                await session.subscribe(topics.wanted(name), on_wanted)
                await session.wait_connected(5)
                await node.report()
                async with asyncio.TaskGroup() as tasks:
                    updater = tasks.create_task(node._update())
                    try:
                        yield node
                    finally:
                        updater.cancel()
                with contextlib.suppress(Exception):
                    await session.publish(
                        topics.presence(name), presence(online=False), retain=True, durable=False
                    )

    async def report(self) -> None:
        """Publish the state."""
        state = Reported(
            version="0.1.0",
            boot=b"boot",
            at_ms=now_ms(),
            hardware=Hardware(
                model=self.board,
                os="Debian 12",
                machine="aarch64",
                cpus=4,
                memory_bytes=4 << 30,
                disk_free_bytes=9 << 30,
                temperature_c=48.5,
                throttled=False,
            ),
            models=list(self.models.values()),
            devices=["meter"],
            wanted_revision=self.wanted.revision if self.wanted else 0,
        )
        await self.session.publish(
            self.topics.state(self.name), messages.encode(state), retain=True, coalesce_key="state"
        )

    async def read(
        self, seq: int, *, device: str = "meter", boot: int = 1, label: str = "7"
    ) -> None:
        """Publish a reading."""
        reading = Reading(
            device=device, boot=boot, seq=seq, label=label, confidence=0.9,
            release=b"r" * 32, by=self.name, at_ms=now_ms(),
        )  # fmt: skip
        topic, payload = self.topics.telemetry(self.name, "digits"), messages.encode(reading)
        await self.session.publish(
            topic, payload, droppable=True, receipt=receipts.name(topic, payload)
        )

    async def answer(self, command: bytes, state: State, **fields: Any) -> None:
        """Publish an update of a command."""
        update = CommandUpdate(id=command, state=state, at_ms=now_ms(), **fields)
        self.answers[command] = update
        await self._say(update)

    async def _say(self, update: CommandUpdate) -> None:
        await self.session.publish(self.topics.results(self.name), messages.encode(update))

    async def _command(self, inbound: Inbound) -> None:
        payload = inbound.payload
        if self.trusts is not None:
            try:
                payload, _ = self.trusts.open(payload, topic=inbound.topic)
            except EnvelopeError:
                self.refused += 1
                return
        elif envelope.is_signed(payload):
            payload = envelope.unpack(payload).payload
        message = messages.decode(payload)
        match message:
            case Cancel():
                await self._cancel(message)
            case Receipt(names):
                assert self.session.outbox is not None
                self.session.outbox.received(receipts.split(names))
            case Command():
                self.commands.append(message)
                if (said := self.answers.get(message.id)) is not None:
                    await self._say(said)
                elif not self.mute:
                    await self._do(message)

    async def _cancel(self, message: Cancel) -> None:
        running = self.running.pop(message.id, None)
        known = CancelAnswer.CANCELLED if running else CancelAnswer.TOO_LATE
        if running:
            await self.answer(message.id, State.CANCELLED, reason="by an operator")
        await self.session.publish(
            self.topics.results(self.name), messages.encode(Cancelled(message.id, known, now_ms()))
        )

    async def _do(self, message: Command) -> None:
        self.done.append(message.id)
        if message.op == "unknown":
            await self.answer(message.id, State.REFUSED, reason="there is no such operation")
            return
        await self.answer(message.id, State.ACCEPTED)
        await self.answer(message.id, State.RUNNING, progress=50)
        match message.op:
            case "ping":
                await self.answer(message.id, State.SUCCEEDED, result={"pong": message.args})
            case "ops.list":
                listed = [msgspec.to_builtins(operation) for operation in OPERATIONS]
                await self.answer(message.id, State.SUCCEEDED, result=listed)
            case "logs.tail":
                lines = [f"line {number}" for number in range(message.args["lines"])]
                await self.answer(message.id, State.SUCCEEDED, result={"lines": lines})
            case "trust.policy" if self.trusts is None:
                reason = "this node has no [trust] command_keys"
                await self.answer(message.id, State.FAILED, reason=reason)
            case "trust.policy":
                topic = self.topics.commands(self.name)
                document, _ = self.trusts.open(message.args["document"], topic=topic)
                self.policies.append(messages.decode_as(document, Policy))
                await self.answer(message.id, State.SUCCEEDED)
            case "fail":
                await self.answer(message.id, State.FAILED, reason="the valve is stuck")
            case _:
                self.running[message.id] = asyncio.Event()

    async def _update(self) -> None:
        while True:
            wanted = await self._updates.get()
            self.wanted = wanted
            if self.mute:
                continue
            await self._join(wanted.groups)
            for name in set(self.models) - {entry.model for entry in wanted.models}:
                del self.models[name]
            for entry in wanted.models:
                await self._bring(entry)
            await self.report()

    async def _join(self, groups: list[str]) -> None:
        async def on_command(inbound: Inbound) -> None:
            await self._command(inbound)

        for group in set(groups) - self.groups:
            await self.session.subscribe(self.topics.group_commands(group), on_command)
        for group in self.groups - set(groups):
            await self.session.unsubscribe(self.topics.group_commands(group))
        self.groups = set(groups)

    async def _bring(self, entry: ModelWanted) -> None:
        old = self.models.get(entry.model) or ModelState(
            entry.model, b"", "", entry.release, Phase.FETCHING
        )
        if old.release == entry.release:
            return
        self._set(old, target=entry.release, phase=Phase.FETCHING)
        await self.report()
        if entry.release in self.fails:
            self._set(
                old, target=entry.release, phase=Phase.FAILED, reason=self.fails[entry.release]
            )
            return
        manifest = parse_manifest(await self._fetch(entry.manifest), release=entry.release)
        for file in manifest.files:
            if file.digest not in self.blobs:
                await self._obtain(entry, file.digest)
        self._set(
            old,
            release=entry.release,
            target=entry.release,
            version=manifest.version,
            phase=Phase.SERVING,
            model_file=_model_file(manifest),
        )

    async def _obtain(self, entry: ModelWanted, digest: bytes) -> None:
        for offer in entry.deltas:
            if offer.target == digest and offer.base in self.blobs:
                delta = await self._fetch(offer.blob)
                self.blobs[digest] = shoal_delta.apply(self.blobs[offer.base], delta)
                return
        await self._fetch(next(ref for ref in entry.files if ref.digest == digest))

    async def _fetch(self, ref: BlobRef) -> bytes:
        chunks: dict[int, bytes] = {}
        count = blobs.chunk_count(ref)
        done = asyncio.Event()

        async def take(inbound: Inbound) -> None:
            address = self.topics.parse(inbound.topic)
            if not isinstance(address, ChunkTopic) or not inbound.payload:
                return
            if self.lose_chunks:
                self.lose_chunks -= 1
                return
            assert blobs.chunk_is_good(ref, address.index, inbound.payload)
            chunks[address.index] = inbound.payload
            if len(chunks) == count:
                done.set()

        topic_filter = self.topics.every_chunk(ref.digest)
        await self.session.subscribe(topic_filter, take)
        try:
            while len(chunks) < count:
                try:
                    async with asyncio.timeout(0.5):
                        await done.wait()
                except TimeoutError:
                    missing = [index for index in range(count) if index not in chunks]
                    await self.session.publish(
                        self.topics.results(self.name),
                        messages.encode(ChunksMissing(ref.digest, missing)),
                    )
        finally:
            await self.session.unsubscribe(topic_filter)
        content = b"".join(chunks[index] for index in range(count))
        assert hashlib.sha256(content).digest() == ref.digest
        self.received_bytes[ref.digest] = len(content)
        self.blobs[ref.digest] = content
        return content

    def _set(self, old: ModelState, **changes: Any) -> None:
        self.models[old.model] = msgspec.structs.replace(old, **changes)


def _model_file(manifest: Manifest) -> bytes:
    return next(entry.digest for entry in manifest.files if entry.name.endswith(".onnx"))
