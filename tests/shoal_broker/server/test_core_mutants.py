"""Whatever bytes clients send, in either version of MQTT: the right answer, in time, and nothing left behind."""

from __future__ import annotations

import gc
import os
import tracemalloc
from pathlib import Path

import pytest
from tests.shoal_broker.server.siege import Siege

LONGEST_CPU_S = 1.0
"""For one piece of bytes; a hang is what this is about."""


def withstand(siege: Siege, mutants: int) -> None:
    siege.attack(mutants)
    siege.lift()
    siege.hold()
    assert siege.slowest_s < LONGEST_CPU_S


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_mutated_packets_are_answered_and_leave_nothing_behind(capfd):
    siege = Siege(1)
    withstand(siege, 4_000)
    foretold = {name for name in siege.endings if name.startswith("foretold")}
    assert {"foretold wait", "foretold 0x81", "foretold 0x95"} <= foretold
    assert "panicked" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_hundred_thousand_mutated_packets_cost_no_memory(capfd):
    siege = Siege(2)
    withstand(siege, 20_000)
    gc.collect()
    # Every allocation traced costs three times as much: not all of it.
    tracemalloc.start()
    try:
        withstand(siege, 5_000)
        gc.collect()
        before_bytes, _ = tracemalloc.get_traced_memory()
        withstand(siege, 15_000)
        gc.collect()
        after_bytes, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after_bytes - before_bytes < 128 << 10
    assert peak_bytes < 32 << 20
    before_rss_bytes = rss_bytes()
    withstand(siege, 60_000)
    assert siege.mutants >= 100_000
    assert rss_bytes() - before_rss_bytes < 8 << 20
    assert "panicked" not in capfd.readouterr().err


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_million_mutated_packets_cost_no_memory(capfd):
    siege = Siege(3)
    withstand(siege, 100_000)
    before_bytes = rss_bytes()
    for _ in range(9):
        withstand(siege, 100_000)
    assert siege.mutants >= 1_000_000
    assert rss_bytes() - before_bytes < 16 << 20
    assert "panicked" not in capfd.readouterr().err
    with capfd.disabled():
        print(
            f"\n{siege.mutants} mutated packets, {siege.endings.total()} endings: {siege.endings}"
        )
