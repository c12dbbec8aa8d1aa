"""Brokers that are bridged to one another, and clients at them that keep what they get."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from shoal_broker.link import Inbound
from shoal_broker.server.bridge.table import BridgeTable
from shoal_broker.session import Session, SessionConfig

DEADLINE_S = 10.0
QUICK: dict[str, Any] = {"backoff_initial_s": 0.02, "backoff_max_s": 0.1, "transport": "codec"}


class QuickBridge(BridgeTable, frozen=True, kw_only=True):
    """A bridge that comes back at once, for tests that cut it off."""

    def session(self, client_id: str) -> SessionConfig:
        """As any table's."""
        settings = super().session(client_id)
        for name, value in QUICK.items():
            object.__setattr__(settings, name, value)
        return settings


def bridge(port: int, *topics: tuple[str, ...], name: str = "up", **keys: Any) -> BridgeTable:
    """A bridge to a broker on this machine; `topics`: filter, direction, local and remote prefix."""
    names = ("filter", "direction", "local_prefix", "remote_prefix")
    table = {"name": name, "host": "127.0.0.1", "port": port} | keys
    table["topic"] = [dict(zip(names, topic, strict=False)) for topic in topics]
    return msgspec.convert(table, QuickBridge)


class Sink:
    """A subscriber that keeps what it got, and lets a test wait for it."""

    def __init__(self) -> None:
        self.got: list[Inbound] = []
        self._arrived = asyncio.Event()

    async def __call__(self, inbound: Inbound) -> None:
        self.got.append(inbound)
        self._arrived.set()

    @property
    def payloads(self) -> list[bytes]:
        return [inbound.payload for inbound in self.got]

    async def wait(self, is_there: Callable[[Sink], bool]) -> None:
        """Return when it is there."""
        async with asyncio.timeout(DEADLINE_S):
            while not is_there(self):
                self._arrived.clear()
                await self._arrived.wait()

    async def wait_payload(self, payload: bytes) -> None:
        """Return when a message with it is there."""
        await self.wait(lambda sink: payload in sink.payloads)


@asynccontextmanager
async def client(port: int, client_id: str, *filters: str) -> AsyncIterator[tuple[Session, Sink]]:
    """A client that sees messages with all that they carry."""
    config = SessionConfig(
        host="127.0.0.1", port=port, client_id=client_id, is_bridge=True, **QUICK
    )
    sink = Sink()
    async with Session.open(config, subscriptions=dict.fromkeys(filters, sink)) as session:
        await session.wait_connected(DEADLINE_S)
        yield session, sink


async def until(is_so: Callable[[], bool]) -> None:
    """Return when it is so: for what nobody is told of."""
    async with asyncio.timeout(DEADLINE_S):
        while not is_so():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.005)
