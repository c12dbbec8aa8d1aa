"""A client of MQTT 3.1.1 at the desk of `desk.py`: paho packs what it says and reads what it hears."""

from __future__ import annotations

from tests.shoal_broker import paho_wire
from tests.shoal_broker.paho_wire import Heard
from tests.shoal_broker.server.desk import Desk, DeskClient


class OldClient(DeskClient):
    """Speaks MQTT 3.1.1 with the core; acknowledges only when told."""

    def __init__(self, desk: Desk, certificate: str | None = None) -> None:
        super().__init__(desk, certificate)
        self.reader = paho_wire.Ear()

    @classmethod
    def connected(
        cls, desk: Desk, client_id: str = "old", *, certificate: str | None = None, **options
    ) -> OldClient:
        """A client whose CONNECT was accepted; its CONNACK is `welcome`, the rest to be taken."""
        client = cls(desk, certificate)
        client.send_bytes(paho_wire.connect(client_id, **options))
        client.welcome = client.reader.next_packet()
        assert client.welcome.kind == "connack"
        assert client.welcome.codes[1] == 0
        return client

    @property
    def session_present(self) -> bool:
        return bool(self.welcome.codes[0])

    def take_one(self, kind: str) -> Heard:
        packets = self.take()
        assert [packet.kind for packet in packets] == [kind], packets
        return packets[0]

    def messages(self) -> list[Heard]:
        return [packet for packet in self.take() if packet.kind == "publish"]

    def subscribe(self, *filters: str, qos: int = 1) -> tuple[int, ...]:
        """The codes of the SUBACK. What comes with it stays to be taken."""
        self._next_id += 1
        wanted = [(pattern, qos) for pattern in filters]
        self.send_bytes(paho_wire.subscribe(self._next_id, *wanted))
        answer = self.reader.next_packet()
        assert answer is not None
        assert (answer.kind, answer.packet_id) == ("suback", self._next_id)
        return answer.codes

    def publish(self, topic: str, payload: bytes = b"m", **options) -> None:
        """Publish at QoS 1 and have it acknowledged."""
        self._next_id += 1
        packet_id = self._next_id
        self.send_bytes(paho_wire.publish(topic, payload, qos=1, packet_id=packet_id, **options))
        assert self.take_one("puback").packet_id == packet_id

    def publish_qos2(self, topic: str, payload: bytes = b"m") -> None:
        """Publish at QoS 2 and go through the whole exchange."""
        self._next_id += 1
        packet_id = self._next_id
        self.send_bytes(paho_wire.publish(topic, payload, qos=2, packet_id=packet_id))
        assert self.take_one("pubrec").packet_id == packet_id
        self.send_bytes(paho_wire.acknowledge("pubrel", packet_id))
        assert self.take_one("pubcomp").packet_id == packet_id

    def finish(self, messages: list[Heard]) -> None:
        """Go through the rest of the QoS 2 exchange of each."""
        for message in messages:
            self.send_bytes(paho_wire.acknowledge("pubrec", message.packet_id))
            assert self.take_one("pubrel").packet_id == message.packet_id
            self.send_bytes(paho_wire.acknowledge("pubcomp", message.packet_id))

    def acknowledge(self, messages: list[Heard]) -> None:
        self.send_bytes(b"".join(paho_wire.acknowledge("puback", m.packet_id) for m in messages))
