"""One network connection as the core sees it: bytes in, bytes out, and what CONNECT agreed on. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import TYPE_CHECKING

from shoal_broker import codec, mqtt311
from shoal_broker.codec import (
    LARGEST_PACKET_BYTES,
    ConnAckReasonCode,
    Packet,
    PacketReader,
    puback,
)

if TYPE_CHECKING:
    from shoal_broker.server.aliases import TopicAliases
    from shoal_broker.server.config import Login
    from shoal_broker.server.sessions import Session

PUBACK_BYTES = 4

LARGEST_FIRST_PACKET_BYTES = 256 << 10
"""CONNECT with every field at its largest; a stranger is not given more."""


NOTHING_INHERITED: set[int] = set()
"""Shared by all and never added to: nearly every connection begins without unreleased messages."""


class State(Enum):
    """Where a connection stands."""

    NEW = auto()
    """Nothing but CONNECT is welcome."""
    AUTHENTICATING = auto()
    """CONNECT arrived; what follows waits until the password was checked."""
    CONNECTED = auto()
    CLOSED = auto()
    """To be closed once `output` is written, or gone."""


class Connection:
    """One network connection. The shell reads and writes it, the core decides."""

    __slots__ = (
        "_unsent",
        "aliases",
        "aliases_given",
        "awaits_turn",
        "early",
        "encode",
        "held_bytes",
        "identity",
        "inherited",
        "is_unsent",
        "keep_alive_s",
        "last_heard_s",
        "login",
        "max_packet_bytes",
        "opened_at_s",
        "output",
        "output_bytes",
        "output_packets",
        "owner",
        "peer",
        "reader",
        "receive_limit",
        "receive_max",
        "session",
        "session_expiry_s",
        "state",
        "unanswered",
        "unwelcome",
        "wants_reasons",
        "writable",
    )

    def __init__(
        self,
        *,
        peer: str,
        owner: object,
        now_s: float,
        max_packet_bytes: int,
        unsent: list[Connection],
        unwelcome: tuple[ConnAckReasonCode, str] | None,
        login: Login,
    ) -> None:
        self.peer = peer
        self.owner = owner
        """Whatever the shell knows it by."""
        self.login = login
        self.identity: str | None = None
        """Who the client has shown to be: the CN of its certificate, or its user name."""
        self.reader = PacketReader(min(max_packet_bytes, LARGEST_FIRST_PACKET_BYTES))
        self.reader.decode = self._decode_first
        self.encode: Callable[[Packet], bytes] = codec.encode
        """In the version of MQTT that CONNECT was in; empty for what that cannot say."""
        self.state = State.NEW
        self.unwelcome = unwelcome
        """Beyond a limit: it may say CONNECT and is told so."""
        self.opened_at_s = now_s
        self.last_heard_s = now_s
        self.session: Session | None = None
        self.session_expiry_s = 0
        """Of CONNECT, in seconds; what DISCONNECT may still change."""
        self.keep_alive_s = 0
        self.receive_max = 1
        """What the client takes at a time, QoS 1 and 2."""
        self.receive_limit = 1
        """What we take at a time, as announced where it can be."""
        self.unanswered = 0
        """QoS 1 and 2 messages of which the last answer is not written yet."""
        self.inherited: set[int] = NOTHING_INHERITED
        """Ids of unreleased QoS 2 messages that came on an earlier connection: not counted on this one."""
        self.max_packet_bytes = LARGEST_PACKET_BYTES
        """What the client accepts."""
        self.aliases: dict[int, str] = {}
        """Topics by the number that the client gave them."""
        self.aliases_given: TopicAliases | None = None
        """Numbers that we give topics towards the client; None: it takes none."""
        self.wants_reasons = True
        """False: no reason strings but in CONNACK and DISCONNECT."""
        self.awaits_turn = False
        """It said more than is acted on at a time."""
        self.writable = True
        """False while the shell's write buffer is above its limit."""
        self.output: list[bytes] = []
        self.output_bytes = 0
        self.output_packets = 0
        self.early = 0
        """So many pieces at the beginning of `output` promise nothing that the broker could forget."""
        self.held_bytes = 0
        """Taken from `output` by a durable broker and not written yet."""
        self._unsent = unsent
        self.is_unsent = False

    @property
    def is_mqtt5(self) -> bool:
        """Whether the client speaks MQTT 5, and can be told limits; else it is 3.1.1."""
        return self.encode is not mqtt311.encode

    def _decode_first(self, packet: bytes | memoryview, header_bytes: int) -> Packet:
        """The first packet says in which version of MQTT everything else is."""
        if mqtt311.is_spoken_in(packet, header_bytes):
            self.reader.decode = mqtt311.decode
            self.reader.has_properties = False
            self.encode = mqtt311.encode
        else:
            self.reader.decode = codec.decode
        return self.reader.decode(packet, header_bytes)

    def send(self, packet: Packet) -> None:
        """Queue a packet unless the client said that it accepts none of this size."""
        data = self.encode(packet)
        if len(data) <= self.max_packet_bytes:
            self.send_bytes(data)

    def refuse(self, packet: Packet) -> None:
        """As `send`, for an answer that promises nothing."""
        data = self.encode(packet)
        if len(data) <= self.max_packet_bytes:
            self.send_early(data)

    def acknowledge(self, packet_id: int) -> None:
        """Queue a PUBACK of success, which is the same in every version: each QoS 1 message costs one."""
        if self.max_packet_bytes >= PUBACK_BYTES:
            self.send_bytes(puback(packet_id))

    def send_bytes(self, data: bytes, payload: bytes = b"") -> None:
        """Queue an encoded packet of a size that the client accepts; `payload` is its end, if it is apart."""
        self.output.append(data)
        self.output_bytes += len(data)
        self.output_packets += 1
        if payload:
            self.output.append(payload)
            self.output_bytes += len(payload)
        if not self.is_unsent:
            self.mark_unsent()

    def send_early(self, data: bytes, payload: bytes = b"") -> None:
        """As `send_bytes`, for what need not wait until the broker's changes are on a disk."""
        if self.early == len(self.output):
            self.early += 2 if payload else 1
        self.send_bytes(data, payload)

    def mark_unsent(self) -> None:
        """Have the shell look at this connection."""
        if not self.is_unsent:
            self.is_unsent = True
            self._unsent.append(self)

    def take_output(self) -> bytes:
        """What is to be written now; empties the output."""
        data = b"".join(self.output)
        self.output.clear()
        self.output_bytes = 0
        self.early = 0
        self.output_packets = 0
        self.unanswered = 0
        self.is_unsent = False
        return data
