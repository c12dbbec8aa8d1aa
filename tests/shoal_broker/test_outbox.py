import asyncio
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_broker.bus_errors import MessageTooLargeError, OutboxFullError
from shoal_broker.link import Properties
from shoal_broker.outbox import Lane, Outbox, OutboxMessage, insert
from shoal_broker.store import Store


def message(payload: bytes = b"x", **given) -> OutboxMessage:
    return OutboxMessage(topic="t", payload=payload, **given)


@asynccontextmanager
async def outbox_at(path, **limits):
    async with Store.open(path) as store:
        yield await Outbox.load(store, **limits)


async def payloads(outbox: Outbox, rows: int = 100, size_bytes: int = 1 << 30) -> list[bytes]:
    return [row.message.payload for row in await outbox.take(max_rows=rows, max_bytes=size_bytes)]


async def on_disk(outbox: Outbox) -> int:
    return await outbox.store.read(
        lambda connection: connection.execute("SELECT count(*) FROM outbox").fetchone()[0]
    )


async def test_rows_come_back_after_a_restart_in_order_and_complete(tmp_path):
    full = message(
        b"full",
        qos=0,
        retain=True,
        lane=7,
        expires_at_ms=9_999_999_999_999,
        response_topic="r",
        correlation=b"\0c",
        coalesce_key="k",
        droppable=True,
        keep_until_ms=9_999_999_999_998,
        properties=Properties(payload_format=1, content_type="text", user=(("a", "b"), ("a", "c"))),
    )
    async with outbox_at(tmp_path / "o.db") as outbox:
        await outbox.put(message(b"1"))
        await outbox.put(message(b"2"))
        await outbox.put(full)
        await outbox.take(max_rows=1, max_bytes=1)
    async with outbox_at(tmp_path / "o.db") as outbox:
        rows = await outbox.take(max_rows=10, max_bytes=1 << 20)
        assert [row.message.payload for row in rows] == [b"1", b"2", b"full"]
        assert rows[2].message == full


async def test_a_higher_lane_goes_first_and_order_is_kept_within_a_lane(tmp_path):
    async with outbox_at(tmp_path / "o.db") as outbox:
        for n, lane in enumerate([Lane.BULK, Lane.NORMAL, Lane.URGENT, Lane.NORMAL, Lane.BULK]):
            await outbox.put(message(b"%d" % n, lane=lane))
        assert await payloads(outbox) == [b"2", b"1", b"3", b"0", b"4"]


async def test_what_is_put_back_is_next_again_in_its_old_order(tmp_path):
    async with outbox_at(tmp_path / "o.db") as outbox:
        for n in range(5):
            await outbox.put(message(b"%d" % n))
        rows = await outbox.take(max_rows=3, max_bytes=1 << 20)
        outbox.sent(rows[1].id, "t")
        outbox.link_opened(session_present=True)
        assert await payloads(outbox) == [b"0", b"2", b"3", b"4"]


async def test_rows_that_are_through_are_deleted_many_in_one_write(tmp_path):
    async with outbox_at(tmp_path / "o.db") as outbox:
        await asyncio.gather(*(outbox.put(message()) for _ in range(300)))
        for row in await outbox.take(max_rows=300, max_bytes=1 << 20):
            outbox.sent(row.id, "t")
        assert len(outbox) == 0
        assert await on_disk(outbox) == 300
        await outbox.flush_deletions()
        assert await on_disk(outbox) == 0
        assert outbox.deletions_due == 0


async def test_a_put_takes_pending_deletions_along(tmp_path):
    async with outbox_at(tmp_path / "o.db") as outbox:
        await outbox.put(message(b"1"))
        outbox.sent((await outbox.take(max_rows=1, max_bytes=1))[0].id, "t")
        await outbox.put(message(b"2"))
        assert await on_disk(outbox) == 1


async def test_a_newer_message_with_the_same_key_replaces_the_older_one(tmp_path):
    async with outbox_at(tmp_path / "o.db") as outbox:
        await outbox.put(message(b"old", coalesce_key="s"))
        await outbox.put(message(b"other", coalesce_key="p"))
        await outbox.put(message(b"new", coalesce_key="s"))
        assert await payloads(outbox) == [b"other", b"new"]
        assert outbox.stats.coalesced == 1
        assert await on_disk(outbox) == 2


