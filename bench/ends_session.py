"""The two ends of the command path on Shoal's Session: real messages, dedupe on. For ends.py.

`session-memory`: the node remembers ids in memory, nothing is on disk. `session-durable`: the command
waits in the hub's outbox for its answer, and id and answer are one commit of the node before its PUBACK. With
`-aiomqtt` behind it the same on the aiomqtt transport, with `-signed` commands that the hub signs and the node checks.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ends import COMMANDS_TOPIC, RESULTS_TOPIC, TIMEOUT_S, Answers, Task, measure_hub, say_ready
from load import IN_FLIGHT
from measure import BenchError
from shoal_agent.journal import Journal, add_command, find_answer
from shoal_agent.trust import Trust
from shoal_broker import outbox as outbox_rows
from shoal_broker.outbox import Outbox, OutboxMessage
from shoal_broker.session import Inbound, Lane, Session, SessionConfig, SideBySide, Subscriber
from shoal_broker.store import Store
from shoal_contract import messages
from shoal_contract.messages import Command, CommandUpdate, State
from shoal_contract.signatures import Signer
from shoal_fleet.issuer import Issuer

EXPIRES_S = 60
SEED = bytes(32)
REMEMBERED = 10_000


def run(role: str, kind: str, task: Task) -> None:
    """One end until it is done (hub) or ended (node)."""
    _, memory_or_disk, *more = kind.split("-")
    end = hub if role == "hub" else node
    asyncio.run(
        end(
            task,
            is_durable=memory_or_disk == "durable",
            is_signed="signed" in more,
            transport="aiomqtt" if "aiomqtt" in more else "codec",
        )
    )


async def hub(task: Task, *, is_durable: bool, is_signed: bool, transport: str) -> None:
    """Sends commands as the controller does, and takes the updates."""
    answers = Answers()
    issuer = Issuer(Signer(SEED) if is_signed else None)
    async with contextlib.AsyncExitStack() as stack:
        outbox = await _open_outbox(stack, task, "hub.db") if is_durable else None

        async def on_update(inbound: Inbound) -> None:
            update = messages.decode_as(inbound.payload, CommandUpdate)
            if outbox is not None:
                outbox.received((update.id,))
            answers.came(int.from_bytes(update.id))

        session = await stack.enter_async_context(
            _session(task, "bench-hub", transport, outbox, {RESULTS_TOPIC: on_update})
        )

        async def ask(number: int) -> None:
            now_ms = _now_ms()
            command = Command(
                id=number.to_bytes(8),
                op="device.set",
                args={"channel": 2, "value": 7},
                issued_ms=now_ms,
                expires_ms=now_ms + EXPIRES_S * 1000,
            )
            answer = answers.expect(number)
            await session.publish(
                COMMANDS_TOPIC,
                issuer.sealed(messages.encode(command), topic=COMMANDS_TOPIC),
                expiry_s=EXPIRES_S,
                lane=Lane.URGENT,
                durable=is_durable,
                receipt=command.id if is_durable else None,
            )
            await answer

        await measure_hub(ask, task)


async def node(task: Task, *, is_durable: bool, is_signed: bool, transport: str) -> None:
    """Answers commands as a node does, and a repeat with the first answer."""
    trust = Trust([Signer(SEED).public_key] if is_signed else [])
    async with contextlib.AsyncExitStack() as stack:
        session: Session | None = None
        outbox = None
        if is_durable:
            outbox = await _open_outbox(stack, task, "node.db")
            journal = await Journal.load(outbox.store)

            async def commit(inbound: Inbound) -> None:
                command = _opened(inbound, trust)
                first = CommandUpdate(command.id, State.SUCCEEDED, _now_ms())

                def write(db: sqlite3.Connection) -> None:
                    earlier = find_answer(db, command.id)
                    if earlier is None:
                        add_command(db, command, first)
                    update = messages.encode(earlier or first)
                    outbox_rows.insert(db, OutboxMessage(topic=RESULTS_TOPIC, payload=update))

                await journal.store.write(write)
                if session is not None:
                    session.outbox_changed()

            subscriber = SideBySide(commit, at_once=IN_FLIGHT)
        else:
            seen: dict[bytes, bytes] = {}

            async def remember(inbound: Inbound) -> None:
                command = _opened(inbound, trust)
                answer = seen.get(command.id)
                if answer is None:
                    update = CommandUpdate(command.id, State.SUCCEEDED, _now_ms())
                    answer = seen[command.id] = messages.encode(update)
                    if len(seen) > REMEMBERED:
                        del seen[next(iter(seen))]
                if session is not None:
                    await session.publish(RESULTS_TOPIC, answer, durable=False)

            subscriber = SideBySide(remember, at_once=IN_FLIGHT)
        session = await stack.enter_async_context(
            _session(task, "bench-node", transport, outbox, {COMMANDS_TOPIC: subscriber})
        )
        say_ready()
        await asyncio.Event().wait()


def _opened(inbound: Inbound, trust: Trust) -> Command:
    opened = trust.open(inbound.payload, topic=inbound.topic)
    if opened is None:
        raise BenchError("a command without the hub's signature")
    return messages.decode_as(opened[0], Command)


@asynccontextmanager
async def _session(
    task: Task,
    client_id: str,
    transport: str,
    outbox: Outbox | None,
    subscriptions: dict[str, Subscriber],
) -> AsyncIterator[Session]:
    config = SessionConfig(
        host="127.0.0.1",
        port=task.port,
        client_id=client_id,
        session_expiry_s=0,
        transport="aiomqtt" if transport == "aiomqtt" else "codec",
    )
    async with Session.open(config, outbox=outbox, subscriptions=subscriptions) as session:
        await session.wait_connected(TIMEOUT_S)
        yield session


async def _open_outbox(stack: contextlib.AsyncExitStack, task: Task, name: str) -> Outbox:
    return await Outbox.load(await stack.enter_async_context(Store.open(task.folder / name)))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
