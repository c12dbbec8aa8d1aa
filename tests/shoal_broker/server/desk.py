"""The broker's core on a desk: clients, a clock and a network that stands still until told."""

from __future__ import annotations

from collections.abc import Iterable

from shoal_broker.codec import (
    ConnAckPacket,
    ConnectPacket,
    DisconnectPacket,
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
from shoal_broker.server.config import BrokerConfig, Login
from shoal_broker.server.connection import State
from shoal_broker.server.core import BrokerCore

NEVER = 0xFFFFFFFF


class Desk:
    """One core; `wait` moves its clock and lets it sweep."""

    def __init__(self, **config) -> None:
        ids = iter(f"auto-{n}" for n in range(1000))
        self.config = BrokerConfig(**config)
        self.core = BrokerCore(self.config, new_client_id=lambda: next(ids))
        self.now_s = 1000.0

    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.core.tick(self.now_s)
        self.settle()

    def stranger(self, certificate: str | None = None) -> DeskClient:
        """A connection that has said nothing yet; `certificate` is the name in it."""
        return DeskClient(self, certificate)

    def connect(
        self, client_id: str = "c", *, certificate: str | None = None, **options
    ) -> DeskClient:
        """A client whose CONNECT was accepted; its CONNACK is `welcome`."""
        client = DeskClient(self, certificate)
        client.send(ConnectPacket(client_id, **options))
        client.welcome = client.take_one(ConnAckPacket)
        return client

    def settle(self) -> None:
        """Carry output to the clients until there is none, as the shell does."""
        while unread := self.core.take_unread():
            for connection in unread:
                self.core.read_on(connection, self.now_s)
        while unsent := self.core.take_unsent():
            for connection in unsent:
                client: DeskClient = connection.owner
                output = connection.take_output()
                if client.stalled:
                    client.held.append(output)
                else:
                    client.reader.feed(output)
                if connection.state is State.CLOSED:
                    client.closed = True
                    self.core.lost(connection, self.now_s, "closed")
                else:
                    self.core.written(connection, self.now_s, writable=not client.stalled)


class DeskClient:
    """Speaks packets with the core; acknowledges only when told."""

    def __init__(self, desk: Desk, certificate: str | None = None) -> None:
        self.desk = desk
        self.reader = PacketReader(1 << 28)
        self.connection = desk.core.open(
            peer="desk",
            owner=self,
            now_s=desk.now_s,
            login=None if certificate is None else Login.CERTIFICATE,
        )
        self.connection.identity = certificate
        self.welcome: ConnAckPacket
        self.closed = False
        self.stalled = False
        self.held: list[bytes] = []
        self._next_id = 0

    def send(self, *packets: Packet) -> None:
        self.send_bytes(b"".join(map(encode, packets)))

    def send_bytes(self, data: bytes) -> None:
        self.desk.core.receive(self.connection, data, self.desk.now_s)
        self.desk.settle()

    def resume(self) -> None:
        """Take what waited while stalled."""
        self.stalled = False
        for data in self.held:
            self.reader.feed(data)
        self.held.clear()
        self.desk.core.written(self.connection, self.desk.now_s, writable=True)
        self.desk.settle()

    def drop(self) -> None:
        """The network is cut."""
        self.desk.core.lost(self.connection, self.desk.now_s, "cut")
        self.desk.settle()

    def take(self) -> list[Packet]:
        packets = []
        while (packet := self.reader.next_packet()) is not None:
            packets.append(packet)
        return packets

    def take_one(self, kind):
        packets = self.take()
        assert len(packets) == 1, packets
        assert isinstance(packets[0], kind), packets
        return packets[0]

    def messages(self) -> list[PublishPacket]:
        return [packet for packet in self.take() if isinstance(packet, PublishPacket)]

    def payloads(self) -> list[bytes]:
        return [message.payload for message in self.messages()]

    def goodbye_code(self) -> int:
        """The reason code of the DISCONNECT that ended it."""
        assert self.closed
        last = self.take()[-1]
        assert isinstance(last, DisconnectPacket), last
        return int(last.reason_code)

    def subscribe(self, *filters: str | TopicFilter, identifier: int | None = None) -> list[int]:
        """Subscribe at QoS 1; the codes of the SUBACK. What comes with it stays to be taken."""
        wanted = [
            TopicFilter(f, max_qos=QoS.AT_LEAST_ONCE, retain_as_published=False)
            if isinstance(f, str)
            else f
            for f in filters
        ]
        self._next_id += 1
        before = self.reader
        self.reader = PacketReader(1 << 28)
        self.send(SubscribePacket(self._next_id, wanted, subscription_id=identifier))
        answer = self.reader.next_packet()
        assert isinstance(answer, SubAckPacket), answer
        assert before.next_packet() is None, "take what came before subscribing"
        return [int(code) for code in answer.reason_codes]

    def publish(self, topic: str, payload: bytes = b"m", **options) -> int:
        """Publish at QoS 1; the code of the PUBACK."""
        self._next_id += 1
        self.send(
            PublishPacket(topic, payload, qos=QoS.AT_LEAST_ONCE, packet_id=self._next_id, **options)
        )
        answer = self.take_one(PubAckPacket)
        assert answer.packet_id == self._next_id
        return int(answer.reason_code)

    def publish_qos2(self, topic: str, payload: bytes = b"m", **options) -> int:
        """Publish at QoS 2 and release; the code of the PUBREC."""
        self._next_id += 1
        self.send(
            PublishPacket(topic, payload, qos=QoS.EXACTLY_ONCE, packet_id=self._next_id, **options)
        )
        received = self.take_one(PubRecPacket)
        assert received.packet_id == self._next_id
        if int(received.reason_code) < 0x80:
            self.send(PubRelPacket(self._next_id))
            completed = self.take_one(PubCompPacket)
            assert (completed.packet_id, int(completed.reason_code)) == (self._next_id, 0)
        return int(received.reason_code)

    def finish(self, messages: Iterable[PublishPacket]) -> None:
        """Go through the rest of the QoS 2 exchange of each."""
        for message in messages:
            self.send(PubRecPacket(message.packet_id))
            released = self.take_one(PubRelPacket)
            assert (released.packet_id, int(released.reason_code)) == (message.packet_id, 0)
            self.send(PubCompPacket(message.packet_id))

    def publish_and_hear(self, topic: str) -> bool:
        """Whether a message to a topic that it subscribed to comes back."""
        self.send(PublishPacket(topic, b"echo"))
        return self.payloads() == [b"echo"]

    def publish_qos0(self, topic: str, payload: bytes = b"m", **options) -> None:
        self.send(PublishPacket(topic, payload, **options))

    def acknowledge(self, messages: Iterable[PublishPacket]) -> None:
        self.send(*(PubAckPacket(m.packet_id) for m in messages if m.packet_id is not None))
