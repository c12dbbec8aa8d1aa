"""What leaves a connection on the codec, when, and who hears of its answer.

A packet may wait for a packet id, for the broker's receive maximum, or for a socket that takes no
more; in the order of the calls. What leaves in one turn of the event loop is written at once. It
reads nothing and knows nothing of topics: `codec_transport` does.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from shoal_broker.bus_errors import BusError, LinkError, RefusedByBrokerError
from shoal_broker.codec import PubAckPacket, SubAckPacket, UnsubAckPacket

PACKET_IDS = 65_535
PACKET_TOO_LARGE = 0x95

Answer = PubAckPacket | SubAckPacket | UnsubAckPacket | None


# A packet that is to leave: what makes it from its packet id (0: it has none), who waits for its
# answer, whether it has an id, whether it is a PUBLISH.
_Wish = tuple[Callable[[int], bytes], asyncio.Future[Answer], bool, bool]


class Outgoing:
    """The sending half of one connection.

    `receive_maximum` and `maximum_packet_bytes` are the broker's; the former bounds the QoS 1
    publishes without an answer. `is_closed`: nothing leaves any more.
    """

    __slots__ = (
        "_flush_is_due",
        "_last_id",
        "_loop",
        "_output",
        "_publishes",
        "_requests",
        "_transport",
        "_unwritten",
        "_wishes",
        "is_closed",
        "is_writable",
        "last_s",
        "maximum_packet_bytes",
        "receive_maximum",
    )

    def __init__(self, transport: asyncio.Transport) -> None:
        self.receive_maximum = PACKET_IDS
        self.maximum_packet_bytes: int | None = None
        self.is_closed = False
        self.is_writable = True
        self.last_s = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        # Packet ids in use, and who waits for their answers: QoS 1 publishes, and the others. One
        # whose caller has left stays until it is answered: its id is not free before.
        self._publishes: dict[int, asyncio.Future[Answer]] = {}
        self._requests: dict[int, asyncio.Future[Answer]] = {}
        self._last_id = 0
        # None until one has to wait: an empty deque is 760 bytes a connection.
        self._wishes: deque[_Wish] | None = None
        self._output: list[bytes] = []
        # QoS 0 publishes that have not left the process.
        self._unwritten: list[asyncio.Future[Answer]] = []
        self._flush_is_due = False

    def publish(self, encode: Callable[[int], bytes]) -> asyncio.Future[Answer]:
        """Send a QoS 1 PUBLISH; the answer is its PUBACK, or what `encode` raised."""
        return self._wish(encode, has_id=True, is_publish=True)

    def request(self, encode: Callable[[int], bytes]) -> asyncio.Future[Answer]:
        """Send a SUBSCRIBE or UNSUBSCRIBE; the answer is its SUBACK or UNSUBACK."""
        return self._wish(encode, has_id=True, is_publish=False)

    def write_out(self, encode: Callable[[int], bytes]) -> asyncio.Future[Answer]:
        """Send a QoS 0 PUBLISH (packet id 0); the answer is None, once it is written."""
        return self._wish(encode, has_id=False, is_publish=False)

    def send(self, data: bytes) -> bool:
        """Send a packet that nobody answers. False when a broker makes us owe it too much of that."""
        if self.is_closed:
            return True
        self._output.append(data)
        if self.is_writable:
            if not self._flush_is_due:
                self._flush_is_due = True
                self._loop.call_soon(self._flush)
            return True
        # A broker that keeps to its packet ids cannot make us owe it more acknowledgements.
        return len(self._output) <= PACKET_IDS

    def send_last(self, data: bytes) -> None:
        """Write this after all that was sent, writable or not; nothing leaves afterwards."""
        if not self.is_closed:
            self._output.append(data)
            self._write()
            self.is_closed = True

    def answer_publish(self, packet: PubAckPacket) -> None:
        """A PUBACK came in. An id that is not in use is no harm: there is nobody to tell."""
        _tell(self._publishes.pop(packet.packet_id, None), packet)

    def answer_request(self, packet: SubAckPacket | UnsubAckPacket) -> None:
        """A SUBACK or UNSUBACK came in."""
        _tell(self._requests.pop(packet.packet_id, None), packet)

    def advance(self) -> None:
        """Send what waits, as far as it may leave now."""
        wishes = self._wishes
        while wishes and (wishes[0][1].done() or self._may_leave(wishes[0])):
            wish = wishes.popleft()
            # Done: its caller has left before it could.
            if not wish[1].done():
                self._let_leave(wish)

    def pause(self) -> None:
        """The socket takes no more."""
        self.is_writable = False

    def resume(self) -> None:
        """The socket has taken everything."""
        self.is_writable = True
        self._tell_written()
        self.advance()
        self._flush()

    def fail(self, error: LinkError) -> None:
        """Everybody who waits gets a LinkError of their own; nothing leaves afterwards."""
        self.is_closed = True
        waiting = [
            *self._publishes.values(),
            *self._requests.values(),
            *self._unwritten,
            *(answer for _, answer, _, _ in self._wishes or ()),
        ]
        self._publishes.clear()
        self._requests.clear()
        self._unwritten.clear()
        self._wishes = None
        self._output.clear()
        for answer in waiting:
            fail(answer, error)

    def _wish(
        self, encode: Callable[[int], bytes], *, has_id: bool, is_publish: bool
    ) -> asyncio.Future[Answer]:
        answer: asyncio.Future[Answer] = self._loop.create_future()
        wish = (encode, answer, has_id, is_publish)
        if not self._wishes and self._may_leave(wish):
            self._let_leave(wish)
        else:
            if self._wishes is None:
                self._wishes = deque()
            self._wishes.append(wish)
        return answer

    def _may_leave(self, wish: _Wish) -> bool:
        _, _, has_id, is_publish = wish
        if not self.is_writable:
            return False
        if is_publish and len(self._publishes) >= self.receive_maximum:
            return False
        return not has_id or len(self._publishes) + len(self._requests) < PACKET_IDS

    def _let_leave(self, wish: _Wish) -> None:
        encode, answer, has_id, is_publish = wish
        packet_id = self._free_id() if has_id else 0
        try:
            data = encode(packet_id)
        except BusError as exc:
            _fail_with(answer, exc)
            return
        limit_bytes = self.maximum_packet_bytes
        if limit_bytes is not None and len(data) > limit_bytes:
            why = f"a packet of {len(data)} bytes, the broker takes {limit_bytes}"
            _fail_with(answer, RefusedByBrokerError(why, reason_code=PACKET_TOO_LARGE))
            return
        if is_publish:
            self._publishes[packet_id] = answer
        elif has_id:
            self._requests[packet_id] = answer
        else:
            self._unwritten.append(answer)
        self.send(data)

    def _free_id(self) -> int:
        """The next packet id that is not in use: one that was just answered comes again last."""
        packet_id = self._last_id
        while True:
            packet_id = packet_id % PACKET_IDS + 1
            if packet_id not in self._publishes and packet_id not in self._requests:
                self._last_id = packet_id
                return packet_id

    def _flush(self) -> None:
        self._flush_is_due = False
        if self._output and self.is_writable and not self.is_closed:
            self._write()

    def _write(self) -> None:
        output = self._output
        data = output[0] if len(output) == 1 else b"".join(output)
        output.clear()
        self.last_s = time.monotonic()
        self._transport.write(data)
        if self.is_writable:
            self._tell_written()

    def _tell_written(self) -> None:
        """QoS 0 publishes return. None is in `_output` here: while nothing is taken, they wait."""
        for answer in self._unwritten:
            _tell(answer, None)
        self._unwritten.clear()


def fail(waiting: asyncio.Future[Answer] | asyncio.Future[None], error: LinkError) -> None:
    """Give who waits a LinkError of its own."""
    if not waiting.done():
        again = LinkError(str(error))
        again.__cause__ = error.__cause__
        _fail_with(waiting, again)


def _fail_with(waiting: asyncio.Future[Answer] | asyncio.Future[None], error: BusError) -> None:
    waiting.set_exception(error)
    # Whether anybody still waits or not: asyncio need not complain.
    waiting.exception()


def _tell(waiting: asyncio.Future[Answer] | None, answer: Answer) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(answer)
