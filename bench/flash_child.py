"""`flash_child.py KIND PORT COUNT FOLDER`: writes messages to an outbox on disk; started by idle.py.

`answered`: one a second as an agent's pipeline does, through Session and outbox, and a `receiver` (another
process) gives its receipts as the controller does. `unanswered`: the same, and nobody gives any. `naive`:
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
from shoal_broker.session import Inbound, Session, SessionConfig
from shoal_broker.store import Store
from shoal_contract import messages, receipts
from shoal_contract.messages import Receipt
from shoal_contract.topics import Topics
from shoal_fleet.issuer import Issuer
from shoal_fleet.receipts import Receipts

PAYLOAD_BYTES = 60
TIMEOUT_S = 30.0
ANSWERED = "bench-answered"


async def session(node: str, port: int, count: int, folder: Path) -> None:
    """One message a second."""
    topics = Topics()
    topic = topics.telemetry(node, "digits")
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(Store.open(folder / "agent.db"))
        outbox = await Outbox.load(store)

        async def on_receipt(inbound: Inbound) -> None:
            names = messages.decode_as(inbound.payload, Receipt).names
            outbox.received(receipts.split(names))

        subscriptions = {topics.commands(node): on_receipt}
        bus = await stack.enter_async_context(
            Session.open(_config(node, port), outbox=outbox, subscriptions=subscriptions)
        )
        await bus.wait_connected(TIMEOUT_S)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, _say_and_wait, "ready")
        started_s = loop.time()
        async with asyncio.TaskGroup() as tasks:
            for number in range(count):
                await asyncio.sleep(max(0.0, started_s + number - loop.time()))
                payload = number.to_bytes(PAYLOAD_BYTES)
                tasks.create_task(
                    bus.publish(
                        topic,
                        payload,
                        lane=Lane.TELEMETRY,
                        droppable=True,
                        receipt=receipts.name(topic, payload),
                        hold=True,
                    )
                )
            await asyncio.sleep(max(0.0, started_s + count - loop.time()))
        await loop.run_in_executor(None, _say_and_wait, "done")


async def receiver(port: int) -> None:
    """Gives receipts to `answered`; it commits nothing, which would take a few ms more."""
    topics = Topics()

    async def on_reading(inbound: Inbound) -> None:
        given.give(ANSWERED, inbound.topic, inbound.payload)

    subscriptions = {topics.telemetry(ANSWERED, "digits"): on_reading}
    async with Session.open(_config("bench-receiver", port), subscriptions=subscriptions) as bus:
        await bus.wait_connected(TIMEOUT_S)
        given = Receipts(bus, topics, issuer=Issuer(None))
        _say("ready")
        await given.run()


def _config(client_id: str, port: int) -> SessionConfig:
    return SessionConfig(
        host="127.0.0.1", port=port, client_id=client_id, session_expiry_s=0, transport="codec"
    )


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
            connection.execute(
                "INSERT INTO outbox VALUES (?, ?, ?)", (number, "t", number.to_bytes(PAYLOAD_BYTES))
            )
            connection.execute("DELETE FROM outbox WHERE id = ?", (number,))
        _say_and_wait("done")


def _say(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


def _say_and_wait(word: str) -> None:
    _say(word)
    sys.stdin.readline()


def main(kind: str, port: int, count: int, folder: Path) -> None:
    """Run one of them."""
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    )
    match kind:
        case "answered":
            asyncio.run(session(ANSWERED, port, count, folder))
        case "unanswered":
            asyncio.run(session("bench-unanswered", port, count, folder))
        case "receiver":
            asyncio.run(receiver(port))
        case _:
            naive(count, folder)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
