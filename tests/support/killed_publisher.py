"""Publishes a file's chunks as the controller does, and ends with SIGKILL after so many batches.

Usage: killed_publisher.py PORT FOLDER FILE BATCHES
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from cdn import Cdn

from shoal_fleet.chunk_sender import ChunkSender


async def main() -> None:
    port, folder, file, batches = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    send, sent = ChunkSender.send, 0

    async def killing(self, ref, indexes, *, retain):
        nonlocal sent
        if sent == int(batches):
            os.kill(os.getpid(), signal.SIGKILL)
        await send(self, ref, indexes, retain=retain)
        sent += 1
        if sent == int(batches):
            os.kill(os.getpid(), signal.SIGKILL)

    ChunkSender.send = killing
    async with Cdn.open(port, folder) as cdn:
        await cdn.add(Path(file).read_bytes())  # noqa: ASYNC240 - nothing else runs
        await asyncio.Event().wait()


asyncio.run(main())