async def test_a_replaced_row_in_flight_is_not_sent_again(tmp_path):
    async with outbox_at(tmp_path / "o.db") as outbox:
        await outbox.put(message(b"old", coalesce_key="s"))
        await outbox.take(max_rows=1, max_bytes=1)
        await outbox.put(message(b"new", coalesce_key="s"))
        outbox.link_opened(session_present=True)
        assert await payloads(outbox) == [b"new"]


async def test_a_row_waits_no_longer_than_it_is_to_be_kept_and_its_expiry_is_another(tmp_path):
    clock = {"now": 1000}
    for reopened in (False, True):
        path = tmp_path / f"{reopened}.db"
        async with outbox_at(path, clock_ms=lambda: clock["now"]) as outbox:
            await outbox.put(message(b"short", keep_until_ms=2000, expires_at_ms=9000))
            await outbox.put(message(b"long", keep_until_ms=5000))
            await outbox.put(message(b"expires first", keep_until_ms=5000, expires_at_ms=2000))
            clock["now"] = 3000
            if not reopened:
                assert await payloads(outbox) == [b"long"]
                assert outbox.stats.expired == 2
        if reopened:
            async with outbox_at(path, clock_ms=lambda: clock["now"]) as outbox:
                (row,) = await outbox.take(max_rows=9, max_bytes=1 << 20)
                assert row.message == message(b"long", keep_until_ms=5000)
                assert outbox.stats.expired == 2
        clock["now"] = 1000


async def test_expired_rows_are_dropped_and_counted(tmp_path):
    now_ms = 1000
    async with outbox_at(tmp_path / "o.db", clock_ms=lambda: now_ms) as outbox:
        await outbox.put(message(b"short", expires_at_ms=2000))
        await outbox.put(message(b"long", expires_at_ms=5000))
        now_ms = 3000
        assert await payloads(outbox) == [b"long"]
        assert outbox.stats.expired == 1


async def test_a_row_inserted_with_an_effect_is_found_and_keeps_its_turn(tmp_path):
    async with outbox_at(tmp_path / "o.db") as outbox:
        await outbox.put(message(b"1"))
        await outbox.store.write(lambda connection: insert(connection, message(b"2")))
        await outbox.put(message(b"3"))
        outbox.changed()
        assert await payloads(outbox) == [b"1", b"2", b"3"]


async def test_a_foreign_insert_wakes_the_waiter(tmp_path):
    async with outbox_at(tmp_path / "o.db") as outbox, asyncio.timeout(5):
        waiter = asyncio.create_task(outbox.wait())
        await asyncio.sleep(0)
        assert not waiter.done()
        await outbox.store.write(lambda connection: insert(connection, message(b"1")))
        outbox.changed()
        await waiter
        assert await payloads(outbox) == [b"1"]


async def test_a_full_outbox_refuses_an_ordinary_message(tmp_path):
    async with outbox_at(tmp_path / "o.db", max_rows=2) as outbox:
        await outbox.put(message(b"1"))
        await outbox.put(message(b"2"))
        with pytest.raises(OutboxFullError, match="2 rows"):
            await outbox.put(message(b"3"))
        assert await payloads(outbox) == [b"1", b"2"]


async def test_a_full_outbox_drops_the_oldest_telemetry_and_counts_it(tmp_path):
    async with outbox_at(tmp_path / "o.db", max_rows=3) as outbox:
        for n in range(5):
            await outbox.put(message(b"%d" % n, droppable=n != 1))
        assert outbox.stats.dropped == 2
        assert await payloads(outbox) == [b"1", b"3", b"4"]
        assert await on_disk(outbox) == 3


async def test_telemetry_that_finds_nothing_to_drop_is_dropped_itself(tmp_path):
    async with outbox_at(tmp_path / "o.db", max_rows=1) as outbox:
        await outbox.put(message(b"1"))
        await outbox.put(message(b"2", droppable=True))
        assert outbox.stats.dropped == 1
        assert await payloads(outbox) == [b"1"]


async def test_the_byte_limit_counts_like_the_row_limit(tmp_path):
    async with outbox_at(tmp_path / "o.db", max_bytes=10_000) as outbox:
        with pytest.raises(MessageTooLargeError):
            await outbox.put(message(b"x" * 10_001))
        await outbox.put(message(b"a" * 6000, droppable=True))
        await outbox.put(message(b"b" * 6000))
        assert outbox.stats.dropped == 1
        assert outbox.size_bytes <= 10_000


