"""Passwords of clients that wait for CONNACK: checked in threads, guesses slowed down. Knows no MQTT packets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from shoal_broker.server.core import BrokerCore
from shoal_broker.server.events import AuthenticationWanted
from shoal_broker.server.link import PASSWORD, Link
from shoal_broker.server.passwords import Passwords
from shoal_broker.server.rates import Guesses

PASSWORD_THREADS = 2


class PasswordChecks:
    """The checks under way. `after` is called when the core was told of one."""

    def __init__(
        self, core: BrokerCore, *, clock: Callable[[], float], after: Callable[[], None]
    ) -> None:
        self.guesses = Guesses()
        self.under_way: dict[Link, asyncio.Task[None]] = {}
        self._core = core
        self._clock = clock
        self._after = after
        self._turns = asyncio.Semaphore(PASSWORD_THREADS)

    def begin(
        self, wanted: AuthenticationWanted, passwords: Passwords, tasks: asyncio.TaskGroup
    ) -> None:
        """Check it, and tell the core; the client is not read until then."""
        link = cast("Link", wanted.connection.owner)
        link.hold(PASSWORD)
        self.under_way[link] = tasks.create_task(
            self._check(link, wanted, passwords), name="broker.password"
        )

    def cancel(self, link: Link) -> None:
        """The client is gone: its password is not worth 50 ms of a processor."""
        check = self.under_way.pop(link, None)
        if check is not None:
            check.cancel()

    async def _check(self, link: Link, wanted: AuthenticationWanted, passwords: Passwords) -> None:
        connection, user, password = wanted.connection, wanted.user_name, wanted.password
        accepted = passwords.recognises(user, password)
        if not accepted:
            wait_s = self.guesses.wait_s(link.address, self._clock())
            if wait_s is None:
                self._core.guessed_too_often(connection)
                self._after()
                return
            await asyncio.sleep(wait_s)
            async with self._turns:
                accepted = await asyncio.to_thread(passwords.verify, user, password)
        self.under_way.pop(link, None)
        if not accepted:
            self.guesses.failed(link.address, self._clock())
        self._core.authenticated(connection, self._clock(), accepted=accepted)
        link.read_on(PASSWORD)
        self._after()
