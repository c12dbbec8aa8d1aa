"""Clients that follow MQTT 5 to the letter over every cut: a publisher of numbers, a reader who keeps them.

Each has a session that outlives its connection, repeats what is not answered with the same packet id, and
keeps the state of QoS 2 exchanges itself. Straight on the codec.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from shoal_broker.codec import (
    ConnAckPacket,
    ConnectPacket,
    Packet,
    PacketReader,
    PubAckPacket,
    PubCompPacket,
    PublishPacket,
    PubRecPacket,
    PubRelPacket,
    QoS,
    SubAckPacket,
    SubscribePacket,
    TopicFilter,
    encode,
)

WINDOW = 32
NEVER = 0xFFFFFFFF
RETRY_S = 0.02
FAILURES_FROM = 0x80
BACKLOG_MAX = 5_000
"""A publisher waits while a reader is further behind: the broker's queue has a limit."""


class ExactClient:
    """Connects again and again; `greeted` and `act` say what follows."""

    def __init__(self, client_id: str, port: int) -> None:
        self.client_id = client_id
        self.port = port
        self.connections = 0
        self._writer: asyncio.StreamWriter | None = None

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            with contextlib.suppress(OSError):
                async for packet in self._connection():
                    if isinstance(packet, ConnAckPacket):
                        assert int(packet.reason_code) == 0, packet
                        # After the first time a session that is gone would be a loss.
                        assert packet.session_present or not self.connections, self.client_id
                        self.connections += 1
                        self.greeted()
                    else:
                        self.act(packet)
            await asyncio.sleep(RETRY_S)

    async def _connection(self) -> AsyncIterator[Packet]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        packets = PacketReader(1 << 28)
        writer.write(encode(ConnectPacket(self.client_id, session_expiry_interval=NEVER)))
        self._writer = writer
        try:
            while received := await reader.read(1 << 16):
                packets.feed(received)
                while (packet := packets.next_packet()) is not None:
                    yield packet
        finally:
            self._writer = None
            writer.transport.abort()

    def send(self, packet: Packet) -> None:
        if self._writer is not None:
            self._writer.write(encode(packet))

    def greeted(self) -> None:
        raise NotImplementedError

    def act(self, packet: Packet) -> None:
        raise NotImplementedError


class Publisher(ExactClient):
    """Publishes 1, 2, 3 and so on to `t/<client id>`; `acknowledged` are those it need not repeat."""

    def __init__(self, client_id: str, port: int, qos: QoS, reader: Reader) -> None:
        super().__init__(client_id, port)
        self.qos = qos
        self.acknowledged = 0
        """The broker is in charge of so many, counted in their order."""
        self.stopping = False
        self._reader = reader
        self._sent = 0
        self._waiting: dict[int, int] = {}
        """Numbers by packet id, as sent."""
        self._released: dict[int, int] = {}

    @property
    def sent(self) -> int:
        return self._sent

    @property
    def settled(self) -> bool:
        return not self._waiting and not self._released

    def greeted(self) -> None:
        for packet_id, number in self._waiting.items():
            self._publish(packet_id, number, duplicate=True)
        for packet_id in self._released:
            self.send(PubRelPacket(packet_id))
        self._fill()

    def act(self, packet: Packet) -> None:
        match packet:
            case PubAckPacket():
                assert int(packet.reason_code) < FAILURES_FROM, packet
                self._waiting.pop(packet.packet_id, None)
                self.acknowledged += 1
            case PubRecPacket():
                assert int(packet.reason_code) < FAILURES_FROM, packet
                number = self._waiting.pop(packet.packet_id, None)
                if number is not None:
                    self._released[packet.packet_id] = number
                    self.acknowledged += 1
                self.send(PubRelPacket(packet.packet_id))
            case PubCompPacket():
                self._released.pop(packet.packet_id, None)
        self._fill()

    def _fill(self) -> None:
        behind = self._sent - len(self._reader.numbers.get(self.client_id, ()))
        while (
            not self.stopping
            and len(self._waiting) + len(self._released) < WINDOW
            and behind < BACKLOG_MAX
        ):
            self._sent += 1
            packet_id = self._sent % 0xFFFF + 1
            self._waiting[packet_id] = self._sent
            self._publish(packet_id, self._sent, duplicate=False)

    def _publish(self, packet_id: int, number: int, *, duplicate: bool) -> None:
        self.send(
            PublishPacket(
                f"t/{self.client_id}",
                b"%d" % number,
                qos=self.qos,
                packet_id=packet_id,
                duplicate=duplicate,
            )
        )


class Reader(ExactClient):
    """Subscribes to `t/#` at QoS 2; `numbers` are those of each publisher in the order they came."""

    def __init__(self, client_id: str, port: int) -> None:
        super().__init__(client_id, port)
        self.numbers: dict[str, list[int]] = {}
        self.subscribed = asyncio.Event()
        self._unreleased: set[int] = set()

    def greeted(self) -> None:
        if not self.subscribed.is_set():
            self.send(SubscribePacket(1, [TopicFilter("t/#", max_qos=QoS.EXACTLY_ONCE)]))

    def act(self, packet: Packet) -> None:
        match packet:
            case SubAckPacket():
                self.subscribed.set()
            case PublishPacket(packet_id=int(packet_id)) if packet.qos is QoS.AT_LEAST_ONCE:
                self._keep(packet)
                self.send(PubAckPacket(packet_id))
            case PublishPacket(packet_id=int(packet_id)):
                if packet_id not in self._unreleased:
                    self._unreleased.add(packet_id)
                    self._keep(packet)
                self.send(PubRecPacket(packet_id))
            case PubRelPacket():
                self._unreleased.discard(packet.packet_id)
                self.send(PubCompPacket(packet.packet_id))

    def _keep(self, packet: PublishPacket) -> None:
        publisher = packet.topic.removeprefix("t/")
        self.numbers.setdefault(publisher, []).append(int(packet.payload))
