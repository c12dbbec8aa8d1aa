"""The load of the area `broker`: one raw client on a blocking socket, 3.1.1 or 5, the same for every broker.

It counts what comes back by the sequence number in the payload; what does not come is reported, never assumed.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
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
        return echo_together([self], [topic], count, in_flight=in_flight, qos=qos)

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


class _Exchange:
    """One client's messages of an echo, and what became of them."""

    def __init__(self, client: Client, topic: str, count: int, in_flight: int, qos: int) -> None:
        self.client = client
        self.sent_at: list[float] = []
        self.back: dict[int, float] = {}
        self._topic, self._count, self._in_flight, self._qos = topic, count, in_flight, qos
        self._acknowledged = 0 if qos else count
        self._out: list[bytes] = []

    @property
    def is_over(self) -> bool:
        """Whether everything is back and acknowledged."""
        return len(self.back) >= self._count and self._acknowledged >= self._count

    def say(self) -> None:
        """Answer what came, and publish as far as the window allows."""
        while len(self.sent_at) < self._count and (
            len(self.sent_at) - min(len(self.back), self._acknowledged) < self._in_flight
        ):
            number = len(self.sent_at)
            packet_id = number % _PACKET_IDS + 1
            self._out.append(
                mqtt_bytes.publish(
                    self.client.level,
                    self._topic,
                    payload(number),
                    qos=self._qos,
                    packet_id=packet_id,
                )
            )
            self.sent_at.append(time.perf_counter())
        self.client.send(b"".join(self._out))
        self._out = []

    def hear(self) -> None:
        """Take what has come. Raises TimeoutError and BenchError."""
        for came in self.client.receive():
            if came.kind == PUBLISH:
                self.back.setdefault(sequence_of(came.payload), time.perf_counter())
                if came.qos:
                    kind = PUBACK if came.qos == 1 else PUBREC
                    self._out.append(mqtt_bytes.reply(kind, came.packet_id))
            elif came.kind in _ANSWERS:
                self._out.append(mqtt_bytes.reply(_ANSWERS[came.kind], came.packet_id))
            elif came.kind in (PUBACK, PUBCOMP):
                self._acknowledged += 1


def echo_together(
    clients: Sequence[Client], topics: Sequence[str], count: int, *, in_flight: int, qos: int
) -> Echo:
    """As `Client.echo`, each client with `count` messages to its own topic, all at the same time."""
    exchanges = [
        _Exchange(client, topic, count, in_flight, qos)
        for client, topic in zip(clients, topics, strict=True)
    ]
    started, cpu_before_s = time.perf_counter(), time.process_time()
    # One alone just waits: the question whose turn it is would be part of its round trip.
    waiter = select.poll() if len(exchanges) > 1 else None
    going = {each.client.socket.fileno(): each for each in exchanges if not each.is_over}
    for file, exchange in going.items():
        exchange.say()
        if waiter is not None:
            waiter.register(file, select.POLLIN)
    while going:
        ready = list(going) if waiter is None else [file for file, _ in waiter.poll(WAIT_S * 1e3)]
        try:
            for file in ready:
                going[file].hear()
                going[file].say()
                if going[file].is_over:
                    del going[file]
                    if waiter is not None:
                        waiter.unregister(file)
        except TimeoutError:
            break
        if not ready:
            break
    return Echo(
        sent=sum(len(exchange.sent_at) for exchange in exchanges),
        delivered=sum(len(exchange.back) for exchange in exchanges),
        took_s=time.perf_counter() - started,
        cpu_s=time.process_time() - cpu_before_s,
        round_trips_s=[
            at - exchange.sent_at[number]
            for exchange in exchanges
            for number, at in exchange.back.items()
        ],
    )


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
