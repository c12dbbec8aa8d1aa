import asyncio
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_broker.bus_errors import MessageTooLargeError, OutboxFullError
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
        outbox.done(rows[1].id)
        outbox.put_back_all()
        assert await payloads(outbox) == [b"0", b"2", b"3", b"4"]


async def test_rows_that_are_through_are_deleted_many_in_one_write(tmp_path):
    async with outbox_at(tmp_path / "o.db") as outbox:
        await asyncio.gather(*(outbox.put(message()) for _ in range(300)))
        for row in await outbox.take(max_rows=300, max_bytes=1 << 20):
            outbox.done(row.id)
        assert len(outbox) == 0
        assert await on_disk(outbox) == 300
        await outbox.flush_deletions()
        assert await on_disk(outbox) == 0
        assert outbox.deletions_due == 0


async def test_a_put_takes_pending_deletions_along(tmp_path):
    async with outbox_at(tmp_path / "o.db") as outbox:
        await outbox.put(message(b"1"))
        outbox.done((await outbox.take(max_rows=1, max_bytes=1))[0].id)
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
        outbox.put_back_all()
        assert await payloads(outbox) == [b"new"]


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


@settings(max_examples=25, deadline=None)
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
                    outbox.done(row.id)
                    left.append(int(row.message.payload))
                    wanted.pop(left[-1])
        rest = [int(payload) for payload in await payloads(outbox)]
    assert rest == sorted(wanted, key=lambda n: (-wanted[n][0], n))
    assert len(set(left)) == len(left)
