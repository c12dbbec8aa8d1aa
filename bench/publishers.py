"""`publishers.py KIND PORT COUNT FOLDER`: one publisher in a process of its own, started by bus.py.

It connects, warms up, prints `ready`, waits for a line on stdin, publishes COUNT messages at QoS 1
with at most IN_FLIGHT unacknowledged, waits for the last PUBACK, and prints what it took as JSON.
A requester (`request...`) waits for a reply to each instead, and warms up after the line.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import aiomqtt
import paho.mqtt.client as paho
import structlog
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from load import IN_FLIGHT, RawClient, payload
from measure import percentile
from shoal_broker.link import Transport
from shoal_broker.outbox import Outbox
from shoal_broker.session import Session, SessionConfig
from shoal_broker.store import Store

TOPIC = "bench/published"
WARM_UP_TOPIC = "bench/warm"
REPLY_TOPIC = "bench/reply"
WARM_UP = 200
TIMEOUT_S = 60.0
NODELAY = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

Publish = Callable[[str, bytes], Awaitable[None]]


def requests_sent(count: int) -> int:
    """How many requests a requester makes for COUNT that are measured with IN_FLIGHT at a time."""
    return 1 + WARM_UP + count + _single_requests(count)


async def session(
    port: int, count: int, folder: Path, *, durable: bool, transport: Transport
) -> None:
    """The Session; `durable`: through the outbox on disk."""
    config = _session_config(port, transport)
    async with contextlib.AsyncExitStack() as stack:
        outbox = None
        if durable:
            store = await stack.enter_async_context(Store.open(folder / "outbox.db"))
            outbox = await Outbox.load(store)
        bus = await stack.enter_async_context(Session.open(config, outbox=outbox))
        await bus.wait_connected(TIMEOUT_S)

        async def publish(topic: str, message: bytes) -> None:
            await bus.publish(topic, message, durable=durable)

        async def settle() -> None:
            if outbox is not None:
                await outbox.wait_sent()

        await _measure(publish, settle, count)


async def requests(port: int, count: int, transport: Transport) -> None:
    """The Session's `request`: IN_FLIGHT at a time, then one."""
    async with Session.open(_session_config(port, transport)) as bus:
        await bus.wait_connected(TIMEOUT_S)
        sequences = itertools.count()

        async def ask() -> float:
            started = time.perf_counter()
            await bus.request(
                TOPIC, payload(next(sequences)), reply_topic=REPLY_TOPIC, timeout_s=TIMEOUT_S
            )
            return time.perf_counter() - started

        async def ask_many(requests: int) -> None:
            remaining = iter(range(requests))

            async def worker() -> None:
                for _ in remaining:
                    await ask()

            async with asyncio.TaskGroup() as tasks:
                for _ in range(IN_FLIGHT):
                    tasks.create_task(worker())

        _wait_for_the_start()
        # Alone: it brings the subscription that replies come by.
        await ask()
        await ask_many(WARM_UP)
        started, cpu_before_s = time.perf_counter(), time.process_time()
        await ask_many(count)
        took_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_before_s
        singles_s = [await ask() for _ in range(_single_requests(count))]
    _print_json(
        sent=next(sequences),
        measured=count,
        took_s=took_s,
        cpu_s=cpu_s,
        p50_us=percentile(singles_s, 0.5) * 1e6,
        p99_us=percentile(singles_s, 0.99) * 1e6,
    )


