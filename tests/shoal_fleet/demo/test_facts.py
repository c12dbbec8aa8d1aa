"""The facts for a program (one line of JSON) and for a person (a table)."""

import dataclasses
import io
import json

from rich.console import Console

from shoal_fleet.demo.facts import Facts, Pair, table

FACTS = Facts(
    nodes=5,
    readings=8428,
    lost=0,
    duplicates=10,
    accuracy_v1=0.9447,
    accuracy_v2=0.9698,
    digits_held_out=597,
    full_bytes=34_627,
    compressed_bytes=25_636,
    delta_bytes=9_051,
    fetched_bytes={"board-1": 11_515, "board-2": 11_400},
    waves=[1, 2, 2],
    command_p50_ms=12.34,
    command_p99_ms=99.9,
    commands=100,
    offline_s=5.06,
    offline_loop_steps=203,
    offloaded=64,
    served_for_others={"board-4": 64},
    board_pss_bytes=87 << 20,
    seconds=41.2,
    minilm_reason="torch is not installed",
)


def shown(facts: Facts) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(table(facts))
    return console.file.getvalue()


def test_the_json_is_one_line_with_every_fact():
    line = FACTS.to_json()
    assert "\n" not in line
    facts = json.loads(line)
    assert set(facts) == {field.name for field in dataclasses.fields(Facts)}
    assert facts["fetched_bytes"]["board-1"] == 11_515
    assert facts["minilm"] is None


def test_the_table_says_it_in_words():
    said = shown(FACTS)
    for words in (
        "5, each with a device",
        "94.47%",
        "9,051 bytes; the file 34,627, best compressed 25,636 (0.35 of that)",
        "11,515 bytes at most",
        "1 -> 2 -> 2 nodes",
        "left out: torch is not installed",
        "p50 12.3 ms, p99 99.9 ms",
        "5.1 s; the loop made 203 steps meanwhile",
        "64 readings served by board-4 64",
        "87 MiB",
        "0 (repeats that were recognised: 10)",
        "nothing was lost",
    ):
        assert words in said


def test_a_loss_is_not_hidden():
    said = shown(dataclasses.replace(FACTS, lost=3))
    assert "3 messages were lost" in said
    assert "nothing was lost" not in said


def test_the_large_pair_is_shown_when_it_was_measured():
    pair = Pair("MiniLM INT8", 23_000_000, 16_000_000, 1_600_000)
    facts = dataclasses.replace(FACTS, minilm=pair)
    assert "1,600,000 bytes; the file 23,000,000, best compressed 16,000,000 (0.10" in shown(facts)
    assert json.loads(facts.to_json())["minilm"]["delta_bytes"] == 1_600_000


def test_nobody_helped_is_said_so():
    facts = dataclasses.replace(FACTS, offloaded=0, served_for_others={})
    assert "0 readings served by nobody" in shown(facts)
