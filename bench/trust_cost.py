"""What a signed command costs a node beside doing it: the signature, and the look whether it came before.

Printed as JSON by a process of its own, so that nothing else is in its memory. The journal is on the disk
of the folder that is named; a repeat is only read there, a new command is committed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import structlog

from shoal_agent.commands import Commands
from shoal_agent.journal import Journal
from shoal_agent.operations import Operations
from shoal_agent.trust import Asker, Trust
from shoal_broker.outbox import Outbox
from shoal_broker.store import Store
from shoal_contract import messages
from shoal_contract.messages import Command
from shoal_contract.signatures import Signer
from shoal_contract.topics import Topics

COUNT = 2000
KNOWN = 1000
NOW_MS = 1_767_225_600_000
SIGNER = Signer(b"\x01" * 32)


async def measured(folder: Path) -> dict[str, float]:
    """Medians over COUNT commands, in ms; and the bytes that a signature adds."""
    topics = Topics()
    topic = topics.commands("n1")
    commands = [
        Command(number.to_bytes(8, "big"), "device.set", {"value": 7}, NOW_MS, NOW_MS + 60_000)
        for number in range(COUNT)
    ]
    plain = [messages.encode(command) for command in commands]
    sealed = [SIGNER.sign(data, topic=topic) for data in plain]
    trust = Trust([SIGNER.public_key])
    async with Store.open(folder / "agent.db") as store:
        await Outbox.load(store)
        node = Commands(
            journal=await Journal.load(store),
            operations=Operations(),
            results_topic=topics.results("n1"),
            outbox_changed=lambda: None,
            clock_ms=lambda: NOW_MS,
            trust=trust,
        )

        async def hear(data: bytes) -> float:
            began = time.perf_counter()
            opened = trust.open(data, topic=topic)
            if opened is None:
                raise RuntimeError("an honest command was refused")
            payload, key = opened
            await node.accept(messages.decode_as(payload, Command), Asker(key))
            return (time.perf_counter() - began) * 1e3

        verify = [_verify_ms(trust, data, topic) for data in sealed]
        new = [await hear(data) for data in sealed[:KNOWN]]
        again = [await hear(data) for data in sealed[:KNOWN]]
    return {
        "verify_ms": _median(verify),
        "new_ms": _median(new),
        "again_ms": _median(again),
        "overhead_bytes": max(
            len(one) - len(other) for one, other in zip(sealed, plain, strict=True)
        ),
    }


def _verify_ms(trust: Trust, data: bytes, topic: str) -> float:
    began = time.perf_counter()
    trust.open(data, topic=topic)
    return (time.perf_counter() - began) * 1e3


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def main(folder: str) -> None:
    """Measure in this folder, print JSON."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    result: dict[str, Any] = asyncio.run(measured(Path(folder)))
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
