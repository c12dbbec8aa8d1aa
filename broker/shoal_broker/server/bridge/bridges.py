"""The bridges of one broker, opened together and given what they need of it."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from shoal_broker.server.bridge.bridge import Bridge, Waiting
from shoal_broker.server.bridge.inside import Accept, connect_inside
from shoal_broker.server.bridge.table import BridgeTable
from shoal_broker.server.core import BrokerCore
from shoal_broker.server.reserved import inside_client_id


@asynccontextmanager
async def open_bridges(
    tables: Iterable[BridgeTable],
    core: BrokerCore,
    *,
    broker_id: str,
    accept_inside: Accept,
    tasks: asyncio.TaskGroup,
) -> AsyncIterator[list[Bridge]]:
    """Open each; they close before the broker does. Raises ConfigError, BridgeError."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                Bridge.open(
                    table,
                    broker_id=broker_id,
                    inside=connect_inside(accept_inside),
                    held=partial(_held, core, table.name),
                    tasks=tasks,
                )
            )
            for table in tables
        ]


def _held(core: BrokerCore, name: str) -> Waiting:
    session = core.router.sessions.get(inside_client_id(name))
    if session is None:
        return Waiting(0, 0, None)
    return Waiting(session.held_messages, session.held_bytes, None)
