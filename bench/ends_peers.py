"""The two ends of a plain echo on paho, aiomqtt, gmqtt and the bare codec: no dedupe, no disk. For ends.py.

Each as its own documentation shows it, with TCP_NODELAY and the same window; the node sends back what
came. `raw` has no client library at all: the floor.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import threading
import time
from typing import Any

from ends import (
    COMMANDS_TOPIC,
    RESULTS_TOPIC,
    TIMEOUT_S,
    WARM_UP,
    Answers,
    Meter,
    Task,
    measure_hub,
    print_figures,
    say_ready,
    wait_for_the_start,
)
from load import IN_FLIGHT, RawClient, payload, sequence_of, single_count

NODELAY = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def run(role: str, kind: str, task: Task) -> None:
    """One end until it is done (hub) or ended (node)."""
    match kind, role:
        case "aiomqtt", "hub":
            asyncio.run(aiomqtt_hub(task))
        case "aiomqtt", "node":
            asyncio.run(aiomqtt_node(task))
        case "gmqtt", "hub":
            asyncio.run(gmqtt_hub(task))
        case "gmqtt", "node":
            asyncio.run(gmqtt_node(task))
        case "paho", "hub":
            paho_hub(task)
        case "paho", "node":
            paho_node(task)
        case "raw", "hub":
            raw_hub(task)
        case "raw", "node":
            raw_node(task)
        case _:
            raise ValueError(f"there is no {role} on {kind}")


# ------------------------------------------------------------------ aiomqtt
def _aiomqtt(task: Task, role: str) -> Any:
    import aiomqtt  # noqa: PLC0415 - only its own ends pay for it

    client = aiomqtt.Client(
        "127.0.0.1",
        task.port,
        identifier=f"bench-{role}",
        protocol=aiomqtt.ProtocolVersion.V5,
        max_inflight_messages=IN_FLIGHT,
        max_concurrent_outgoing_calls=IN_FLIGHT,
        socket_options=[NODELAY],
    )
    client.pending_calls_threshold = IN_FLIGHT  # below it a warning would be logged for each
    return client


async def aiomqtt_hub(task: Task) -> None:
    """Publishes, and reads answers in a task of its own."""
    answers = Answers()
    async with _aiomqtt(task, "hub") as client:
        await client.subscribe(RESULTS_TOPIC, qos=1)

        async def read() -> None:
            async for message in client.messages:
                answers.came(sequence_of(message.payload))

        async def ask(number: int) -> None:
            answer = answers.expect(number)
            await client.publish(COMMANDS_TOPIC, payload(number), qos=1)
            await answer

        reader = asyncio.create_task(read())
        await measure_hub(ask, task)
        reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reader


async def aiomqtt_node(task: Task) -> None:
    """A task a message: awaiting each PUBACK in turn would be its worst, not its best."""
    async with _aiomqtt(task, "node") as client, asyncio.TaskGroup() as tasks:
        await client.subscribe(COMMANDS_TOPIC, qos=1)
        say_ready()
        async for message in client.messages:
            tasks.create_task(client.publish(RESULTS_TOPIC, message.payload, qos=1))


# ------------------------------------------------------------------ gmqtt
async def _gmqtt(task: Task, role: str, topic: str, on_message: Any) -> Any:
    import gmqtt  # noqa: PLC0415 - only its own ends pay for it

    client = gmqtt.Client(f"bench-{role}", receive_maximum=1024)
    client.on_message = on_message
    subscribed = asyncio.Event()
    client.on_subscribe = lambda *_: subscribed.set()
    # asyncio itself has switched TCP_NODELAY on.
    await client.connect("127.0.0.1", task.port)
    client.subscribe(topic, qos=1)
    async with asyncio.timeout(TIMEOUT_S):
        await subscribed.wait()
    return client


async def gmqtt_hub(task: Task) -> None:
    """Publishing is a plain call there."""
    answers = Answers()

    def on_message(_client: Any, _topic: str, message: bytes, _qos: int, _properties: Any) -> int:
        answers.came(sequence_of(message))
        return 0

    client = await _gmqtt(task, "hub", RESULTS_TOPIC, on_message)

    async def ask(number: int) -> None:
        answer = answers.expect(number)
        client.publish(COMMANDS_TOPIC, payload(number), qos=1)
        await answer

    await measure_hub(ask, task)
    await client.disconnect()


async def gmqtt_node(task: Task) -> None:
    """Answers from its callback."""

    def on_message(client: Any, _topic: str, message: bytes, _qos: int, _properties: Any) -> int:
        client.publish(RESULTS_TOPIC, message, qos=1)
        return 0

    await _gmqtt(task, "node", COMMANDS_TOPIC, on_message)
    say_ready()
    await asyncio.Event().wait()


# ------------------------------------------------------------------ paho
def _paho(task: Task, role: str, topic: str, on_message: Any) -> Any:
    import paho.mqtt.client as paho  # noqa: PLC0415 - only its own ends pay for it
    from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion  # noqa: PLC0415

    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        client_id=f"bench-{role}",
        protocol=MQTTProtocolVersion.MQTTv5,
    )
    client.max_inflight_messages_set(IN_FLIGHT)
    client.on_socket_open = lambda _client, _userdata, opened: opened.setsockopt(*NODELAY)
    client.on_message = on_message
    subscribed = threading.Event()
    client.on_connect = lambda *_: client.subscribe(topic, qos=1)
    client.on_subscribe = lambda *_: subscribed.set()
    client.connect("127.0.0.1", task.port)
    client.loop_start()
    if not subscribed.wait(TIMEOUT_S):
        raise TimeoutError(f"no SUBACK within {TIMEOUT_S:g} s")
    return client


def paho_hub(task: Task) -> None:
    """Its network thread takes the answers; ours publishes as the window allows."""
    window = threading.Semaphore(IN_FLIGHT)
    answered_s: dict[int, float] = {}

    def on_message(_client: Any, _userdata: Any, message: Any) -> None:
        answered_s.setdefault(sequence_of(message.payload), time.perf_counter())
        window.release()

    client = _paho(task, "hub", RESULTS_TOPIC, on_message)
    numbers = itertools.count()
    sent_s: list[float] = []

    def ask_many(count: int, slots: int) -> None:
        for number in itertools.islice(numbers, count):
            if not window.acquire(timeout=TIMEOUT_S):
                return
            sent_s.append(time.perf_counter())
            client.publish(COMMANDS_TOPIC, payload(number), qos=1)
        # All are answered when the whole window is free.
        for _ in range(slots):
            if not window.acquire(timeout=TIMEOUT_S):
                return
        window.release(slots)

    wait_for_the_start()
    ask_many(WARM_UP, IN_FLIGHT)
    meter = Meter(task)
    ask_many(task.count, IN_FLIGHT)
    took = meter.took()
    for _ in range(IN_FLIGHT - 1):
        window.acquire(timeout=TIMEOUT_S)
    ask_many(single_count(task.count), 1)
    first = WARM_UP + task.count
    singles_s = [at_s - sent_s[n] for n, at_s in answered_s.items() if n >= first]
    sent = WARM_UP + task.count + single_count(task.count)
    print_figures(task, took, singles_s, lost=sent - len(answered_s))
    client.disconnect()
    client.loop_stop()


def paho_node(task: Task) -> None:
    """Answers from its network thread."""

    def on_message(client: Any, _userdata: Any, message: Any) -> None:
        client.publish(RESULTS_TOPIC, message.payload, qos=1)

    _paho(task, "node", COMMANDS_TOPIC, on_message)
    say_ready()
    threading.Event().wait()


# ------------------------------------------------------------------ no library
def raw_hub(task: Task) -> None:
    """The codec on a blocking socket."""
    with RawClient.open(task.port, "bench-hub") as client:
        client.subscribe(RESULTS_TOPIC)
        wait_for_the_start()
        warm = client.echo(COMMANDS_TOPIC, WARM_UP, in_flight=IN_FLIGHT)
        meter = Meter(task)
        many = client.echo(COMMANDS_TOPIC, task.count, in_flight=IN_FLIGHT)
        took = meter.took()
        singles = client.echo(COMMANDS_TOPIC, single_count(task.count), in_flight=1)
    lost = sum(echo.sent - echo.delivered for echo in (warm, many, singles))
    print_figures(task, took, singles.round_trips_s, lost=lost)


def raw_node(task: Task) -> None:
    """Likewise."""
    with RawClient.open(task.port, "bench-node") as client:
        client.subscribe(COMMANDS_TOPIC)
        say_ready()
        client.answer(RESULTS_TOPIC)