async def test_concurrent_puts_do_not_exceed_the_limit(tmp_path):
    async with outbox_at(tmp_path / "o.db", max_rows=5) as outbox:
        outcomes = await asyncio.gather(
            *(outbox.put(message()) for _ in range(20)), return_exceptions=True
        )
        assert sum(isinstance(outcome, OutboxFullError) for outcome in outcomes) == 15
        assert await on_disk(outbox) == 5


async def test_a_row_that_a_look_finds_before_its_put_returns_is_taken_once(tmp_path):
    async with outbox_at(tmp_path / "o.db") as outbox:
        taken: list[bytes] = []

        async def take() -> None:
            taken.extend(await payloads(outbox))
            taken.extend(await payloads(outbox))

        outbox.changed()
        async with asyncio.TaskGroup() as tasks:
            # The look is queued first and runs behind the write of the same batch.
            tasks.create_task(take())
            tasks.create_task(outbox.put(message(b"1")))
        taken += await payloads(outbox)
        assert taken == [b"1"]
        assert outbox.size_bytes == message(b"1").size_bytes


async def test_a_cancelled_put_is_sent_exactly_once(tmp_path):
    async with outbox_at(tmp_path / "o.db") as outbox:
        waiter = asyncio.create_task(outbox.put(message(b"1")))
        await asyncio.sleep(0)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert await payloads(outbox) == [b"1"]
        assert await payloads(outbox) == []


async def test_a_batch_respects_the_byte_budget_but_is_never_empty(tmp_path):
    async with outbox_at(tmp_path / "o.db") as outbox:
        for _ in range(3):
            await outbox.put(message(b"x" * 1000))
        assert len(await payloads(outbox, size_bytes=2500)) == 2
        assert len(await payloads(outbox, size_bytes=1)) == 1


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from([None, "a", "b"]), st.integers(0, 3)),
        max_size=25,
    )
)
async def test_whatever_happens_each_row_leaves_once_in_the_order_of_its_lane(
    tmp_path_factory, plan
):
    path = tmp_path_factory.mktemp("outbox") / "o.db"
    wanted: dict[int, tuple[int, str | None]] = {}
    left: list[int] = []
    async with outbox_at(path) as outbox:
        for n, (lane, key, take) in enumerate(plan):
            if key is not None:
                wanted = {i: v for i, v in wanted.items() if v[1] != key}
            wanted[n] = (lane, key)
            made = message(b"%d" % n, lane=lane, coalesce_key=key)
            if n % 2:
                await outbox.put(made)
            else:
                await outbox.store.write(lambda c, made=made: insert(c, made))
                outbox.changed()
            for row in await outbox.take(max_rows=take, max_bytes=1 << 20) if take else []:
                if take == 3:
                    outbox.put_back([row.id])
                else:
                    outbox.sent(row.id, "t")
                    left.append(int(row.message.payload))
                    wanted.pop(left[-1])
        rest = [int(payload) for payload in await payloads(outbox)]
    assert rest == sorted(wanted, key=lambda n: (-wanted[n][0], n))
    assert len(set(left)) == len(left)


# --- receipts


