"""What only some brokers have, imported by those alone: a board that is no gateway lacks the packages.

Each part is a context that does nothing when it is not configured.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from shoal_broker.errors import ConfigError
from shoal_broker.server.config import BrokerConfig, Listener
from shoal_broker.server.connection import Connection
from shoal_broker.server.core import BrokerCore
from shoal_broker.server.link import Link, LinkOwner
from shoal_broker.server.router import Router

if TYPE_CHECKING:
    from shoal_broker.server.bridge.bridge import Bridge
    from shoal_broker.server.bridge.inside import Accept
    from shoal_broker.server.bridge.table import BridgeTable
    from shoal_broker.server.durable.gate import Gate
    from shoal_broker.server.metrics import Measured


@asynccontextmanager
async def metrics(config: BrokerConfig, broker: Measured) -> AsyncIterator[int | None]:
    """The port that Prometheus reads; raises ConfigError without the package."""
    if config.metrics_port is None:
        yield None
        return
    try:
        from shoal_broker.server.metrics import serve  # noqa: PLC0415 - see above
    except ImportError as exc:
        raise ConfigError("--metrics-port needs the package prometheus-client") from exc

    with serve(broker, config.metrics_host, config.metrics_port) as port:
        yield port


@asynccontextmanager
async def bridges(
    tables: Sequence[BridgeTable],
    core: BrokerCore,
    *,
    broker_id: str,
    accept_inside: Accept,
    tasks: asyncio.TaskGroup,
) -> AsyncIterator[list[Bridge]]:
    """The bridges to other brokers; raises ConfigError without the packages."""
    if not tables:
        yield []
        return
    try:
        from shoal_broker.server.bridge.bridges import open_bridges  # noqa: PLC0415 - see above
    except ImportError as exc:
        raise ConfigError(f"a bridge needs the package {exc.name}") from exc
    async with open_bridges(
        tables, core, broker_id=broker_id, accept_inside=accept_inside, tasks=tasks
    ) as opened:
        yield opened


@asynccontextmanager
async def gate(
    directory: Path | None,
    router: Router,
    *,
    clock: Callable[[], float],
    write: Callable[[Connection, bytes], None],
    read_on: Callable[[], None],
    is_gone: Callable[[Connection], bool],
) -> AsyncIterator[Gate | None]:
    """What holds answers back until they are on the disk, the state loaded; raises DurabilityError."""
    if directory is None:
        yield None
        return
    from shoal_broker.server.durable.gate import Gate  # noqa: PLC0415 - see above
    from shoal_broker.server.durable.opening import opened  # noqa: PLC0415 - see above

    async with opened(directory, router, clock=clock) as committer:
        yield Gate(committer, write=write, read_on=read_on, is_gone=is_gone)


def websocket_links(
    owner: LinkOwner, config: BrokerConfig, listener: Listener
) -> Callable[[], Link]:
    """Links that speak WebSocket; raises ConfigError without the package."""
    try:
        from shoal_broker.server.websocket import WebSocketLink  # noqa: PLC0415 - see above
    except ImportError as exc:
        raise ConfigError(f"WebSocket needs the package {exc.name}") from exc
    return lambda: WebSocketLink(owner, config, listener)
