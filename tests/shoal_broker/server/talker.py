"""One client of `talkers`: what it knows of its connection, and what it heard in the model's words."""

from __future__ import annotations

from dataclasses import dataclass

from tests.shoal_broker.server.desk import DeskClient

from shoal_broker.codec import PublishPacket


@dataclass(frozen=True)
class Heard:
    """A PUBLISH as the model wants it, its topic alias resolved."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    duplicate: bool
    packet_id: int | None
    identifiers: list[int]
    expiry_s: int | None
    properties: tuple


class Talker:
    """What one client knows of its connection."""

    def __init__(self, client: DeskClient) -> None:
        self.client = client
        self.unanswered: list[Heard] = []
        self.uncompleted: list[int] = []
        """PUBREL came, PUBCOMP was not sent."""
        self.aliases_in: dict[int, str] = {}
        self.aliases_out: dict[int, str] = {}
        self.topic_alias_max = 0

    def heard(self, packet: PublishPacket) -> Heard:
        topic, alias = packet.topic, packet.topic_alias
        if alias is not None:
            assert 0 < alias <= self.topic_alias_max
            topic = topic or self.aliases_in[alias]
            self.aliases_in[alias] = topic
        return Heard(
            topic,
            packet.payload,
            int(packet.qos),
            packet.retain,
            packet.duplicate,
            packet.packet_id,
            list(packet.subscription_ids),
            packet.message_expiry_interval,
            tuple(packet.user_properties),
        )
