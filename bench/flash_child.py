"""`flash_child.py session|naive PORT COUNT FOLDER`: writes messages to an outbox on disk; started by idle.py.

`session`: one a second as an agent's pipeline does, through Session and outbox, to the broker. `naive`:
what one writes first: WAL, synchronous FULL, a commit to insert a message and one to delete it. Each
prints `ready`, waits for a line, prints `done`, and waits for another line before it closes the file.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import sys
from pathlib import Path

import structlog

from shoal_broker.outbox import Lane, Outbox
from shoal_broker.session import Session, SessionConfig
from shoal_broker.store import Store
from shoal_contract.topics import Topics

PAYLOAD = b"\xa5" * 60
TIMEOUT_S = 30.0
NODE = "bench-flash"


async def session(port: int, count: int, folder: Path) -> None:
    """One message a second, and a moment for the last one's deletion."""
    topic = Topics().telemetry(NODE, "digits")
    config = SessionConfig(host="127.0.0.1", port=port, client_id=NODE, transport="codec")
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(Store.open(folder / "agent.db"))
        outbox = await Outbox.load(store)
        bus = await stack.enter_async_context(Session.open(config, outbox=outbox))
        await bus.wait_connected(TIMEOUT_S)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, _say_and_wait, "ready")
        started_s = loop.time()
        for number in range(count):
            await asyncio.sleep(max(0.0, started_s + number - loop.time()))
            await bus.publish(topic, PAYLOAD, lane=Lane.TELEMETRY, droppable=True)
        await asyncio.sleep(max(0.0, started_s + count - loop.time()))
        await loop.run_in_executor(None, _say_and_wait, "done")


def naive(count: int, folder: Path) -> None:
    """As quick as the disk allows: what is written does not depend on when."""
    with contextlib.closing(
        sqlite3.connect(folder / "agent.db", isolation_level=None)
    ) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE outbox (id INTEGER PRIMARY KEY, topic TEXT, payload BLOB)")
        _say_and_wait("ready")
        for number in range(count):
            connection.execute("INSERT INTO outbox VALUES (?, ?, ?)", (number, "t", PAYLOAD))
            connection.execute("DELETE FROM outbox WHERE id = ?", (number,))
        _say_and_wait("done")


def _say_and_wait(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()
    sys.stdin.readline()


def main(kind: str, port: int, count: int, folder: Path) -> None:
    """Run one of the two."""
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    )
    if kind == "session":
        asyncio.run(session(port, count, folder))
    else:
        naive(count, folder)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
