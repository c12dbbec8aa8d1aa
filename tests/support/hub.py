"""The fleet's side of one node, moved by hand: wants releases, keeps what the node reports."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import shoal_delta
from shoal_broker.session import Inbound, Session, SessionConfig
from shoal_contract import blobs, messages
from shoal_contract.messages import DeltaOffer, ModelWanted, OperatorSet, Reported, Wanted
from shoal_contract.onnx_outline import outline
from shoal_contract.release import build_manifest, parse_spec
from shoal_contract.signatures import Signer
from shoal_contract.topics import Channel, Topics


class Release:
    """A release directory, ready to be offered."""

    def __init__(self, directory: Path, operator_sets: Sequence[OperatorSet] = ()) -> None:
        self.spec = parse_spec((directory / "release.toml").read_bytes())
        self.files = {name: (directory / name).read_bytes() for name in self.spec.files}
        self.manifest = build_manifest(self.spec, self.files, operator_sets)
        self.id = hashlib.sha256(self.manifest).digest()
        self.model = self.files[self.spec.model.file]

    @classmethod
    def as_added(cls, directory: Path) -> Self:
        """As the controller makes it of the directory: its manifest lists the model's operators."""
        return cls(directory, outline(cls(directory).model).operator_sets)


class Hub:
    """A controller of the tests. Attributes hold the newest word of the node; with a `signer` it signs what it wants."""

    def __init__(self, session: Session, node: str) -> None:
        self.session = session
        self.node = node
        self.topics = Topics()
        self.reported: list[Reported] = []
        self.results: list[messages.Message] = []
        self.readings: list[messages.Reading] = []
        self.presence: list[messages.Presence] = []
        self.changed = asyncio.Event()
        self.revision = 0
        self.signer: Signer | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls, port: int, node: str) -> AsyncIterator[Self]:
        hub: Self
        topics = Topics()

        async def take(message: Inbound) -> None:
            if not message.payload:
                return
            decoded = messages.decode(message.payload)
            match decoded:
                case Reported():
                    hub.reported.append(decoded)
                case messages.Presence():
                    hub.presence.append(decoded)
                case messages.Reading():
                    hub.readings.append(decoded)
                case _:
                    hub.results.append(decoded)
            hub.changed.set()

        channels = (Channel.STATE, Channel.RESULTS, Channel.PRESENCE, Channel.TELEMETRY)
        async with Session.open(
            SessionConfig(host="127.0.0.1", port=port, client_id="hub"),
            subscriptions={topics.every(channel): take for channel in channels},
        ) as session:
            hub = cls(session, node)
            await session.wait_connected(5)
            yield hub

    async def until(self, true, *, timeout_s: float = 45) -> None:
        """Wait until `true()` holds; it is looked at whenever the node says something."""
        async with asyncio.timeout(timeout_s):
            while not true():
                self.changed.clear()
                await self.changed.wait()

    async def publish_blob(self, data: bytes, *, skip: set[int] = frozenset()) -> None:
        ref = blobs.describe(data)
        for index, chunk in blobs.cut(data):
            if index not in skip:
                await self.session.publish(
                    self.topics.chunk(ref.digest, index), chunk, retain=True, durable=False
                )

    async def want(self, release: Release | None, *, base: Release | None = None) -> None:
        """Offer a release (with a delta from `base`) and want it; None wants nothing."""
        models = []
        if release is not None:
            deltas = []
            if base is not None:
                delta = shoal_delta.diff(base.model, release.model)
                await self.publish_blob(delta)
                offer = DeltaOffer(
                    hashlib.sha256(base.model).digest(),
                    hashlib.sha256(release.model).digest(),
                    blobs.describe(delta),
                )
                deltas.append(offer)
            for data in (release.manifest, *release.files.values()):
                await self.publish_blob(data)
            models.append(
                ModelWanted(
                    model=release.spec.name,
                    release=release.id,
                    manifest=blobs.describe(release.manifest),
                    files=[blobs.describe(data) for data in release.files.values()],
                    deltas=deltas,
                )
            )
        await self.send_wanted(models)

    async def send_wanted(self, models: list[ModelWanted]) -> None:
        self.revision += 1
        topic = self.topics.wanted(self.node)
        payload = messages.encode(Wanted(self.revision, time.time_ns() // 1_000_000, models))
        if self.signer is not None:
            payload = self.signer.sign(payload, topic=topic)
        await self.session.publish(topic, payload, retain=True, durable=False)

    async def command(self, message: messages.Command | messages.Cancel) -> None:
        await self.session.publish(
            self.topics.commands(self.node), messages.encode(message), durable=False
        )

    def serving(self) -> bytes | None:
        """What the node said last that it serves."""
        if not self.reported or not self.reported[-1].models:
            return None
        return self.reported[-1].models[0].release
