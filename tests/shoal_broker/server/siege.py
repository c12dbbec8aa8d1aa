"""A core under siege: conversations of mutated packets in both versions of MQTT, and what must be true after."""

from __future__ import annotations

import random
import time
from collections import Counter

from tests.shoal_broker import paho_wire
from tests.shoal_broker.server.desk import NEVER, Desk, DeskClient
from tests.support.mqtt_wire import Wire, framed, text

from shoal_broker.codec import PacketReader
from shoal_broker.server.connection import State

MAX_PACKET_BYTES = 4096
LIMITS = {
    "max_packet_bytes": MAX_PACKET_BYTES,
    "max_queued_messages": 50,
    "max_retained_messages": 50,
    "max_sessions": 200,
    "max_subscriptions": 20,
}
TELLING = (b"\0", b"\xff", b"\x80", b"\xc3", b"#", b"+", b"/", b"$", b"\xed\xa0\x80", b"\x0b", b"&")
OLD_VERSION_REFUSED = b"\x20\x02\x00\x01"

_PAIR = b"\x26" + text("k") + text("ü")
_ABOUT = b"\x01\x01\x03" + text("text/plain") + b"\x08" + text("r/1") + b"\x09" + text(b"\x80\xff")
_REASON = b"\x1f" + text("why") + _PAIR


def _talk(wire: Wire) -> list[bytes]:
    """One packet of every kind, and every property in it where there are any."""
    packets = [
        wire.connect(
            "m",
            flags=0xEE,  # user name, password, retained will at QoS 1, clean start
            properties=b"\x11\0\0\0\5\x21\0\7\x27\0\0\4\0\x22\0\3\x17\1\x19\1" + _PAIR,
            rest=wire.will("a/w", b"gone", b"\x18\0\0\0\1\x02\0\0\0\x09" + _ABOUT + _PAIR)
            + text("user")
            + text("word"),
        ),
        wire.connect("n", flags=0x00, properties=b"\x11\0\0\0\3"),
        wire.publish("a/b", b"payload", properties=_ABOUT),
        wire.publish("a/b", b"kept", flags=0x03, packet_id=3, properties=b"\x02\0\0\0\x05" + _PAIR),
        wire.publish("a/é/c", b"\xff\0", flags=0x04, packet_id=4),
        wire.publish("a/é/c", b"\xff\0", flags=0x0C, packet_id=4),
        wire.acknowledge(0x40, 1),
        wire.acknowledge(0x50, 2),
        wire.acknowledge(0x62, 4),
        wire.acknowledge(0x70, 2),
        wire.subscribe(("a/+", 1), ("#", 2), ("$share/g/a/#", 0), packet_id=9),
        wire.unsubscribe("a/+", "never", packet_id=10),
        wire.ping(),
        wire.goodbye(),
        # What only servers say.
        b"\x20\x02\x00\x00",
        framed(0x90, b"\0\x09\0\0"[: 4 if wire.level == 5 else 3]),
        framed(0xB0, b"\0\x0a\0\0"[: 4 if wire.level == 5 else 2]),
        b"\xd0\x00",
    ]
    if wire.level == 5:
        packets += [
            wire.publish("a/1", b"first", properties=b"\x23\0\2"),
            wire.publish("", b"again", properties=b"\x23\0\2"),
            wire.subscribe(("a/b", 0x2D), packet_id=11, properties=b"\x0b\xac\2" + _PAIR),
            *(
                wire.acknowledge(kind, 1, b"\x00" + wire.properties(_REASON))
                for kind in (0x40, 0x50, 0x62, 0x70)
            ),
            wire.acknowledge(0x50, 2, b"\x97"),
            wire.goodbye(b"\x04" + wire.properties(b"\x11\0\0\0\3" + _REASON)),
            framed(0xF0, b"\x18" + wire.properties(b"\x15" + text("SCRAM") + b"\x16" + text("d"))),
        ]
    return packets


TALK = {5: _talk(Wire(5)), 4: _talk(Wire(4))}


