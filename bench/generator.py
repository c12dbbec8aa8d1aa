"""The load of the area `broker`: one raw client on a blocking socket, 3.1.1 or 5, the same for every broker.

It counts what comes back by the sequence number in the payload; what does not come is reported, never assumed.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import mqtt_bytes
from load import WAIT_S, Echo, payload, sequence_of
from measure import BenchError
from mqtt_bytes import MQTT_5, PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, Came, Cutter

_PACKET_IDS = 65_535
_READ_BYTES = 1 << 18
# What a packet of a QoS 1 or 2 exchange is answered with.
_ANSWERS = {PUBREC: PUBREL, PUBREL: PUBCOMP}


class Client:
    """One connection, TCP_NODELAY on. Build it with `Client.open`."""

    def __init__(self, connection: socket.socket, level: int) -> None:
        self.socket = connection
        self.level = level
        self._cutter = Cutter(level)
        self._early: list[Came] = []

    @classmethod
    @contextmanager
    def open(
        cls,
        port: int,
        client_id: str,
        *,
        level: int = MQTT_5,
        tls: ssl.SSLContext | None = None,
        is_persistent: bool = False,
    ) -> Iterator[Self]:
        """Connect to the broker on loopback. Raises BenchError when it does not take us."""
        with connected(port, tls) as connection:
            client = cls(connection, level)
            client.send(mqtt_bytes.connect(level, client_id, is_persistent=is_persistent))
            client.expect(mqtt_bytes.CONNACK)
            yield client
            client.send(mqtt_bytes.GOODBYE)

    def subscribe(self, topic_filter: str, qos: int) -> None:
        """Subscribe and wait for the SUBACK."""
        self.send(mqtt_bytes.subscribe(self.level, topic_filter, qos))
        self.expect(mqtt_bytes.SUBACK)

    def ping(self) -> None:
        """Return when the broker has done with what was sent to it before."""
        self.send(mqtt_bytes.PINGREQ)
        self.expect(mqtt_bytes.PINGRESP)

    def publish(self, topic: str, message: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """Publish one message and, at QoS 1, wait for its PUBACK."""
        self.send(mqtt_bytes.publish(self.level, topic, message, qos=qos, retain=retain))
        if qos:
            self.expect(PUBACK)

    def echo(self, topic: str, count: int, *, in_flight: int, qos: int) -> Echo:
        """Publish `count` messages to a topic of ours, `in_flight` at a time, until all are back.

        Ends early when nothing comes for WAIT_S.
        """
        sent_at: list[float] = []
        back: dict[int, float] = {}
        acknowledged = 0 if qos else count
        out: list[bytes] = []
        started, cpu_before_s = time.perf_counter(), time.process_time()
        while len(back) < count or acknowledged < count:
            while len(sent_at) < count and len(sent_at) - min(len(back), acknowledged) < in_flight:
                number = len(sent_at)
                packet_id = number % _PACKET_IDS + 1
                message = payload(number)
                out.append(
                    mqtt_bytes.publish(self.level, topic, message, qos=qos, packet_id=packet_id)
                )
                sent_at.append(time.perf_counter())
            self.send(b"".join(out))
            out = []
            try:
                packets = self.receive()
            except TimeoutError:
                break
            for came in packets:
                if came.kind == PUBLISH:
                    back.setdefault(sequence_of(came.payload), time.perf_counter())
                    if came.qos:
                        kind = PUBACK if came.qos == 1 else PUBREC
                        out.append(mqtt_bytes.reply(kind, came.packet_id))
                elif came.kind in _ANSWERS:
                    out.append(mqtt_bytes.reply(_ANSWERS[came.kind], came.packet_id))
                elif came.kind in (PUBACK, PUBCOMP):
                    acknowledged += 1
        self.send(b"".join(out))
        return Echo(
            sent=len(sent_at),
            delivered=len(back),
            took_s=time.perf_counter() - started,
            cpu_s=time.process_time() - cpu_before_s,
            round_trips_s=[at - sent_at[number] for number, at in back.items()],
        )

    def send(self, packets: bytes) -> None:
        """Send these bytes."""
        if packets:
            self.socket.sendall(packets)

    def expect(self, kind: int) -> None:
        """Wait for a packet of this kind, which nothing may come before. Raises BenchError."""
        if not self._early:
            try:
                self._early = self.receive()
            except TimeoutError as exc:
                raise BenchError(f"the broker did not answer (packet type {kind})") from exc
        came = self._early.pop(0)
        if came.kind != kind:
            raise BenchError(f"the broker sent packet type {came.kind} instead of {kind}")

    def receive(self) -> list[Came]:
        """At least one packet. Raises TimeoutError; BenchError when the broker hangs up."""
        packets, self._early = self._early, []
        while not packets:
            received = self.socket.recv(_READ_BYTES)
            if not received:
                raise BenchError("the broker closed the connection")
            packets = self._cutter.feed(received)
        return packets


@contextmanager
def connected(port: int, tls: ssl.SSLContext | None = None) -> Iterator[socket.socket]:
    """A connection to loopback, TCP_NODELAY on."""
    with socket.create_connection(("127.0.0.1", port), WAIT_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(WAIT_S)
        if tls is None:
            yield connection
            return
        with tls.wrap_socket(connection, server_hostname="localhost") as guarded:
            yield guarded
