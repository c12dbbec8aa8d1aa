"""Many raw clients at once in one process: subscribers of a fan-out, publishers to one subscriber.

Every message is checked byte by byte at every subscriber.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import mqtt_bytes
import processes
from brokers import Broker
from generator import Client, connected
from load import WAIT_S, payload, sequence_of
from measure import BenchError
from mqtt_bytes import MQTT_5, PUBACK, PUBLISH, SUBACK, UNSUBACK, Cutter

_READ_BYTES = 1 << 20
_PACKET_IDS = 65_535


@dataclass(slots=True)
class _Member:
    connection: socket.socket
    cutter: Cutter
    seen: int = 0


class Crowd:
    """Subscribers, connected one after the other. Build it with `Crowd.open`."""

    def __init__(self, members: dict[int, _Member], waiter: select.epoll) -> None:
        self._members = members
        self._waiter = waiter

    @classmethod
    @contextlib.contextmanager
    def open(cls, port: int, count: int) -> Iterator[Self]:
        """Connect `count` clients, MQTT 5. Raises BenchError."""
        members: dict[int, _Member] = {}
        with contextlib.ExitStack() as stack:
            waiter = stack.enter_context(select.epoll())
            for number in range(count):
                connection = stack.enter_context(connected(port))
                connection.sendall(mqtt_bytes.connect(MQTT_5, f"bench-{number}"))
                members[connection.fileno()] = _Member(connection, Cutter(MQTT_5))
                waiter.register(connection, select.EPOLLIN)
            crowd = cls(members, waiter)
            crowd._all_get(mqtt_bytes.CONNACK)
            yield crowd

    def __len__(self) -> int:
        return len(self._members)

    def subscribe(self, topic_filter: str, qos: int) -> None:
        """All subscribe; returns when every SUBACK is there."""
        self.send_all(mqtt_bytes.subscribe(MQTT_5, topic_filter, qos))
        self._all_get(SUBACK)

    def unsubscribe(self, topic_filter: str) -> None:
        """All unsubscribe."""
        self.send_all(mqtt_bytes.unsubscribe(MQTT_5, topic_filter))
        self._all_get(UNSUBACK)

    def send_all(self, packet: bytes) -> None:
        """Send the same packet from everybody."""
        for member in self._members.values():
            member.connection.sendall(packet)

    def all_receive(self, message: bytes) -> int:
        """Take, and acknowledge, this message at everybody. Returns how many got it.

        Raises BenchError when somebody gets another one.
        """
        return self._all_get(PUBLISH, message)

    def subscribe_and_receive(self, topic: str, message: bytes) -> int:
        """All subscribe at QoS 1 and get this retained message. Returns how many got it."""
        self.send_all(mqtt_bytes.subscribe(MQTT_5, topic, 1))
        return self.all_receive(message)

    def _all_get(self, kind: int, message: bytes = b"") -> int:
        got = 0
        for member in self._members.values():
            member.seen = 0
        until_s = time.monotonic() + WAIT_S
        while got < len(self._members) and time.monotonic() < until_s:
            for file, _ in self._waiter.poll(WAIT_S):
                got += self._read(self._members[file], kind, message)
        if got < len(self._members) and kind != PUBLISH:
            raise BenchError(
                f"{len(self._members) - got} clients got no answer (packet type {kind})"
            )
        return got

    def _read(self, member: _Member, kind: int, message: bytes) -> int:
        """1 when this member has what is waited for, now and not before."""
        received = member.connection.recv(_READ_BYTES)
        if not received:
            raise BenchError("the broker closed a connection of the crowd")
        before = member.seen
        for came in member.cutter.feed(received):
            if came.kind == PUBLISH:
                if came.payload != message:
                    raise BenchError("the broker delivered another message than was published")
                if came.qos:
                    member.connection.sendall(mqtt_bytes.reply(PUBACK, came.packet_id))
            if came.kind == kind:
                member.seen += 1
        return int(bool(member.seen) and not before)


@dataclass(frozen=True, slots=True)
class Funnel:
    """What came through to the one subscriber."""

    sent: int
    delivered: int
    took_s: float
    cpu_s: float
    broker_cpu_s: float


def funnel(broker: Broker, topic: str, *, publishers: int, turns: int, at_once: int) -> Funnel:
    """Many publish at QoS 1 to one, `at_once` messages each a turn; a turn ends when all are there."""
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(Client.open(broker.port, "bench-sink"))
        sink.subscribe(topic, 1)
        sources = [
            stack.enter_context(Client.open(broker.port, f"bench-{number}"))
            for number in range(publishers)
        ]
        back: set[int] = set()
        sent = 0
        broker_before_s = processes.cpu_s(broker.pid)
        started, cpu_before_s = time.perf_counter(), time.process_time()
        for _ in range(turns):
            for source in sources:
                source.send(b"".join(_publish(topic, sent + n) for n in range(at_once)))
                sent += at_once
            try:
                _collect(sink, back, sent)
            except TimeoutError:
                break
            for source in sources:
                for _ in range(at_once):
                    source.expect(PUBACK)
        return Funnel(
            sent,
            len(back),
            time.perf_counter() - started,
            time.process_time() - cpu_before_s,
            processes.cpu_s(broker.pid) - broker_before_s,
        )


def _collect(sink: Client, back: set[int], count: int) -> None:
    while len(back) < count:
        acknowledgements = []
        for came in sink.receive():
            if came.kind == PUBLISH:
                back.add(sequence_of(came.payload))
                acknowledgements.append(mqtt_bytes.reply(PUBACK, came.packet_id))
        sink.send(b"".join(acknowledgements))


def _publish(topic: str, number: int) -> bytes:
    return mqtt_bytes.publish(
        MQTT_5, topic, payload(number), qos=1, packet_id=number % _PACKET_IDS + 1
    )
