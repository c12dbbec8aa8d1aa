"""The doctor's round trip: how long, and whose Nagle's algorithm makes it longer.

Measured with TCP_NODELAY on our side and without, beside what the network alone takes: a far
broker is not a slow one. It cannot see the broker's socket, it concludes from the times.
"""

from __future__ import annotations

import socket
import statistics
import time

from shoal_broker.doctor.client import WAIT_S, Target, connected
from shoal_broker.doctor.errors import UnreachableError
from shoal_broker.doctor.finding import Finding

ROUND_TRIPS = 50
ROUND_TRIPS_WITHOUT = 9
NETWORK_TRIPS = 5
# Each of the two publishes waits for its PUBACK.
NETWORK_TRIPS_A_QUESTION = 2
# A delayed ACK waits for 40 ms (Linux); what a broker on a LAN does itself stays far below.
NAGLE_SUSPECT_MS = 35.0


def round_trip(target: Target) -> Finding:
    """Ask and answer at QoS 1, with our TCP_NODELAY and without."""
    network_ms = _network_ms(target)
    times_ms = _times_ms(target, ROUND_TRIPS, nodelay=True)
    p50 = statistics.median(times_ms)
    p99 = sorted(times_ms)[-1 - ROUND_TRIPS // 100]
    without_p50 = statistics.median(_times_ms(target, ROUND_TRIPS_WITHOUT, nodelay=False))
    ok = p50 - NETWORK_TRIPS_A_QUESTION * network_ms < NAGLE_SUSPECT_MS
    means = (
        f"p50 {p50:.1f} ms, p99 {p99:.1f} ms for a question and its answer at QoS 1 with TCP_NODELAY "
        f"on our side, p50 {without_p50:.1f} ms without; a TCP handshake takes {network_ms:.1f} ms"
    )
    if not ok:
        means += ": the broker's side has no TCP_NODELAY (mosquitto: set_tcp_nodelay true), or is very busy"
    facts = {
        "p50_ms": round(p50, 3),
        "p99_ms": round(p99, 3),
        "messages": ROUND_TRIPS,
        "without_nodelay_p50_ms": round(without_p50, 3),
        "network_ms": round(network_ms, 3),
    }
    return Finding("round trip", ok=ok, means=means, facts=facts)


def _times_ms(target: Target, count: int, *, nodelay: bool) -> list[float]:
    """A command and its answer: two clients, because an echo to oneself hides Nagle.

    The broker's PUBACK to who asks is the small segment that the answer waits behind.
    """
    question, answer = target.topic("question"), target.topic("answer")
    times_ms = []
    with (
        connected(target, "asks", nodelay=nodelay) as asks,
        connected(target, "answers", nodelay=nodelay) as answers,
    ):
        asks.subscribe(answer)
        answers.subscribe(question)
        for n in range(count):
            began_s = time.perf_counter()
            asks.publish(question, b"%d" % n)
            answers.next_message()
            answers.publish(answer, b"%d" % n)
            asks.next_message()
            times_ms.append((time.perf_counter() - began_s) * 1000)
    return times_ms


def _network_ms(target: Target) -> float:
    """The fastest of a few TCP handshakes, each of which is one way there and back."""
    fastest_s = float("inf")
    for _ in range(NETWORK_TRIPS):
        began_s = time.perf_counter()
        try:
            socket.create_connection((target.host, target.port), timeout=WAIT_S).close()
        except OSError as exc:
            raise UnreachableError(f"cannot be reached: {exc}") from exc
        fastest_s = min(fastest_s, time.perf_counter() - began_s)
    return fastest_s * 1000
