"""A board whose clock stands in 1970: it says so, and is back soon after the time was set."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.support.certificates import Registry
from tests.support.embedded import embedded

from shoal_broker.server import BrokerConfig
from shoal_broker.server.config import Tls

LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
WITHIN_S = 60

pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.optional,
    pytest.mark.timeout(90),
    pytest.mark.skipif(not LIBRARIES, reason="no libfaketime (apt-get install faketime)"),
]

# What an agent does with its broker: default patience, its own certificate.
BOARD = """
import asyncio, sys
from shoal_broker.link import SessionConfig
from shoal_broker.session import Session
from shoal_broker.tls import TlsFiles

async def live(port, ca_file, cert_file, key_file):
    tls = TlsFiles(ca_file=ca_file, cert_file=cert_file, key_file=key_file, named="node-1")
    config = SessionConfig(
        host="127.0.0.1", port=port, client_id="node-1", tls=tls, transport="codec"
    )
    async with Session.open(config) as session:
        while not session.stats.broker_not_trusted:
            await asyncio.sleep(0.05)
        print(session.last_error, flush=True)
        await session.wait_connected(300)
        print("connected", flush=True)

asyncio.run(live(int(sys.argv[1]), *sys.argv[2:]))
"""


def test_a_board_in_1970_raises_the_alarm_and_connects_within_a_minute_of_the_right_time(
    tmp_path, record_property
):
    registry = Registry(tmp_path / "registry")
    certificate, key = map(Path, registry.issue("localhost", "broker"))
    mine = registry.certify("node-1")
    clock = tmp_path / "clock"
    clock.write_text("@1970-01-01 00:03:00\n")
    environment = os.environ | {
        "LD_PRELOAD": str(LIBRARIES[0]),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    tls = Tls(cert_file=certificate, key_file=key, client_ca_file=registry.ca_file)
    with embedded(BrokerConfig(port=0, tls=tls)) as broker:
        arguments = [str(broker.port), str(registry.ca_file), *mine]
        board = subprocess.Popen(
            [sys.executable, "-c", BOARD, *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            lines = iter(board.stdout)
            alarm = next(line for line in lines if "accept the broker" in line)
            assert "our clock is 1970-01-01" in alarm
            assert "our certificate begins 20" in alarm
            clock.write_text("+0\n")
            set_s = time.monotonic()
            assert any(line.strip() == "connected" for line in lines)
            took_s = time.monotonic() - set_s
            print(f"connected {took_s:.1f} s after the clock was set")
            record_property("tries", 1)
            record_property("bad", 0)
            record_property("worst_s", took_s)
            assert took_s < WITHIN_S
            assert board.wait(20) == 0
        finally:
            board.kill()
            board.wait()
            board.stdout.close()
