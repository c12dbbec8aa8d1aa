"""A board behind a slow line: an order does not wait behind the chunks of a release."""

import hashlib
import os
import time

import pytest
from tests.support.board import NODE, Board, short_folder
from tests.support.hub import Hub, Release
from tests.support.tcp_proxy import TcpProxy

from shoal_broker.server import Broker, BrokerConfig
from shoal_contract.blobs import CHUNK_BYTES
from shoal_contract.messages import Command, CommandUpdate, State
from shoal_contract.release import build_manifest
from shoal_fleet import digits

pytestmark = [pytest.mark.system, pytest.mark.timeout(90)]

LINE_BYTES_PER_S = 512 << 10
CHUNKS = 48
AHEAD_BYTES = 16 * CHUNK_BYTES
"""What the order may wait for: chunks that were asked for already, and what the sockets hold."""


def large_release() -> Release:
    """A release whose model is many chunks of noise: it will be refused, once it is there."""
    release = Release(digits.release_dir(1))
    release.files[release.spec.model.file] = os.urandom(CHUNKS * CHUNK_BYTES)
    release.manifest = build_manifest(release.spec, release.files)
    release.id = hashlib.sha256(release.manifest).digest()
    return release


@pytest.mark.parametrize("transport", ["aiomqtt", "codec"])
async def test_an_order_overtakes_the_chunks_of_a_release(transport):
    with short_folder() as folder:
        board = Board(folder)
        async with (
            Broker.open(BrokerConfig(host="127.0.0.1", port=0)) as broker,
            TcpProxy.open(broker.port) as line,
            Hub.open(broker.port, NODE) as hub,
            board.agent(line.port, transport=transport),
        ):
            await hub.until(lambda: bool(hub.presence) and hub.presence[-1].online)
            line.bytes_per_s = LINE_BYTES_PER_S
            idle_bytes = line.forwarded_bytes
            await hub.want(large_release())
            await hub.until(lambda: _fetched(hub) > 0)
            now_ms = time.time_ns() // 1_000_000
            stop = Command(os.urandom(8), "ping", {}, now_ms, now_ms + 60_000, 9)
            sent_at_bytes = line.forwarded_bytes
            await hub.command(stop)
            await hub.until(lambda: _done(hub, stop), timeout_s=60)
            waited_for_bytes = line.forwarded_bytes - sent_at_bytes
            assert sent_at_bytes - idle_bytes < (CHUNKS - 16) * CHUNK_BYTES, "sent too late"
    print(f"{transport}: the order waited for {waited_for_bytes >> 10} KiB of chunks")
    assert waited_for_bytes <= AHEAD_BYTES


def _fetched(hub: Hub) -> int:
    models = hub.reported[-1].models if hub.reported else []
    return models[0].fetched_bytes if models else 0


def _done(hub: Hub, sent: Command) -> bool:
    return any(
        isinstance(update, CommandUpdate)
        and update.id == sent.id
        and update.state is State.SUCCEEDED
        for update in hub.results
    )
