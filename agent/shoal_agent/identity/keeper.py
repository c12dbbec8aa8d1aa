"""Keeps the board's certificate: gets the first one, and a new one in time, for as long as the agent runs."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, NoReturn

import structlog

from shoal_agent.errors import IdentityError
from shoal_agent.identity import schedule
from shoal_agent.identity.attempt import attempt
from shoal_agent.identity.config import EnrolmentTable
from shoal_agent.identity.store import Facts, IdentityStore
from shoal_agent.identity.task import Outcome, Task

log = structlog.get_logger()

SAY_AGAIN_S: Final = 3600.0


class Keeper:
    """One board's identity over time.

    Attributes:
        enrolled: set once there is a certificate.
        facts: of the certificate in use.
        failures: attempts in a row that brought none.
        issued: certificates that were brought.

    Args:
        table: where the door is, and whom to trust there.
        node: our id.
        state_dir: where the identity lies.
        hardware: a line about this board, for the person who accepts it.
        clock_ms: the board's clock.
        clock_s: one that nobody sets.
        sleep: waits.
        ask: makes one attempt.
    """

    def __init__(
        self,
        table: EnrolmentTable,
        *,
        node: str,
        state_dir: Path,
        hardware: str = "",
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        clock_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        ask: Callable[[Task], Awaitable[Outcome]] = attempt,
    ) -> None:
        self.enrolled = asyncio.Event()
        self.failures = 0
        self.issued = 0
        self._table = table
        self._node = node
        self._state_dir = state_dir
        self._hardware = hardware
        self._clock_ms = clock_ms
        self._clock_s = clock_s
        self._sleep = sleep
        self._ask = ask
        self._store = IdentityStore(state_dir)
        self._quiet_until_s = 0.0
        self._said_s: dict[str, float] = {}
        self.facts: Facts | None = None
        self._take_over()

    async def run(self, renewed: Callable[[], Awaitable[None]]) -> NoReturn:
        """Look for ever; `renewed` is called when the files have changed under a connection."""
        await asyncio.to_thread(self._recover)
        while True:
            # Somebody may have enrolled the board by hand.
            self._take_over()
            self._watch_expiry()
            if not self._is_due():
                await self._sleep(
                    schedule.look_in_s(
                        self.facts,
                        now_ms=self._clock_ms(),
                        quiet_s=self._quiet_until_s - self._clock_s(),
                    )
                )
                continue
            outcome = await self._attempt()
            if outcome.kind == "issued":
                await self._adopted(renewed)
                continue
            self.failures += 1
            self._say(outcome)
            await self._sleep(
                schedule.wait_s(outcome, self.failures, random.random())  # noqa: S311 - jitter
            )

    def _recover(self) -> None:
        """What a kill left half done is done before anything is asked for."""
        try:
            with self._store.locked():
                self._store.recover()
        except OSError as exc:
            self._say_once("identity cannot be stored", reason=f"{exc.filename}: {exc.strerror}")
        self._take_over()

    def _take_over(self) -> None:
        self.facts = self._store.facts()
        if self.facts is not None and self.facts.node == self._node:
            self.enrolled.set()

    def _is_due(self) -> bool:
        now_ms = self._clock_ms()
        if self.facts is not None and self._clock_s() < self._quiet_until_s:
            return False
        if self.facts is not None and schedule.is_clock_behind(self.facts, now_ms):
            behind_s = (self.facts.not_before_ms - now_ms) / 1000
            self._say_once("clock is wrong", behind_s=round(behind_s))
        return schedule.is_due(self.facts, node=self._node, now_ms=now_ms)

    async def _attempt(self) -> Outcome:
        now_ms = self._clock_ms()
        table = self._table
        try:
            outcome = await self._ask(
                Task(
                    state_dir=str(self._state_dir),
                    node=self._node,
                    url=table.url,
                    now_ms=now_ms,
                    ca_pin=table.ca_pin,
                    ca_file=table.ca_file,
                    token_file=table.token_file,
                    hardware=self._hardware,
                )
            )
        except IdentityError as exc:
            return Outcome(kind="unusable", reason=str(exc))
        if off_s := schedule.clock_off_s(outcome, now_ms):
            self._say_once("clock is wrong", ahead_s=round(off_s))
        return outcome

    async def _adopted(self, renewed: Callable[[], Awaitable[None]]) -> None:
        is_first = not self.enrolled.is_set()
        self.failures = 0
        self.issued += 1
        self._take_over()
        if self.facts is None:
            self._say_once("identity cannot be read", folder=str(self._store.folder))
            await self._sleep(schedule.LOOK_EVERY_S)
            return
        self._quiet_until_s = self._clock_s() + schedule.quiet_s(self.facts)
        log.info(
            "enrolled" if is_first else "certificate renewed",
            node=self._node,
            not_after_ms=self.facts.not_after_ms,
            key=self.facts.key,
        )
        if not is_first:
            await renewed()

    def _watch_expiry(self) -> None:
        if self.facts is not None and schedule.expires_soon(self.facts, self._clock_ms()):
            self._say_once("certificate expires soon", not_after_ms=self.facts.not_after_ms)

    def _say(self, outcome: Outcome) -> None:
        facts = {"url": self._table.url, "reason": outcome.reason, "key": outcome.key}
        match outcome.kind:
            case "pending":
                log.info("enrolment is pending", **facts)
            case "unreachable":
                log.info("enrolment door not reached", **facts)
            case "refused":
                log.error("enrolment refused", why=outcome.why, **facts)
            case "not_trusted":
                log.error("enrolment door not trusted", **facts)
            case _:
                log.error("enrolment impossible", **facts)

    def _say_once(self, event: str, **facts: object) -> None:
        """An alarm that stands is said once an hour."""
        now_s = self._clock_s()
        said_s = self._said_s.get(event)
        if said_s is None or now_s - said_s >= SAY_AGAIN_S:
            self._said_s[event] = now_s
            log.error(event, node=self._node, **facts)
