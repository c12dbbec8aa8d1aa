"""Whatever clients do: after a commit, a broker that starts with the file is the one that wrote it."""

from __future__ import annotations

import random
import sqlite3

import pytest
from tests.shoal_broker.server.desk import NEVER
from tests.shoal_broker.server.durable.durable_desk import DurableDesk, remembered

from shoal_broker.codec import (
    ConnectPacket,
    PubAckPacket,
    PubCompPacket,
    PublishPacket,
    PubRecPacket,
    PubRelPacket,
    QoS,
    RetainHandling,
    SubscribePacket,
    TopicFilter,
    UnsubscribePacket,
    Will,
)
from shoal_broker.server.durable import schema

TOPICS = ("t/1", "t/2", "u/1")
FILTERS = ("t/#", "t/1", "u/+", "#", "$share/s/t/#", "$share/s/u/1")
CLIENTS = ("a", "b", "c", "d")


class Crowd:
    """Clients who do what a random number says, and answer what they get when they feel like it."""

    def __init__(self, desk: DurableDesk, seed: int) -> None:
        self.desk = desk
        self.random = random.Random(seed)  # noqa: S311 - reproducible
        self.clients = {}
        self.unanswered = {client_id: [] for client_id in CLIENTS}
        self.next_payload = 0

    def go_on_with(self, desk: DurableDesk) -> None:
        """The broker was killed, and is there again."""
        self.desk = desk
        self.clients.clear()

    def step(self) -> None:
        client_id = self.random.choice(CLIENTS)
        client = self.clients.get(client_id)
        if client is None or client.closed:
            self.connect(client_id)
            return
        act = self.random.choice(
            [self.publish] * 5
            + [self.answer] * 6
            + [self.subscribe, self.subscribe, self.unsubscribe]
            + [self.leave, self.wait]
        )
        act(client_id, client)

    def connect(self, client_id) -> None:
        client = self.clients[client_id] = self.desk.stranger()
        will = Will(
            self.random.choice(TOPICS),
            payload=b"will",
            qos=QoS.AT_LEAST_ONCE,
            retain=self.random.random() < 0.3,
            will_delay_interval=self.random.choice((0, 20)),
        )
        client.send(
            ConnectPacket(
                client_id,
                clean_start=self.random.random() < 0.1,
                session_expiry_interval=self.random.choice((0, 15, 500, NEVER, NEVER)),
                receive_max=self.random.choice((1, 3, 100)),
                will=will if self.random.random() < 0.4 else None,
            )
        )
        self.unanswered[client_id] = []

    def publish(self, _client_id, client) -> None:
        qos = self.random.choice((QoS.AT_MOST_ONCE, QoS.AT_LEAST_ONCE, QoS.EXACTLY_ONCE))
        self.next_payload += 1
        empty = self.random.random() < 0.1
        client.send(
            PublishPacket(
                self.random.choice(TOPICS),
                b"" if empty else b"%d" % self.next_payload,
                qos=qos,
                packet_id=self.random.randint(1, 5) if int(qos) else None,
                retain=empty or self.random.random() < 0.3,
                message_expiry_interval=self.random.choice((None, None, 10, 1000)),
                user_properties=[("n", "1")] if self.random.random() < 0.2 else None,
            )
        )

    def answer(self, client_id, client) -> None:
        waiting = self.unanswered[client_id]
        waiting += client.take()
        for packet in waiting[: self.random.randint(0, 3)]:
            waiting.remove(packet)
            match packet:
                case PublishPacket(packet_id=None):
                    pass
                case PublishPacket() if packet.qos is QoS.AT_LEAST_ONCE:
                    client.send(PubAckPacket(packet.packet_id))
                case PublishPacket():
                    client.send(PubRecPacket(packet.packet_id))
                case PubRelPacket():
                    client.send(PubCompPacket(packet.packet_id))
                case PubRecPacket() if int(packet.reason_code) < 0x80:
                    client.send(PubRelPacket(packet.packet_id))

    def subscribe(self, _client_id, client) -> None:
        wanted = TopicFilter(
            self.random.choice(FILTERS),
            max_qos=self.random.choice((QoS.AT_MOST_ONCE, QoS.AT_LEAST_ONCE, QoS.EXACTLY_ONCE)),
            retain_as_published=self.random.random() < 0.5,
            retain_handling=self.random.choice(tuple(map(RetainHandling, (0, 0, 1, 2)))),
        )
        identifier = self.random.choice((None, 3, 70_000))
        client.send(SubscribePacket(77, [wanted], subscription_id=identifier))

    def unsubscribe(self, _client_id, client) -> None:
        client.send(UnsubscribePacket(78, [self.random.choice(FILTERS)]))

    def leave(self, client_id, client) -> None:
        client.drop()
        del self.clients[client_id]

    def wait(self, _client_id, _client) -> None:
        self.desk.wait(self.random.choice((1, 5, 12)))


def run(seed: int, steps: int) -> None:
    desk = DurableDesk(max_queued_messages=20, max_retained_messages=3)
    crowd = Crowd(desk, seed)
    for _ in range(steps):
        crowd.step()
        if crowd.random.random() < 0.3:
            desk.commit()
            later = desk.after_power_cut()
            assert remembered(later.core) == remembered(desk.core), f"seed {seed}"
            later.commit()
            # What is not needed any more is not there any more.
            assert later.rows() == desk.rows(), f"seed {seed}"
            if crowd.random.random() < 0.1:
                crowd.go_on_with(later)
                desk = later
    for client_id in CLIENTS:
        desk.connect(client_id, clean_start=True)
    for topic in TOPICS:
        desk.connect("last").publish(topic, b"", retain=True)
    desk.wait(1000)
    desk.commit()
    assert desk.rows() == {}, f"seed {seed}"
    assert desk.recorder.pending.size_bytes == 0
    assert desk.core.router.ledger.live_bytes == 0


FRAME_BYTES = 24 + 4096
LOG_HEADER_BYTES = 32


def test_a_power_cut_at_every_write_leaves_what_one_commit_wrote(tmp_path):
    """The log is written page by page: whatever of it the disk has, one whole batch was the last."""
    path = tmp_path / "broker.db"
    log = tmp_path / "broker.db-wal"
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA wal_autocheckpoint = 0")
    database.executescript(schema.DDL)
    desk = DurableDesk(database)
    crowd = Crowd(desk, seed=4)
    commits = [(log.stat().st_size, remembered(desk.core))]
    for _ in range(20):
        for _ in range(5):
            crowd.step()
        desk.commit()
        commits.append((log.stat().st_size, remembered(desk.core)))
    written = log.read_bytes()
    first, last = commits[0][0], commits[-1][0]
    cuts = [*range(first, last, FRAME_BYTES), *range(first + 100, last, 3 * FRAME_BYTES), last]
    for number, cut in enumerate(cuts):
        copy = tmp_path / f"{number}.db"
        copy.write_bytes(path.read_bytes())
        copy.with_name(f"{number}.db-wal").write_bytes(written[:cut])
        found = sqlite3.connect(copy, isolation_level=None)
        *_, whole = (state for size, state in commits if size <= cut)
        assert remembered(DurableDesk(found, now_s=desk.now_s).core) == whole, cut
        found.close()
    database.close()


@pytest.mark.parametrize("seed", range(8))
def test_what_is_loaded_is_what_was_there(seed):
    run(seed, steps=150)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_what_is_loaded_is_what_was_there_a_thousand_times():
    for seed in range(1000, 2000):
        run(seed, steps=150)
