"""A raw MQTT 5 client on the codec and a blocking socket: the floor under the clients of the area `bus`.

It does as little as a client on this codec can. It counts what comes back by the sequence number in
the payload; what does not come is reported, never assumed.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from measure import BenchError
from shoal_broker.codec import (
    ConnAckPacket,
    ConnectPacket,
    DisconnectPacket,
    Packet,
    PacketReader,
    PubAckPacket,
    PublishPacket,
    QoS,
    SubAckPacket,
    SubscribePacket,
    TopicFilter,
    encode,
)

PAYLOAD_BYTES = 64
IN_FLIGHT = 64
WAIT_S = 10.0
_SEQUENCE = struct.Struct(">Q")
_PACKET_IDS = 65_535
_READ_BYTES = 1 << 16


def payload(sequence: int) -> bytes:
    """PAYLOAD_BYTES that begin with the sequence number."""
    return _SEQUENCE.pack(sequence).ljust(PAYLOAD_BYTES, b"\xa5")


def single_count(count: int) -> int:
    """How many of a sample's messages are sent one by one, beside `count` with IN_FLIGHT at a time."""
    return max(20, count // 10)


def sequence_of(message: bytes) -> int:
    """The sequence number in what `payload` made."""
    return int(_SEQUENCE.unpack_from(message)[0])


@dataclass(frozen=True, slots=True)
class Echo:
    """What came back. `round_trips_s` has one value a message that did."""

    sent: int
    delivered: int
    took_s: float
    cpu_s: float
    round_trips_s: list[float]


class RawClient:
    """One connection, TCP_NODELAY on. Build it with `RawClient.open`."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._reader = PacketReader()

    @classmethod
    @contextmanager
    def open(cls, port: int, client_id: str) -> Iterator[Self]:
        """Connect to the broker on loopback. Raises BenchError when it does not take us."""
        with socket.create_connection(("127.0.0.1", port), WAIT_S) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(WAIT_S)
            client = cls(connection)
            client._send(ConnectPacket(client_id, clean_start=True, receive_max=1024))
            client._expect(ConnAckPacket)
            yield client
            client._send(DisconnectPacket())

    def subscribe(self, topic: str) -> None:
        """Subscribe at QoS 1 and wait for the SUBACK."""
        self._send(SubscribePacket(1, [TopicFilter(topic, max_qos=QoS.AT_LEAST_ONCE)]))
        self._expect(SubAckPacket)

    def echo(self, topic: str, count: int, *, in_flight: int) -> Echo:
        """Publish `count` messages to a topic of ours at QoS 1, `in_flight` at a time, until all are back.

        Ends early when nothing comes for WAIT_S.
        """
        sent_at: list[float] = []
        back: dict[int, float] = {}
        acknowledged = 0
        started, cpu_before_s = time.perf_counter(), time.process_time()
        answers: list[bytes] = []
        while len(back) < count or acknowledged < count:
            while len(sent_at) < count and len(sent_at) - min(len(back), acknowledged) < in_flight:
                answers.append(_publish(topic, len(sent_at)))
                sent_at.append(time.perf_counter())
            self._socket.sendall(b"".join(answers))
            answers = []
            try:
                packets = self._receive()
            except TimeoutError:
                break
            for packet in packets:
                if isinstance(packet, PublishPacket):
                    back.setdefault(sequence_of(packet.payload), time.perf_counter())
                    answers.append(encode(PubAckPacket(packet.packet_id or 0)))
                else:
                    acknowledged += 1
        self._socket.sendall(b"".join(answers))
        return Echo(
            sent=len(sent_at),
            delivered=len(back),
            took_s=time.perf_counter() - started,
            cpu_s=time.process_time() - cpu_before_s,
            round_trips_s=[at - sent_at[number] for number, at in back.items()],
        )

    def answer(self, topic: str) -> None:
        """Send every message that comes in back on `topic`, until the broker hangs up or we are ended."""
        self._socket.settimeout(None)
        sent = 0
        while True:
            answers: list[bytes] = []
            for packet in self._receive():
                if isinstance(packet, PublishPacket):
                    sent += 1
                    reply = PublishPacket(
                        topic,
                        packet.payload,
                        qos=QoS.AT_LEAST_ONCE,
                        packet_id=sent % _PACKET_IDS + 1,
                    )
                    answers += (encode(PubAckPacket(packet.packet_id or 0)), encode(reply))
            self._socket.sendall(b"".join(answers))

    def _send(self, packet: Packet) -> None:
        self._socket.sendall(encode(packet))

    def _expect(self, kind: type[Packet]) -> None:
        try:
            packets = self._receive()
        except TimeoutError:
            packets = []
        if len(packets) != 1 or not isinstance(packets[0], kind):
            raise BenchError(f"the broker did not answer with {kind.__name__}")

    def _receive(self) -> list[Packet]:
        """At least one packet. Raises TimeoutError; BenchError when the broker hangs up."""
        packets: list[Packet] = []
        while not packets:
            received = self._socket.recv(_READ_BYTES)
            if not received:
                raise BenchError("the broker closed the connection")
            self._reader.feed(received)
            while (packet := self._reader.next_packet()) is not None:
                packets.append(packet)
        return packets


def _publish(topic: str, sequence: int) -> bytes:
    packet_id = sequence % _PACKET_IDS + 1
    return encode(
        PublishPacket(topic, payload(sequence), qos=QoS.AT_LEAST_ONCE, packet_id=packet_id)
    )
