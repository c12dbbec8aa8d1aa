"""Tells the service manager that a program runs and is alive (sd_notify(3)). Knows no program, reads no environment."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NoReturn, Self

_BEATS_A_TIMEOUT = 3
"""sd_watchdog_enabled(3) asks for at least two: one that comes late must not be the end."""


@dataclass(frozen=True, slots=True)
class ServiceManager:
    """Who started us, if it wants to hear anything.

    Attributes:
        address: its datagram socket; None: nobody listens, and everything here does nothing.
        watchdog_s: it ends a program that was silent for so long; None: it does not look.
    """

    address: str | None = None
    watchdog_s: float | None = None

    @classmethod
    def of(cls, environment: Mapping[str, str], *, pid: int) -> Self:
        """What the environment of the process `pid` says; what cannot be read counts as not said."""
        address = environment.get("NOTIFY_SOCKET", "")
        if address[:1] not in {"/", "@"}:
            return cls()
        text = environment.get("WATCHDOG_USEC", "")
        ours = environment.get("WATCHDOG_PID", str(pid)) == str(pid)
        watched = ours and text.isascii() and text.isdecimal() and int(text) > 0
        return cls(address, int(text) / 1e6 if watched else None)

    def ready(self) -> None:
        """The program does what it is for from now on."""
        self._say(b"READY=1")

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Tell that the event loop turns, for as long as the block lasts; then that the program ends."""
        beating = None if self.watchdog_s is None else asyncio.create_task(self._beat())
        try:
            yield
        finally:
            self._say(b"STOPPING=1")
            if beating is not None:
                beating.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await beating

    async def _beat(self) -> NoReturn:
        assert self.watchdog_s is not None  # noqa: S101 - for mypy: `watched` looked
        while True:
            self._say(b"WATCHDOG=1")
            await asyncio.sleep(self.watchdog_s / _BEATS_A_TIMEOUT)

    def _say(self, state: bytes) -> None:
        if self.address is None:
            return
        address = self.address.replace("@", "\0", 1) if self.address[0] == "@" else self.address
        # A service manager that does not listen is no reason to stop; its own timeout says the rest.
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line,
        ):
            line.setblocking(False)
            line.sendto(state, address)
