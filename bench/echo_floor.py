"""`echo_floor.py PORT`: the floor under every broker on this codec; started by broker.py.

It decodes, checks and encodes what a broker would, and sends each PUBLISH back to its own sender. No
sessions, no subscriptions, no queue, no limits: not a broker.
"""

from __future__ import annotations

import asyncio
import sys

from shoal_broker.codec import (
    ConnAckPacket,
    ConnectPacket,
    PacketReader,
    PubAckPacket,
    PublishPacket,
    QoS,
    SubAckPacket,
    SubAckReasonCode,
    SubscribePacket,
    encode,
)

_PACKET_IDS = 65_535


class Echo(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio has set TCP_NODELAY."""
        if not isinstance(transport, asyncio.Transport):
            raise TypeError(type(transport))
        self._transport = transport
        self._reader = PacketReader()
        self._sent = 0

    def data_received(self, data: bytes) -> None:
        """Answer whatever is complete, in one write."""
        self._reader.feed(data)
        answers: list[bytes] = []
        while (packet := self._reader.next_packet()) is not None:
            match packet:
                case PublishPacket(topic=topic, payload=payload, packet_id=int(packet_id)):
                    self._sent += 1
                    again = PublishPacket(
                        topic,
                        payload,
                        qos=QoS.AT_LEAST_ONCE,
                        packet_id=self._sent % _PACKET_IDS + 1,
                    )
                    answers += (encode(PubAckPacket(packet_id)), encode(again))
                case ConnectPacket():
                    answers.append(encode(ConnAckPacket()))
                case SubscribePacket(packet_id=packet_id):
                    granted = [SubAckReasonCode.GRANTED_QOS_AT_LEAST_ONCE]
                    answers.append(encode(SubAckPacket(packet_id, granted)))
                case _:
                    """Our PUBLISH acknowledged, or a goodbye."""
        self._transport.write(b"".join(answers))


async def main(port: int) -> None:
    """Serve until killed."""
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
