"""The core on a desk with its journal in a real SQLite database: commit, pull the plug, start again."""

from __future__ import annotations

import sqlite3

from tests.shoal_broker.server.desk import NEVER, Desk

from shoal_broker.codec import ConnAckPacket, ConnectPacket
from shoal_broker.server.core import BrokerCore
from shoal_broker.server.durable import schema
from shoal_broker.server.durable.loading import Loader, Stock
from shoal_broker.server.durable.timeline import Timeline


class DurableDesk(Desk):
    """A Desk whose core writes to `database`; nothing is written but by `commit`."""

    def __init__(
        self, database: sqlite3.Connection | None = None, now_s: float = 1000.0, **config
    ) -> None:
        super().__init__(**config)
        self.now_s = now_s
        if database is None:
            database = sqlite3.connect(":memory:", isolation_level=None)
            database.executescript(schema.DDL)
        self.database = database
        self.recorder = self._load()

    def _load(self):
        timeline = Timeline(self.now_s, round(self.now_s * 1000))
        stock = Stock.read(self.database)
        return Loader(self.core.router, timeline, self.now_s).load(stock)

    @property
    def promises(self) -> bool:
        return self.recorder.pending.promises

    def commit(self) -> None:
        self.write(self.recorder.pending.take())

    def write(self, batch) -> None:
        self.database.execute("BEGIN")
        batch.write(self.database)
        self.database.execute("COMMIT")

    def after_power_cut(self, **config) -> DurableDesk:
        """Another broker that has only what was committed; it is as late there as here."""
        copy = sqlite3.connect(":memory:", isolation_level=None)
        self.database.backup(copy)
        return DurableDesk(copy, now_s=self.now_s, **config)

    def count(self, table: str) -> int:
        (found,) = self.database.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608 - names of ours
        return found

    def rows(self) -> dict[str, int]:
        """How many rows there are of what can pile up."""
        tables = ("session", "subscription", "message", "retained", "queued", "received")
        return {table: self.count(table) for table in tables if self.count(table)}


def away(desk, client_id="away", *filters):
    """A client with a session that is remembered, who is not there."""
    client = desk.connect(client_id, session_expiry_interval=NEVER)
    client.subscribe(*(filters or ("t/#",)))
    client.drop()


def back(desk, client_id="away", **options):
    """The client comes back; what waits for it is to be taken."""
    client = desk.stranger()
    client.send(ConnectPacket(client_id, **{"session_expiry_interval": NEVER, **options}))
    client.welcome = client.reader.next_packet()
    assert isinstance(client.welcome, ConnAckPacket)
    return client


def remembered(core: BrokerCore) -> dict:
    """Everything of a core that is to survive it, comparable."""
    router = core.router
    return {
        "retained": {message.topic: described(message) for message in router.retained.match("#")},
        "sessions": {
            session.client_id: {
                "interval": session.expiry_interval_s,
                "will": None
                if session.will is None
                else (session.will.topic, session.will.payload),
                "subscriptions": {
                    pattern: (s.max_qos, s.no_local, s.retain_as_published, s.identifiers)
                    for pattern, s in session.subscriptions.items()
                },
                "in_flight": [
                    (packet_id, None if delivery is None else delivered(delivery))
                    for packet_id, delivery in session.in_flight.items()
                ],
                "queue": [delivered(delivery) for delivery in session.queue],
                "backlog": {
                    pattern: owed
                    for pattern, messages in session.backlog.items()
                    if (
                        owed := [
                            described(m)
                            for m in messages
                            if min(int(m.content.qos), session.subscriptions[pattern].max_qos)
                        ]
                    )
                },
                "unreleased": set(session.unreleased or ()),
            }
            for session in router.sessions.values()
            if session.is_persistent
        },
    }


def described(message) -> tuple:
    content = message.content
    return (
        message.topic,
        content.payload,
        int(content.qos),
        message.publisher,
        None if message.expires_at_s is None else round(message.expires_at_s, 2),
        content.content_type,
        content.response_topic,
        content.correlation_data,
        content.user_properties,
    )


def delivered(delivery) -> tuple:
    group = delivery.group
    return (
        described(delivery.message),
        delivery.qos,
        delivery.retain,
        list(delivery.identifiers),
        None if group is None else (group.name, group.topic_filter),
    )
