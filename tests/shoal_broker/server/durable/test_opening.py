"""The directory of a durable broker: what its file is when it is opened, of this version and of older ones."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest
import structlog
from tests.shoal_broker.server.desk import Desk
from tests.shoal_broker.server.durable.durable_desk import away, back, remembered

from shoal_broker.codec import PublishPacket, QoS
from shoal_broker.server.durable.opening import opened
from shoal_broker.server.durable.timeline import CLOCK_FLOOR_MS

GOLDEN = Path(__file__).with_name("version-1.sql")
TODAY_S = CLOCK_FLOOR_MS / 1000 + 300 * 86_400


class Clocks:
    """A wall clock that can be put, and the core's own."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.wall_s = TODAY_S

    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.wall_s += seconds


async def run(directory, clocks, act, *, kill=False):
    """One life of a broker on a desk: `act(desk)`, and everything is committed, unless it is a kill."""
    desk = Desk()
    desk.now_s = clocks.now_s
    with structlog.testing.capture_logs() as said:
        async with opened(
            directory,
            desk.core.router,
            clock=lambda: clocks.now_s,
            wall_clock=lambda: clocks.wall_s,
        ) as committer:
            if kill:
                act(desk, committer)
                return None
            result = act(desk)
            committer._stopping = True
            committer._write_now()
            await committer.run()
    return result, [line["event"] for line in said]


def leave_a_message(desk):
    away(desk, "r")
    client = desk.connect("short", session_expiry_interval=7200)
    client.drop()
    desk.connect("p").publish("t/1", b"m", message_expiry_interval=3600)


def expiry_left_s(desk):
    """Of the message that waits; None when there is none or it has expired."""
    messages = back(desk, "r").messages()
    return messages[0].message_expiry_interval if messages else None


async def test_time_goes_on_while_the_broker_is_away(tmp_path):
    clocks = Clocks()
    await run(tmp_path, clocks, leave_a_message)
    clocks.now_s, clocks.wall_s = 5.0, clocks.wall_s + 600
    left, said = await run(tmp_path, clocks, expiry_left_s)
    assert left == 3000
    assert said == ["durable state loaded"]


async def test_what_expired_while_the_broker_was_away_is_said(tmp_path):
    clocks = Clocks()
    await run(tmp_path, clocks, leave_a_message)
    clocks.wall_s += 86_400
    left, said = await run(tmp_path, clocks, expiry_left_s)
    assert left is None
    assert "expired while the broker was away" in said


async def test_a_clock_that_is_put_while_the_broker_runs_is_not_time_away_after_a_kill(tmp_path):
    clocks = Clocks()
    await run(tmp_path, clocks, leave_a_message)

    def write_and_put_the_clock(_desk, committer):
        database = committer._store.path
        clocks.wall_s += 20 * 86_400
        committer.sweep()
        batch = committer.recorder.pending.take()
        with sqlite3.connect(database) as connection:
            batch.write(connection)
        connection.close()

    await run(tmp_path, clocks, write_and_put_the_clock, kill=True)
    clocks.wait(600)
    left, _ = await run(tmp_path, clocks, expiry_left_s)
    assert left == 3000


@pytest.mark.parametrize("put_to_s", [TODAY_S - 3600, 10.0, TODAY_S + 20 * 365 * 86_400])
async def test_a_clock_that_jumped_lets_nothing_expire_and_nothing_live_for_ever(
    tmp_path, put_to_s
):
    clocks = Clocks()
    await run(tmp_path, clocks, leave_a_message)
    clocks.wall_s = put_to_s
    left, said = await run(tmp_path, clocks, expiry_left_s)
    assert left == 3600
    assert any("the clock cannot be believed" in line for line in said)
    await run(tmp_path, clocks, lambda _: clocks.wait(1800))
    left, _ = await run(tmp_path, clocks, expiry_left_s)
    assert left == 1800


VERSION_1_HOLDS = {
    "retained": {
        "old/1": ("old/1", b"retained", 1, "p", None, "text", None, None, []),
        "old/2": ("old/2", b"due", 1, "p", None, None, None, None, []),
        "old/3": ("old/3", b"due, too", 1, "p", None, None, None, None, []),
    },
    "sessions": {
        "p": {
            "interval": 4294967295,
            "will": ("w/p", b"gone"),
            "subscriptions": {},
            "in_flight": [],
            "queue": [],
            "backlog": {},
            "unreleased": {11},
        },
        "member": {
            "interval": 4294967295,
            "will": None,
            "subscriptions": {"$share/s/t/#": (1, False, False, [])},
            "in_flight": [],
            "queue": [
                (
                    ("t/1", b"released", 2, "p", None, None, None, None, []),
                    1,
                    False,
                    [],
                    ("s", "t/#"),
                ),
                (
                    ("t/2", b"waits", 1, "p", None, None, "back", b"c", [("k", "v")]),
                    1,
                    False,
                    [],
                    ("s", "t/#"),
                ),
            ],
            "backlog": {},
            "unreleased": set(),
        },
        "r": {
            "interval": 86400,
            "will": None,
            "subscriptions": {"t/#": (2, True, True, [7]), "old/#": (1, False, False, [])},
            "in_flight": [
                (1, None),
                (
                    2,
                    (
                        ("old/1", b"retained", 1, "p", None, "text", None, None, []),
                        1,
                        True,
                        [],
                        None,
                    ),
                ),
            ],
            "queue": [
                (
                    ("t/2", b"waits", 1, "p", None, None, "back", b"c", [("k", "v")]),
                    1,
                    False,
                    [7],
                    None,
                )
            ],
            "backlog": {
                "old/#": [
                    ("old/2", b"due", 1, "p", None, None, None, None, []),
                    ("old/3", b"due, too", 1, "p", None, None, None, None, []),
                ]
            },
            "unreleased": set(),
        },
    },
}


async def test_a_file_of_version_1_is_loaded(tmp_path):
    with sqlite3.connect(tmp_path / "broker.db") as connection:
        connection.executescript(GOLDEN.read_text())
    connection.close()
    clocks = Clocks()

    def look(desk):
        return remembered(desk.core)

    found, _ = await run(tmp_path, clocks, look)
    assert found == VERSION_1_HOLDS


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_a_hundred_thousand_stored_messages_take_a_bounded_time(tmp_path, capsys):
    def fill(desk):
        for number in range(10):
            away(desk, f"reader-{number}", f"t/{number}")
        publisher = desk.connect("p")
        for number in range(100_000):
            topic = f"t/{number % 10}"
            publisher.send(PublishPacket(topic, b"x" * 200, qos=QoS.AT_LEAST_ONCE, packet_id=1))

    clocks = Clocks()
    await run(tmp_path, clocks, fill)
    started_s = time.perf_counter()
    found, _ = await run(
        tmp_path, clocks, lambda desk: sum(len(s.queue) for s in desk.core.router.sessions.values())
    )
    seconds = time.perf_counter() - started_s
    with capsys.disabled():
        print(f"\n100,000 stored messages are loaded in {seconds:.1f} s")
    assert found == 100_000
    assert seconds < 30
