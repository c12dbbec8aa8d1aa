"""A board enrols whatever its clock says, or says why not and comes back at the right time: with faketime."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import time

import pytest
from tests.support.enrolling import DAY_MS, an_authority
from tests.support.enrolment_door import open_door

from shoal_agent.identity.store import IdentityStore
from shoal_fleet.clock import now_ms

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        shutil.which("faketime") is None,
        reason="faketime is not installed (apt-get install faketime)",
    ),
]


@pytest.fixture
async def door(tmp_path):
    # Ten days old, as an authority is when boards come.
    authority = an_authority(tmp_path / "ca", at_ms=now_ms() - 10 * DAY_MS)
    async with open_door(tmp_path, authority=authority) as door:
        yield door


async def enrol(door, node: str, *, clock: str | None, token: str) -> tuple[int, dict]:
    faketime = () if clock is None else ("faketime", "-f", clock)
    process = await asyncio.create_subprocess_exec(
        *faketime, sys.executable, "-m", "shoal_agent", "enrol", "--json",
        *("--url", door.url, "--ca-pin", door.authority.pin, "--token-file", token),
        *("--node-id", node, "--state-dir", str(door.folder / node)),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    stdout, stderr = await process.communicate()
    assert stdout, stderr.decode()
    return process.returncode or 0, json.loads(stdout)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("clock", "kind", "words"),
    [
        ("1970-01-02 00:00:00", "issued", ""),
        ("-1d", "not_trusted", "not yet valid"),
        ("+1d", "issued", ""),
        ("+10y", "not_trusted", "expired"),
    ],
)
async def test_a_board_with_this_clock(door, clock, kind, words, record_property):
    token = str(await door.token_file())
    code, outcome = await enrol(door, "press-4", clock=clock, token=token)
    record_property("tries", 1)
    record_property("bad", int(outcome["kind"] == "issued" != kind))
    assert (outcome["kind"], words in outcome["reason"]) == (kind, True), outcome
    store = IdentityStore(door.folder / "press-4")
    if kind == "issued":
        # By the controller's clock, not by the board's.
        assert code == 0
        assert abs(store.facts().not_after_ms - now_ms() - 30 * DAY_MS) < 60_000
        return
    assert (code, store.facts()) == (1, None)
    # The token is not used up, and once the clock is right the same key gets its certificate.
    key = store.next_key()
    began_s = time.monotonic()
    code, outcome = await enrol(door, "press-4", clock=None, token=token)
    record_property("worst_s", time.monotonic() - began_s)
    assert (code, outcome["kind"]) == (0, "issued")
    assert store.read("key.pem") == key or key is None
