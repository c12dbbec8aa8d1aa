"""The keeper over a board's life: the first certificate, renewals, wrong clocks, doors that are closed."""

import asyncio
from contextlib import asynccontextmanager

import pytest
import structlog.testing
from tests.support.enrolling import DAY_MS

from shoal_agent.errors import IdentityError
from shoal_agent.identity.config import EnrolmentTable
from shoal_agent.identity.keeper import Keeper
from shoal_agent.identity.store import AUTHORITY, CERTIFICATE, KEY, Facts, IdentityStore
from shoal_agent.identity.task import Outcome

NOW_MS = 1_790_000_000_000
TABLE = EnrolmentTable(url="https://localhost:8884", ca_pin="sha256:" + "00" * 32)


class Board:
    """A keeper whose door is this object, and whose clocks the test sets; sleeping costs no time."""

    def __init__(self, state_dir) -> None:
        self.store = IdentityStore(state_dir)
        self.now_ms = NOW_MS
        self.door_ms = NOW_MS
        self.monotonic_s = 1000.0
        self.answers = []
        self.asked = 0
        self.reconnects = 0
        self.asleep = asyncio.Event()
        self.wakes = asyncio.Event()
        self.keeper = Keeper(
            TABLE,
            node="press-4",
            state_dir=state_dir,
            clock_ms=lambda: self.now_ms,
            clock_s=lambda: self.monotonic_s,
            sleep=self.sleep,
            ask=self.ask,
        )

    def issue(self, node="press-4", *, begins_ms=None) -> Facts:
        begins_ms = self.door_ms if begins_ms is None else begins_ms
        with self.store.locked():
            self.store.recover()
            self.store.keep_next_key(b"key")
            facts = Facts(
                node=node,
                key=f"{self.asked:064x}",
                not_before_ms=begins_ms,
                not_after_ms=begins_ms + 30 * DAY_MS,
            )
            self.store.adopt(b"certificate", b"authority", facts)
        return facts

    async def ask(self, task) -> Outcome:
        self.asked += 1
        answer = self.answers.pop(0) if self.answers else "issued"
        if isinstance(answer, Exception):
            raise answer
        if answer == "issued":
            self.issue()
            return Outcome(kind="issued", door_ms=self.door_ms)
        return Outcome(kind=answer, retry_s=30 if answer == "pending" else 0, reason="a reason")

    async def renewed(self) -> None:
        self.reconnects += 1

    async def pass_time(self, seconds: float) -> None:
        """So much time goes by, a sleep of the keeper at a time."""
        ends_s = self.monotonic_s + seconds
        while self.monotonic_s < ends_s:
            self.asleep.clear()
            self.wakes.set()
            await self.asleep.wait()

    async def sleep(self, seconds: float) -> None:
        self.asleep.set()
        await self.wakes.wait()
        self.wakes.clear()
        self.monotonic_s += max(seconds, 0.001)
        self.now_ms += round(seconds * 1000)
        self.door_ms += round(seconds * 1000)

    @asynccontextmanager
    async def running(self):
        task = asyncio.create_task(self.keeper.run(self.renewed))
        try:
            async with asyncio.timeout(45):
                await self.asleep.wait()
                yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def board(tmp_path):
    return Board(tmp_path)


async def test_a_new_board_asks_until_it_has_a_certificate_and_is_enrolled_then(board):
    board.answers = ["unreachable", "not_trusted", IdentityError("died"), "pending", "refused"]
    async with board.running():
        assert not board.keeper.enrolled.is_set()
        await board.pass_time(700)
        assert board.keeper.enrolled.is_set()
    assert (board.asked, board.keeper.issued, board.keeper.failures) == (6, 1, 0)
    # The first one interrupts no connection.
    assert board.reconnects == 0


async def test_it_renews_ten_days_in_and_has_the_session_connect_anew(board):
    board.issue()
    async with board.running():
        assert board.keeper.enrolled.is_set()
        board.now_ms = board.door_ms = NOW_MS + 9 * DAY_MS
        await board.pass_time(120)
        assert board.asked == 0
        board.now_ms = board.door_ms = NOW_MS + 14 * DAY_MS
        await board.pass_time(120)
    assert (board.asked, board.reconnects) == (1, 1)


async def test_a_clock_of_1970_is_an_alarm_and_is_waited_out(board):
    board.issue()
    board.now_ms = 0
    with structlog.testing.capture_logs() as logs:
        async with board.running():
            await board.pass_time(600)
            assert board.asked == 0
            assert [entry["event"] for entry in logs] == ["clock is wrong"]
            # Within a minute of the right time everything is as it should be.
            board.now_ms = NOW_MS + 14 * DAY_MS
            await board.pass_time(61)
    assert board.asked == 1


async def test_a_clock_that_is_ten_years_ahead_asks_now_and_then_and_not_without_end(board):
    board.issue()
    board.now_ms = NOW_MS + 3650 * DAY_MS
    with structlog.testing.capture_logs() as logs:
        async with board.running():
            await board.pass_time(6 * 3600)
    assert board.asked == 1
    events = [entry["event"] for entry in logs if entry["log_level"] == "error"]
    assert set(events) == {"certificate expires soon", "clock is wrong"}


async def test_an_alarm_that_stands_is_said_once_an_hour(board):
    board.issue(begins_ms=NOW_MS - 25 * DAY_MS)
    board.answers = ["unreachable"] * 10_000
    with structlog.testing.capture_logs() as logs:
        async with board.running():
            await board.pass_time(2 * 3600 + 100)
    assert [entry["event"] for entry in logs].count("certificate expires soon") == 3


async def test_a_board_that_gets_another_name_asks_anew(board):
    board.issue("press-3")
    assert not board.keeper.enrolled.is_set()
    async with board.running():
        assert board.keeper.enrolled.is_set()
    assert board.keeper.facts.node == "press-4"


async def test_an_issue_that_a_kill_left_without_its_link_is_used_without_asking(board):
    board.issue()
    board.store.current.unlink()
    (board.store.folder / ".current.abcd.part").symlink_to("0001")
    board.keeper._take_over()
    async with board.running():
        assert board.keeper.enrolled.is_set()
    assert board.asked == 0
    assert {path.name for path in board.store.folder.iterdir()} == {"0001", "current", "lock"}


def test_an_issue_that_is_not_whole_is_none(tmp_path):
    store = IdentityStore(tmp_path)
    facts = Facts(node="a", key="00", not_before_ms=0, not_after_ms=1)
    with store.locked():
        for _ in range(2):
            store.keep_next_key(b"key")
            store.adopt(b"certificate", b"authority", facts)
        for name, content in ((KEY, b""), (CERTIFICATE, None), (AUTHORITY, None)):
            if content is None:
                (store.folder / "0002" / name).unlink()
            else:
                (store.folder / "0002" / name).write_bytes(content)
            store.recover()
            assert str(store.current.readlink()) == "0001"
