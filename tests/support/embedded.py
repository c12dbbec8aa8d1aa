"""The embedded broker in a thread of its own, for tests whose clients block."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.shoal_broker.render.rendered_mosquitto import Authority

from shoal_broker.server import Broker, BrokerConfig
from shoal_broker.server.config import Tls

START_TIMEOUT_S = 5.0


@contextmanager
def embedded(config: BrokerConfig) -> Iterator[Broker]:
    """Started and listening; what it needs to close it does before the block is left."""
    ready = threading.Event()
    opened: list[Broker] = []

    async def serve() -> None:
        async with Broker.open(config) as broker:
            opened.append(broker)
            stopped = asyncio.Event()
            stops.append(lambda: loop.call_soon_threadsafe(stopped.set))
            loop = asyncio.get_running_loop()
            ready.set()
            await stopped.wait()

    stops = []
    thread = threading.Thread(target=asyncio.run, args=[serve()], name="embedded broker")
    thread.start()
    try:
        assert ready.wait(START_TIMEOUT_S), "the broker does not start"
        yield opened[0]
    finally:
        for stop in stops:
            stop()
        thread.join()


def tls_of(authority: Authority, **given: Path | None) -> Tls:
    """A certificate for localhost; clients must have one of the same authority."""
    certificate, key = authority.issue("localhost", "broker")
    known = {
        "cert_file": Path(certificate),
        "key_file": Path(key),
        "client_ca_file": authority.folder / "ca.crt",
    }
    return Tls(**known | given)
