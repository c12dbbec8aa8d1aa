"""Many agents' fetchers in one process: each with its own session, outbox and content store.

Usage: cdn_agents.py --port P --state DIR --first N --count N --refs FILE
FILE holds the blobs as JSON. DIR/<name>/ is the state of one agent; DIR/progress-<first> says how many bytes
of chunks came so far, DIR/result-<first> how each fetch went, once all have ended.
"""

import argparse
import asyncio
import json
import logging
from pathlib import Path

import msgspec
import structlog

from shoal_agent import fetch
from shoal_agent.fetch import BlobFetcher
from shoal_agent.files import ContentStore
from shoal_broker.durable import write_durably
from shoal_broker.outbox import Outbox
from shoal_broker.session import Session, SessionConfig
from shoal_broker.store import Store
from shoal_contract.messages import BlobRef
from shoal_contract.topics import Topics

PROGRESS_S = 0.02


async def agent(options, name: str, refs: list[BlobRef], fetchers: dict[str, BlobFetcher]) -> dict:
    folder = options.state / name
    content = ContentStore(folder)
    # Chunks come in no order: what was not written takes no block.
    held_bytes = sum(path.stat().st_blocks * 512 for path in content.parts.iterdir())
    held_bytes += sum(path.stat().st_size for path in content.blobs.iterdir())
    async with (
        Store.open(folder / "agent.db") as store,
        Session.open(
            SessionConfig(
                host="127.0.0.1",
                port=options.port,
                client_id=name,
                transport="codec",
                connect_timeout_s=60.0,
                ack_timeout_s=120.0,
            ),
            outbox=await Outbox.load(store),
        ) as session,
    ):
        fetchers[name] = fetcher = BlobFetcher(session, Topics(), name, content)
        await session.wait_connected(60)
        for ref in refs:
            await fetcher.fetch(ref)
    return {
        "name": name,
        "held_bytes": held_bytes,
        "fetched_bytes": fetcher.received_bytes,
        "asked_chunks": fetcher.asked_chunks,
    }


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--refs", type=Path, required=True)
    parser.add_argument("--patience", type=float, default=fetch.PATIENCE_S)
    options = parser.parse_args()
    fetch.PATIENCE_S = options.patience
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    refs = msgspec.json.decode(options.refs.read_bytes(), type=list[BlobRef])
    fetchers: dict[str, BlobFetcher] = {}
    progress = options.state / f"progress-{options.first}"

    async def tell() -> None:
        while True:
            received = sum(fetcher.received_bytes for fetcher in fetchers.values())
            progress.write_text(str(received))
            await asyncio.sleep(PROGRESS_S)

    names = [f"agent-{number}" for number in range(options.first, options.first + options.count)]
    async with asyncio.TaskGroup() as tasks:
        telling = tasks.create_task(tell())
        results = await asyncio.gather(*(agent(options, name, refs, fetchers) for name in names))
        telling.cancel()
    write_durably(options.state / f"result-{options.first}", json.dumps(results).encode())


asyncio.run(main())