def _single_requests(count: int) -> int:
    return max(1, count // 10)


def _session_config(port: int, transport: Transport) -> SessionConfig:
    return SessionConfig(
        host="127.0.0.1",
        port=port,
        client_id="bench-session",
        session_expiry_s=0,
        transport=transport,
    )


async def plain_aiomqtt(port: int, count: int) -> None:
    """Aiomqtt as its documentation shows it, with TCP_NODELAY and the same window."""
    async with aiomqtt.Client(
        "127.0.0.1",
        port,
        identifier="bench-aiomqtt",
        protocol=aiomqtt.ProtocolVersion.V5,
        max_inflight_messages=IN_FLIGHT,
        max_concurrent_outgoing_calls=IN_FLIGHT,
        socket_options=[NODELAY],
    ) as client:
        client.pending_calls_threshold = IN_FLIGHT  # below it a warning would be logged for each

        async def publish(topic: str, message: bytes) -> None:
            await client.publish(topic, message, qos=1)

        async def settle() -> None:
            """Publishing returned at the PUBACK."""

        await _measure(publish, settle, count)


def plain_paho(port: int, count: int) -> None:
    """Paho with its own network thread, TCP_NODELAY and the same window."""
    client = paho.Client(
        CallbackAPIVersion.VERSION2, client_id="bench-paho", protocol=MQTTProtocolVersion.MQTTv5
    )
    client.max_inflight_messages_set(IN_FLIGHT)
    client.on_socket_open = _set_nodelay
    connected = threading.Event()
    client.on_connect = lambda *_: connected.set()
    acknowledged = threading.Semaphore(0)
    client.on_publish = lambda *_: acknowledged.release()
    client.connect("127.0.0.1", port)
    client.loop_start()
    _within(connected.wait(TIMEOUT_S))

    def publish(topic: str, messages: int) -> None:
        for sequence in range(messages):
            client.publish(topic, payload(sequence), qos=1)
        for _ in range(messages):
            _within(acknowledged.acquire(timeout=TIMEOUT_S))

    publish(WARM_UP_TOPIC, WARM_UP)
    with _measured(count):
        publish(TOPIC, count)
    client.disconnect()
    client.loop_stop()


def _set_nodelay(_client: paho.Client, _userdata: object, opened: object) -> None:
    if isinstance(opened, socket.socket):
        opened.setsockopt(*NODELAY)


def raw(port: int, count: int) -> None:
    """The floor: the codec on a blocking socket."""
    with RawClient.open(port, "bench-raw") as client:
        client.publish(WARM_UP_TOPIC, WARM_UP, in_flight=IN_FLIGHT)
        with _measured(count):
            client.publish(TOPIC, count, in_flight=IN_FLIGHT)


async def _measure(publish: Publish, settle: Callable[[], Awaitable[None]], count: int) -> None:
    async def publish_all(topic: str, messages: int) -> None:
        sequences = iter(range(messages))

        async def worker() -> None:
            for sequence in sequences:
                await publish(topic, payload(sequence))

        async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as tasks:
            for _ in range(IN_FLIGHT):
                tasks.create_task(worker())
        async with asyncio.timeout(TIMEOUT_S):
            await settle()

    await publish_all(WARM_UP_TOPIC, WARM_UP)
    with _measured(count):
        await publish_all(TOPIC, count)


@contextlib.contextmanager
def _measured(count: int) -> Iterator[None]:
    """Wait for the starting line; afterwards print what publishing took."""
    _wait_for_the_start()
    started, cpu_before_s = time.perf_counter(), time.process_time()
    yield
    took_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_before_s
    _print_json(sent=count, measured=count, took_s=took_s, cpu_s=cpu_s)


def _wait_for_the_start() -> None:
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()


def _print_json(**took: float) -> None:
    sys.stdout.write(json.dumps(took) + "\n")
    sys.stdout.flush()


def _within(happened: bool) -> None:  # noqa: FBT001 - what wait() and acquire() return
    if not happened:
        raise TimeoutError(f"nothing within {TIMEOUT_S:g} s")


def main(kind: str, port: int, count: int, folder: Path) -> int:
    """Run one publisher."""
    # Not on stdout, which bus.py reads.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    match kind:
        case "outbox" | "direct":
            asyncio.run(session(port, count, folder, durable=kind == "outbox", transport="aiomqtt"))
        case "outbox-codec" | "direct-codec":
            durable = kind == "outbox-codec"
            asyncio.run(session(port, count, folder, durable=durable, transport="codec"))
        case "request":
            asyncio.run(requests(port, count, "aiomqtt"))
        case "request-codec":
            asyncio.run(requests(port, count, "codec"))
        case "aiomqtt":
            asyncio.run(plain_aiomqtt(port, count))
        case "paho":
            plain_paho(port, count)
        case "raw":
            raw(port, count)
        case _:
            sys.stderr.write(f"there is no publisher {kind!r}\n")
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])))
