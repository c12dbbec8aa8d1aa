"""The doctor's look at retained messages as chunks: how large, and many of them at once.

CONNACK says how large a packet may be, not how large a retained message: some brokers cap those
lower, or take one and keep it not. So each is published, and read back by a client that comes late.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator

from shoal_broker.doctor.client import Target, connected
from shoal_broker.doctor.errors import DoctorError
from shoal_broker.doctor.finding import Finding
from shoal_contract.messages import CHUNK_BYTES, MAX_MESSAGE_BYTES

SIZES_BYTES = (MAX_MESSAGE_BYTES, CHUNK_BYTES, 48 << 10, 32 << 10)
CHUNKS_AT_ONCE = 20


def retained_sizes(target: Target) -> Finding:
    """Find the largest retained message that is kept whole, then keep as many as a small model has."""
    tried: dict[int, str | None] = {}
    for size_bytes in SIZES_BYTES:
        tried[size_bytes] = _why_not_kept(target, size_bytes)
        if tried[size_bytes] is None and size_bytes <= CHUNK_BYTES:
            break
    kept = [size_bytes for size_bytes, why_not in tried.items() if why_not is None]
    problems = [why_not for why_not in tried.values() if why_not is not None]
    if not kept:
        means = (
            f"none of {min(SIZES_BYTES)} bytes is kept: no chunks over this broker ({problems[-1]})"
        )
        return Finding("retained sizes", ok=False, means=means, facts={"kept_bytes": 0})
    largest, chunk_bytes = max(kept), min(*kept, CHUNK_BYTES)
    whole = _whole_at_once(target, chunk_bytes)
    facts = {
        "kept_bytes": largest,
        "chunk_bytes": chunk_bytes,
        "at_once": CHUNKS_AT_ONCE,
        "at_once_whole": whole,
    }
    means = f"kept whole up to {largest} bytes; {whole} of {CHUNKS_AT_ONCE} of {chunk_bytes} bytes came at once"
    if problems:
        means += f": set chunk_bytes = {chunk_bytes} ({problems[0]})"
    elif whole != CHUNKS_AT_ONCE:
        means += ": nodes ask for the others again; raise what it retains or queues for a client"
    return Finding(
        "retained sizes", ok=not problems and whole == CHUNKS_AT_ONCE, means=means, facts=facts
    )


def _whole_at_once(target: Target, chunk_bytes: int) -> int:
    """How many of CHUNKS_AT_ONCE one late subscription brings back whole."""
    chunks = {
        target.topic(f"chunks/{n}"): secrets.token_bytes(chunk_bytes) for n in range(CHUNKS_AT_ONCE)
    }
    came: dict[str, bytes] = {}
    with _cleared(target, *chunks):
        with connected(target, "chunks") as client:
            for topic, chunk in chunks.items():
                client.publish(topic, chunk, retain=True)
        # Fewer than asked for: how many is the answer.
        with connected(target, "chunks-late") as late, contextlib.suppress(DoctorError):
            late.subscribe(target.topic("chunks/+"))
            while len(came) < CHUNKS_AT_ONCE:
                message = late.next_message()
                came[message.topic] = bytes(message.payload)
    return sum(came.get(topic) == chunk for topic, chunk in chunks.items())


def _why_not_kept(target: Target, size_bytes: int) -> str | None:
    """None: it was kept, and came back whole."""
    topic = target.topic(f"retained/{size_bytes}")
    payload = secrets.token_bytes(size_bytes)
    try:
        with _cleared(target, topic):
            with connected(target, "size") as client:
                client.publish(topic, payload, retain=True)
            with connected(target, "size-late") as late:
                late.subscribe(topic)
                came = late.next_message(
                    f"{size_bytes} bytes are acknowledged and not kept"
                ).payload
    except DoctorError as exc:
        return str(exc)
    return None if came == payload else f"{size_bytes} bytes come back changed"


@contextlib.contextmanager
def _cleared(target: Target, *topics: str) -> Iterator[None]:
    """Nothing is retained under these topics behind the block. A connection of its own clears them."""
    with connected(target, "clear") as client:
        if not getattr(client.connack, "RetainAvailable", 1):
            raise DoctorError("the broker keeps no retained messages")
    try:
        yield
    finally:
        with connected(target, "clear") as client:
            for topic in topics:
                client.clear_retained(topic)
