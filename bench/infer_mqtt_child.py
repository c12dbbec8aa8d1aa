"""`infer_mqtt_child.py LOSS SECONDS SEED FOLDER`: requests over MQTT across a network that loses packets; prints what they took.

Broker on the right of the wire; agent (with the digits model) and who asks it on the left: each request crosses four
times, there and back twice. A request that is not answered in time counts with that time, and as failed.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import infer_memory
import lossy_lan
import measure
from brokers import shoal_broker
from idle_agent import idle_agent
from shoal_broker.bus_errors import BusError
from shoal_broker.link import SessionConfig
from shoal_broker.session import Session
from shoal_contract import messages
from shoal_contract.messages import InferReply, InferRequest
from shoal_contract.topics import Topics
from shoal_fleet import digits

NODE, MODEL = "bench-mqtt", "digits"
PER_SECOND = 20
TIMEOUT_S = 5.0
_WARM_UP = 20
_NEVER_S = 86_400.0


async def ask(port: int, seconds: float, draw: random.Random) -> dict[str, float]:
    """Requests that come as they come (Poisson)."""
    config = SessionConfig(
        host=lossy_lan.RIGHT, port=port, client_id="asks", transport="codec", plaintext=True
    )
    latencies_s: list[float] = []
    failed = 0
    items = [digits.pack_u5(scan.levels) for scan in digits.held_out()]

    async with Session.open(config) as session:
        await session.wait_connected(30)

        async def one(number: int, due: float) -> None:
            nonlocal failed
            request = InferRequest(
                number.to_bytes(8, "big"), MODEL, [items[number % len(items)]], 4000
            )
            try:
                payload = await session.request(
                    Topics().inference(NODE, MODEL),
                    messages.encode(request),
                    reply_topic="answers/bench",
                    timeout_s=TIMEOUT_S,
                )
                reply = messages.decode_as(payload, InferReply)
                failed += reply.reason != ""
            except (BusError, TimeoutError):
                failed += 1
            latencies_s.append(time.perf_counter() - due)

        for number in range(_WARM_UP):
            await one(number, time.perf_counter())
        latencies_s.clear()
        failed = 0
        async with asyncio.TaskGroup() as tasks:
            due = started = time.perf_counter()
            number = 0
            while due < started + seconds:
                if (rest_s := due - time.perf_counter()) > 0:
                    await asyncio.sleep(rest_s)
                tasks.create_task(one(number, due))
                number += 1
                due += draw.expovariate(PER_SECOND)
    return {
        "p50_us": measure.percentile(latencies_s, 0.5) * 1e6,
        "p99_us": measure.percentile(latencies_s, 0.99) * 1e6,
        "failed": failed,
    }


def main(arguments: list[str]) -> int:
    """Put it together. What this machine does not allow is said on stdout, as `refused`."""
    # As an exception, so that broker, agent and wire are ended on the way out.
    signal.signal(signal.SIGTERM, _end)
    loss, seconds, seed, folder = arguments
    home = Path(folder)
    (home / "state").mkdir(mode=0o700)
    asyncio.run(infer_memory.install(home / "state", digits.release_dir(2)))
    try:
        with lossy_lan.lan(float(loss), int(seed)) as lan, ExitStack() as stack:
            with lan.right():  # a network without anybody else
                serving = shoal_broker("shoal-broker", options=("--host", "0.0.0.0", "--no-auth"))
                broker = stack.enter_context(serving)
            agent = idle_agent(
                home,
                broker.port,
                host=lossy_lan.RIGHT,
                node=NODE,
                transport="codec",
                report_every_s=_NEVER_S,
            )
            stack.enter_context(agent)
            took = asyncio.run(ask(broker.port, float(seconds), random.Random(int(seed))))  # noqa: S311 - arrivals, not a secret
    except measure.BenchError as exc:
        sys.stdout.write(json.dumps({"refused": str(exc)}) + "\n")
        return 0
    sys.stdout.write(json.dumps(took) + "\n")
    return 0


def _end(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