def mutated(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """`data` with one to four things wrong, its remaining length put right more often than not."""
    mutant = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(mutant) + 1)
        match rng.randrange(7):
            case 0 if at < len(mutant):
                mutant[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(mutant):
                mutant[at] = rng.randrange(256)
            case 2:
                del mutant[at : at + rng.randint(1, 8)]
            case 3:
                mutant[at:at] = rng.choice(TELLING)
            case 4:
                mutant[at:at] = mutant[at : at + rng.randint(1, 8)] * rng.randint(1, 3)
            case 5:
                other = rng.choice(others)
                mutant[at:] = other[rng.randrange(len(other)) :]
            case _:
                mutant[at : at + 2] = rng.choice((b"\0\0", b"\0\1", b"\xff\xff", b"\x7f\xff"))
    if rng.random() < 0.6 and len(mutant) > 2:
        return framed(mutant[0], bytes(mutant[2:]))
    return bytes(mutant) or data


def header_verdict(stream: bytes) -> set[int] | None:
    """What the first packet of `stream` must be answered with, judged by its beginning alone.

    Empty: it is not complete, so nothing happens. None: it takes more than this to tell.
    """
    length = stream[1:5]
    size_bytes = next((n for n, byte in enumerate(length, start=1) if byte < 0x80), None)
    if size_bytes is None:
        return {0x81} if len(length) == 4 else set()
    if size_bytes > 1 and length[size_bytes - 1] == 0:
        return {0x81}
    remaining = sum((byte & 0x7F) << 7 * n for n, byte in enumerate(length[:size_bytes]))
    if 1 + size_bytes + remaining > MAX_PACKET_BYTES:
        return {0x95}
    body = stream[1 + size_bytes : 1 + size_bytes + remaining]
    return (
        _body_verdict(stream[0] >> 4, stream[0] & 0x0F, body) if len(body) == remaining else set()
    )


def _body_verdict(kind: int, flags: int, body: bytes) -> set[int] | None:
    if kind == 3:
        return _publish_verdict(flags, body)
    if kind == 1 and flags:
        # Two mistakes at once: it is also a second CONNECT.
        return {0x81, 0x82}
    if kind == 0 or flags != (2 if kind in (6, 8, 10) else 0):
        return {0x81}
    if (kind == 12 and body) or (4 <= kind <= 7 and len(body) < 2):
        return {0x81}
    if kind in (2, 9, 11, 13):
        return {0x81, 0x82}
    return {0x82} if 4 <= kind <= 7 and body == b"\0\0" else None


def _publish_verdict(flags: int, body: bytes) -> set[int] | None:
    if flags & 0x06 == 0x06:
        return {0x81}
    topic = body[2 : 2 + int.from_bytes(body[:2], "big")]
    if len(body) < 2 or len(topic) < int.from_bytes(body[:2], "big"):
        return {0x81}
    try:
        return {0x81} if "\0" in topic.decode() else None
    except UnicodeDecodeError:
        return {0x81}


class Raw:
    """A reader that keeps the bytes, since only the end of the conversation says in which version they are."""

    def __init__(self) -> None:
        self.data = b""

    def feed(self, received: bytes) -> None:
        self.data += received


class Offender(DeskClient):
    """Says what no client should."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self.reader = Raw()

    def answers(self) -> list:
        """Everything that was said to it since the last call; it must be whole packets."""
        data, self.reader.data = self.reader.data, b""
        if data == OLD_VERSION_REFUSED:
            return []
        ear = PacketReader() if self.connection.is_mqtt5 else paho_wire.Ear()
        ear.feed(data)
        packets = []
        while (packet := ear.next_packet()) is not None:
            packets.append(packet)
        if isinstance(ear, PacketReader):
            assert ear._position == len(data), "half a packet was sent"
        else:
            assert ear._bytes == b"", "half a packet was sent"
        return packets


class Siege:
    """`attack` as often as you like, then `lift`."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)  # noqa: S311 - the same every time
        self.desk = Desk(**LIMITS)
        self.witness = self.desk.connect("witness", session_expiry_interval=NEVER)
        self.witness.subscribe("proof")
        self.mutants = 0
        self.slowest_s = 0.0
        self.endings: Counter[str] = Counter()

    def attack(self, mutants: int) -> None:
        """At least so many mutated packets."""
        end = self.mutants + mutants
        conversations = 0
        while self.mutants < end:
            self._converse()
            conversations += 1
            if conversations % 20 == 0:
                self.desk.wait(1)
            if conversations % 500 == 0:
                self.prove()

    def _converse(self) -> None:
        rng = self.rng
        level = rng.choice((5, 5, 4))
        talk = TALK[level]
        offender = Offender(self.desk)
        connected = rng.random() < 0.8
        if connected:
            self._feed(offender, rng.choice(talk[:2]))
            assert len(offender.answers()) >= 1
        packets = [
            rng.choice(talk) if rng.random() < 0.3 else b"" for _ in range(rng.randint(1, 6))
        ]
        for at, packet in enumerate(packets):
            if not packet or at == 0:
                packets[at] = mutated(rng.choice(talk), rng, talk)
                self.mutants += 1
        stream = b"".join(packets)
        self._feed(offender, stream)
        answers = offender.answers()
        if connected and level == 5:
            self._check_answers(header_verdict(stream), offender, answers)
        self.endings[self._ending(offender, answers)] += 1
        if rng.random() < 0.7 and not offender.closed:
            offender.drop()

    def _feed(self, offender: Offender, data: bytes) -> None:
        rng = self.rng
        cuts = sorted({rng.randrange(len(data)) for _ in range(rng.choice((0, 0, 1, 3)))} - {0})
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            before_s = time.thread_time()
            offender.send_bytes(data[start:end])
            self.slowest_s = max(self.slowest_s, time.thread_time() - before_s)

    def _check_answers(self, verdict: set[int] | None, offender: Offender, answers: list) -> None:
        if verdict is None:
            return
        if not verdict:
            assert not offender.closed
            assert answers == []
        else:
            assert offender.closed
            assert [int(answer.reason_code) in verdict for answer in answers] == [True], answers
        self.endings[f"foretold {'wait' if not verdict else hex(min(verdict))}"] += 1

    def _ending(self, offender: Offender, answers: list) -> str:
        if not offender.closed:
            return "open"
        last = answers[-1] if answers else None
        code = getattr(last, "reason_code", None)
        return f"{type(last).__name__} {int(code) if code is not None else ''}"

    def prove(self) -> None:
        """The others are served as if nothing were."""
        self.witness.take()
        assert self.witness.publish_and_hear("proof")

    def lift(self) -> None:
        """Take back everything that an offender may leave behind, by the means that clients have."""
        core, router = self.desk.core, self.desk.core.router
        for connection in list(core.connections):
            if connection is not self.witness.connection:
                connection.owner.drop()
        while len(router.sessions) > 1:
            for client_id in [name for name in router.sessions if name != "witness"]:
                again = self.desk.stranger()
                again.send_bytes(Wire(5).connect(client_id, flags=0x02))
                again.drop()
        for topic in list(router.retained._messages):
            self.witness.publish_qos0(topic, b"", retain=True)
        self.prove()

    def hold(self) -> None:
        """Nothing is left of the offenders; call it after `lift`."""
        core, router = self.desk.core, self.desk.core.router
        assert core.connections == {self.witness.connection}
        assert self.witness.connection.state is State.CONNECTED
        assert list(router.sessions) == ["witness"]
        assert len(router.subscriptions) == 1
        assert list(router.subscriptions._root.children) == ["proof"]
        assert (len(router.retained), router.retained.size_bytes) == (0, 0)
        assert not router.retained._root.children
        assert not core._lifecycle._waiting
        session = router.sessions["witness"]
        assert (session.held_messages, session.held_bytes) == (0, 0)
        core.take_events()
