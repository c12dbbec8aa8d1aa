"""A TCP proxy on loopback that counts what one MQTT client and its broker say, packet by packet.

For idle.py. It forwards bytes as they are; it reads fixed headers only, and keeps time, type and size.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from measure import BenchError

_READ_BYTES = 65_536
_POLL_S = 0.2
# struct tcp_info, linux/tcp.h: tcpi_segs_out and tcpi_segs_in.
_SEGMENTS = struct.Struct("@136xII")
CONNECT, CONNACK, PUBLISH, PUBACK, PINGREQ, PINGRESP = 1, 2, 3, 4, 12, 13
DAY_S = 86_400
# IPv4 and TCP with the timestamps option.
HEADER_BYTES = 20 + 20 + 12
# PUBLISH, PUBACK and the acknowledgement of that on TCP's own level, with one to spare.
REPORT_SEGMENTS = 4


@dataclass(frozen=True, slots=True)
class Seen:
    """One packet on the line; `at_s` is `time.time()`."""

    at_s: float
    kind: int
    size_bytes: int
    is_up: bool


class Uplink:
    """The proxy: one client at a time. Build it with `Uplink.open`."""

    def __init__(self, listener: socket.socket, target_port: int) -> None:
        self.port: int = listener.getsockname()[1]
        self.seen: list[Seen] = []
        self._listener = listener
        self._target_port = target_port
        self._stopping = threading.Event()
        self._client: socket.socket | None = None

    @classmethod
    @contextlib.contextmanager
    def open(cls, target_port: int) -> Iterator[Self]:
        """Forward from `port` to `target_port` until the block is left."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            uplink = cls(listener, target_port)
            thread = threading.Thread(target=uplink._serve, name="uplink")
            thread.start()
            try:
                yield uplink
            finally:
                uplink._stopping.set()
                thread.join()

    def segments(self) -> int:
        """TCP segments so far, both ways, as the kernel counts them for the client's connection."""
        if self._client is None:
            return 0
        info = self._client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SEGMENTS.size)
        return sum(_SEGMENTS.unpack(info))

    def _serve(self) -> None:
        while not self._stopping.is_set():
            readable, _, _ = select.select([self._listener], [], [], _POLL_S)
            if readable:
                client, _ = self._listener.accept()
                with (
                    client,
                    socket.create_connection(("127.0.0.1", self._target_port)) as broker,
                ):
                    for sock in (client, broker):
                        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self._client = client
                    self._forward(client, broker)
                    self._client = None

    def _forward(self, client: socket.socket, broker: socket.socket) -> None:
        onward = {client: (broker, bytearray(), True), broker: (client, bytearray(), False)}
        while not self._stopping.is_set():
            readable, _, _ = select.select([client, broker], [], [], _POLL_S)
            for source in readable:
                target, unread, is_up = onward[source]
                try:
                    received = source.recv(_READ_BYTES)
                    target.sendall(received)
                except OSError:
                    return
                if not received:
                    return
                unread += received
                self._take(unread, is_up=is_up)

    def _take(self, unread: bytearray, *, is_up: bool) -> None:
        while (size_bytes := packet_size(unread)) is not None and len(unread) >= size_bytes:
            self.seen.append(Seen(time.time(), unread[0] >> 4, size_bytes, is_up))
            del unread[:size_bytes]


def packet_size(unread: bytes | bytearray) -> int | None:
    """The whole size of the packet that begins here; None when its header is not complete."""
    remaining = 0
    for index in range(1, 5):
        if index >= len(unread):
            return None
        remaining |= (unread[index] & 0x7F) << 7 * (index - 1)
        if unread[index] < 0x80:
            return 1 + index + remaining
    raise ValueError("a remaining length of more than 4 bytes")


def day(
    seen: list[Seen], segments: int, *, reports: float, from_s: float, until_s: float
) -> dict[str, float]:
    """A day on the uplink from the packets of a quiet window and of the connection before it.

    `segments`: of TCP in the window; `reports`: how often a day the state is told.

    Raises BenchError when the window held no keepalive, or something that is none.
    """
    before = [packet for packet in seen if packet.at_s < from_s]
    inside = [packet for packet in seen if from_s <= packet.at_s <= until_s]
    pings = [packet for packet in inside if packet.kind == PINGREQ]
    strange = {p.kind for p in inside} - {PINGREQ, PINGRESP}
    if not pings or strange:
        raise BenchError(f"no keepalive on the line of the idle agent, or more: {strange}")
    # The quiet before each keepalive is how often one comes.
    silences_s = [
        ping.at_s - max(other.at_s for other in seen if other.at_s < ping.at_s) for ping in pings
    ]
    ping_every_s = sum(silences_s) / len(silences_s)
    pings_a_day = DAY_S / ping_every_s
    ping_bytes = sum(packet.size_bytes for packet in inside) / len(pings)
    # The largest of what it said when it connected is the report of its state; the broker's answer to it.
    published = [p for p in before if p.kind == PUBLISH and p.is_up]
    answers = [p for p in before if p.kind == PUBACK and not p.is_up]
    report = max(p.size_bytes for p in published) + max(p.size_bytes for p in answers)
    connect_bytes = sum(packet.size_bytes for packet in before)
    data = pings_a_day * ping_bytes + reports * report + connect_bytes
    headers = HEADER_BYTES * (pings_a_day * segments / len(pings) + reports * REPORT_SEGMENTS)
    return {
        "uplink_kb": data / 1e3,
        "uplink_ip_kb": (data + headers) / 1e3,
        "ping_every_s": ping_every_s,
        "report_bytes": float(report),
    }