class Clock:
    """A monotonic clock moved by hand."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def reading(n: int, **given) -> OutboxMessage:
    return message(b"%d" % n, droppable=True, receipt=b"r%d" % n, lane=Lane.TELEMETRY, **given)


async def send(outbox: Outbox, **answer) -> list[bytes]:
    """Send what is ready; the broker takes it."""
    rows = await outbox.take(max_rows=100, max_bytes=1 << 20)
    for row in rows:
        outbox.sent(row.id, row.message.topic, **answer)
    return [row.message.payload for row in rows]


async def test_a_message_with_a_receipt_lives_until_the_receipt_and_not_only_to_the_puback(
    tmp_path,
):
    async with outbox_at(tmp_path / "o.db") as outbox:
        await outbox.put(reading(1))
        assert await send(outbox) == [b"1"]
        await outbox.flush_deletions()
        assert (len(outbox), outbox.unsent, await on_disk(outbox)) == (1, 0, 1)
        outbox.received([b"r1", b"nobody's"])
        await outbox.flush_deletions()
        assert (len(outbox), await on_disk(outbox), outbox.stats.received) == (0, 0, 1)


async def test_what_has_no_receipt_is_sent_again_ever_more_rarely(tmp_path):
    clock = Clock()
    async with outbox_at(tmp_path / "o.db", clock_s=clock) as outbox:
        await outbox.put(reading(1))
        waits = []
        for _ in range(4):
            assert await send(outbox) == [b"1"]
            since_s = clock.now_s
            while not await payloads(outbox):
                clock.now_s += 1.0
            outbox.link_opened(session_present=True)  # what was just taken is ready again
            waits.append(clock.now_s - since_s)
        assert waits == [10.0, 20.0, 40.0, 80.0]
        assert outbox.stats.resent == 3


async def test_what_nobody_had_subscribed_to_is_sent_again_soon_and_ever_more_rarely(tmp_path):
    clock = Clock()
    async with outbox_at(tmp_path / "o.db", clock_s=clock) as outbox:
        await outbox.put(reading(1))
        waits = []
        for _ in range(4):
            since_s = clock.now_s
            while not await send(outbox, anybody=False):
                clock.now_s += 0.5
            waits.append(clock.now_s - since_s)
        assert waits == [0.0, 1.0, 2.0, 4.0]
        outbox.link_opened(session_present=False)
        assert await send(outbox) == [b"1"]


async def test_whoever_comes_late_gets_everything_in_its_order(tmp_path):
    clock = Clock()
    async with outbox_at(tmp_path / "o.db", clock_s=clock) as outbox:
        await outbox.put(reading(1))
        for _ in range(3):
            await send(outbox, anybody=False)
            clock.now_s += 0.6
            await outbox.put(reading(int(clock.now_s * 10)))
        # None of the newer ones has gone ahead, and none does now.
        rows = []
        while len(rows) < 4:
            clock.now_s += 0.5
            rows += await send(outbox)
        assert [int(payload) for payload in rows] == sorted(int(payload) for payload in rows)


async def test_a_broker_that_forgot_us_gets_everything_again_in_the_old_order(tmp_path):
    async with outbox_at(tmp_path / "o.db") as outbox:
        for n in range(4):
            await outbox.put(reading(n))
        await send(outbox)
        outbox.received([b"r2"])
        await outbox.put(reading(4))
        outbox.link_opened(session_present=False)
        assert await payloads(outbox) == [b"0", b"1", b"3", b"4"]


async def test_a_broker_that_knows_us_gets_again_only_what_it_got_once(tmp_path):
    clock = Clock()
    async with outbox_at(tmp_path / "o.db", clock_s=clock) as outbox:
        await outbox.put(reading(0))
        await send(outbox)
        clock.now_s += 10.0
        await send(outbox)
        await outbox.put(reading(1))
        await send(outbox)
        outbox.link_opened(session_present=True)
        assert await payloads(outbox) == [b"1"]


async def test_a_receipt_ends_a_message_wherever_it_stands(tmp_path):
    async with outbox_at(tmp_path / "o.db") as outbox:
        for n in range(3):
            await outbox.put(reading(n))
        await send(outbox)
        outbox.link_opened(session_present=False)
        in_flight = await outbox.take(max_rows=1, max_bytes=1)
        outbox.received([b"r0", b"r1"])
        outbox.sent(in_flight[0].id, "t")
        outbox.put_back([in_flight[0].id])
        assert await payloads(outbox) == [b"2"]


async def test_the_same_message_put_twice_is_one_message(tmp_path):
    async with outbox_at(tmp_path / "o.db") as outbox:
        await outbox.put(reading(1))
        await outbox.put(reading(1))
        assert await payloads(outbox) == [b"1"]


async def test_a_message_that_was_sent_outlives_its_expiry_but_telemetry_does_not(tmp_path):
    now_ms = 1000
    clock = Clock()
    async with outbox_at(tmp_path / "o.db", clock_ms=lambda: now_ms, clock_s=clock) as outbox:
        await outbox.put(message(b"command", receipt=b"c", expires_at_ms=2000))
        await outbox.put(reading(1, expires_at_ms=2000))
        await send(outbox)
        now_ms = 3000
        clock.now_s += 10.0
        assert await payloads(outbox) == [b"command"]
        assert outbox.stats.expired == 1


async def test_after_a_restart_what_awaited_a_receipt_is_sent_again_whatever_its_expiry(tmp_path):
    now_ms = 1000
    async with outbox_at(tmp_path / "o.db", clock_ms=lambda: now_ms) as outbox:
        await outbox.put(message(b"command", receipt=b"c", expires_at_ms=2000))
        await send(outbox)
    now_ms = 3000
    async with outbox_at(tmp_path / "o.db", clock_ms=lambda: now_ms) as outbox:
        assert await payloads(outbox) == [b"command"]


async def test_whoever_comes_back_is_asked_soon(tmp_path):
    clock = Clock()
    async with outbox_at(tmp_path / "o.db", clock_s=clock) as outbox:
        await outbox.put(message(b"command", receipt=b"c"))
        await send(outbox)
        outbox.hurry([b"c", b"unknown"], in_s=2.0)
        clock.now_s += 1.9
        assert await payloads(outbox) == []
        clock.now_s += 0.1
        assert await payloads(outbox) == [b"command"]


async def test_a_message_that_is_to_wait_is_on_the_disk_meanwhile_and_leaves_at_its_time(tmp_path):
    clock = Clock()
    async with outbox_at(tmp_path / "o.db", clock_s=clock) as outbox:
        await outbox.put(message(b"later", receipt=b"c"), not_before_s=5.0)
        assert await payloads(outbox) == []
        assert await on_disk(outbox) == 1
        clock.now_s += 5.0
        assert await payloads(outbox) == [b"later"]


async def test_whoever_waits_for_work_wakes_up_when_a_message_is_due(tmp_path):
    async with outbox_at(tmp_path / "o.db") as outbox, asyncio.timeout(5):
        await outbox.put(message(b"later", receipt=b"c"), not_before_s=0.05)
        await outbox.wait()
        assert await payloads(outbox) == [b"later"]


async def test_a_stream_keeps_to_its_own_limit_and_leaves_the_others_alone(tmp_path):
    async with outbox_at(tmp_path / "o.db") as outbox:
        size = message(b"0").size_bytes
        await outbox.put(OutboxMessage(topic="other", payload=b"o", droppable=True))
        for n in range(5):
            await outbox.put(message(b"%d" % n, droppable=True), stream_bytes=3 * size)
        assert await payloads(outbox) == [b"o", b"2", b"3", b"4"]
        assert outbox.stats.dropped == 2


# --- messages that are held


async def prompt(outbox: Outbox) -> None:
    """Have the outbox learn that receipts come."""
    await outbox.put(message(b"first", receipt=b"first"))
    await send(outbox)
    outbox.received([b"first"])
    await outbox.flush_deletions()


async def held(outbox: Outbox, *numbers: int) -> list[asyncio.Task[None]]:
    """Begin to put these readings; they are in the outbox when this returns."""
    puts = [asyncio.create_task(outbox.put(reading(n), hold=True)) for n in numbers]
    await asyncio.sleep(0)
    return puts


async def test_a_reading_whose_receipt_comes_at_once_is_never_written(tmp_path):
    async with outbox_at(tmp_path / "o.db") as outbox:
        await prompt(outbox)
        (put,) = await held(outbox, 1)
        assert await send(outbox) == [b"1"]
        assert not put.done()
        outbox.received([b"r1"])
        await put
        assert (len(outbox), await on_disk(outbox), outbox.deletions_due) == (0, 0, 0)


async def test_a_reading_whose_receipt_does_not_come_is_written_and_the_next_one_not_held(tmp_path):
    async with outbox_at(tmp_path / "o.db") as outbox:
        await prompt(outbox)
        (put,) = await held(outbox, 1)
        await put
        assert await on_disk(outbox) == 1
        await outbox.put(reading(2), hold=True)
        assert await on_disk(outbox) == 2
        assert await payloads(outbox) == [b"1", b"2"]


async def test_nothing_is_held_before_a_first_receipt_or_on_a_new_connection(tmp_path):
    async with outbox_at(tmp_path / "o.db") as outbox:
        await outbox.put(reading(1), hold=True)
        await prompt(outbox)
        outbox.link_opened(session_present=True)
        await outbox.put(reading(2), hold=True)
        assert await on_disk(outbox) == 2


async def test_many_at_a_time_share_one_commit(tmp_path):
    async with outbox_at(tmp_path / "o.db") as outbox:
        await prompt(outbox)
        puts = await held(outbox, *range(8))
        await asyncio.gather(*puts)
        assert await on_disk(outbox) == 8
        assert await payloads(outbox) == [b"%d" % n for n in range(8)]


async def test_what_is_held_is_written_when_the_process_leaves(tmp_path):
    async with outbox_at(tmp_path / "o.db") as outbox:
        await prompt(outbox)
        puts = await held(outbox, 1, 2)
        await outbox.flush()
        await asyncio.gather(*puts)
        assert await on_disk(outbox) == 2


async def test_a_receipt_during_the_write_leaves_nothing_on_the_disk(tmp_path):
    async with outbox_at(tmp_path / "o.db") as outbox:
        await prompt(outbox)
        (put,) = await held(outbox, 1)
        flushing = asyncio.create_task(outbox.flush())
        await asyncio.sleep(0)
        outbox.received([b"r1"])
        await put
        await flushing
        await outbox.flush_deletions()
        assert (len(outbox), await on_disk(outbox)) == (0, 0)


async def test_a_held_reading_that_the_disk_refuses_is_an_error_and_forgotten(tmp_path):
    async with outbox_at(tmp_path / "o.db") as outbox:
        await prompt(outbox)
        await outbox.store.write(lambda connection: connection.execute("DROP TABLE outbox"))
        (put,) = await held(outbox, 1)
        with pytest.raises(Exception, match="outbox"):
            await put
        assert len(outbox) == 0


async def test_a_look_that_finds_a_held_row_before_its_write_returned_takes_it_once(tmp_path):
    async with outbox_at(tmp_path / "o.db") as outbox:
        await prompt(outbox)
        puts = await held(outbox, 1)
        taken: list[bytes] = []

        async def take() -> None:
            taken.extend(await payloads(outbox))
            taken.extend(await payloads(outbox))

        outbox.changed()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(take())
            tasks.create_task(outbox.flush())
        await asyncio.gather(*puts)
        assert taken == [b"1"]
        outbox.received([b"r1"])
        await outbox.flush_deletions()
        assert await on_disk(outbox) == 0


async def test_a_table_of_the_first_version_is_taken_over(tmp_path):
    path = tmp_path / "o.db"
    async with outbox_at(path) as outbox:
        await outbox.put(message(b"old"))
        await outbox.store.write(
            lambda connection: [
                *(
                    connection.execute(f"ALTER TABLE outbox DROP COLUMN {column}")
                    for column in ("receipt", "keep_until_ms", "properties")
                ),
                connection.execute("UPDATE shoal_schema SET version = 1"),
            ]
        )
    async with outbox_at(path) as outbox:
        await outbox.put(reading(1))
        assert await payloads(outbox) == [b"old", b"1"]


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9)), max_size=40))
async def test_whatever_happens_a_reading_is_there_until_its_receipt(tmp_path_factory, plan):
    path = tmp_path_factory.mktemp("outbox") / "o.db"
    clock = Clock()
    puts: list[asyncio.Task[None]] = []
    alive: set[int] = set()
    async with outbox_at(path, clock_s=clock) as outbox:
        await prompt(outbox)
        numbers = iter(range(1000))
        for action, n in plan:
            match action:
                case 0:
                    fresh = next(numbers)
                    alive.add(fresh)
                    puts += await held(outbox, fresh)
                case 1:
                    fresh = next(numbers)
                    alive.add(fresh)
                    await outbox.put(reading(fresh))
                case 2:
                    await send(outbox, anybody=n % 2 == 0)
                case 3:
                    outbox.received([b"r%d" % n])
                    alive.discard(n)
                case 4:
                    await outbox.take(max_rows=n, max_bytes=1 << 20)
                    outbox.link_opened(session_present=n % 2 == 0)
                    outbox.received([])
                case 5:
                    clock.now_s += n * 10.0
                case 6:
                    await outbox.flush()
        await outbox.flush()
        await asyncio.gather(*puts)
        outbox.link_opened(session_present=False)
        assert len(outbox) == len(alive)
        # Held ones stand where they were put, whatever was written when.
        assert await payloads(outbox) == [b"%d" % n for n in sorted(alive)]
    async with outbox_at(path) as outbox:
        assert sorted(await payloads(outbox)) == sorted(b"%d" % n for n in alive)
