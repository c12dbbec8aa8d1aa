"""What a demo found out: the facts as JSON and as a table."""

import json
from dataclasses import asdict, dataclass

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True, slots=True)
class Pair:
    """A delta between two releases of a model against the whole new file, in bytes."""

    what: str
    full_bytes: int
    compressed_bytes: int
    delta_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything that the table and the JSON line tell.

    Args:
        fetched_bytes: what each board fetched for v2: delta, manifest, description, golden inputs.
        lost: samples that the devices took and the controller does not have.
        readings: distinct samples that the controller has.
        offloaded: readings that another node than the device's own computed.
        offline_loop_steps: commands that the cut-off board's device carried out during the cut.
        board_pss_bytes: memory of one board's agent, worker and bridge (median; shared pages by share).
        served_for_others: readings by the node that computed them for another.
    """

    nodes: int
    readings: int
    lost: int
    duplicates: int
    accuracy_v1: float
    accuracy_v2: float
    digits_held_out: int
    full_bytes: int
    compressed_bytes: int
    delta_bytes: int
    fetched_bytes: dict[str, int]
    waves: list[int]
    command_p50_ms: float
    command_p99_ms: float
    commands: int
    offline_s: float
    offline_loop_steps: int
    offloaded: int
    served_for_others: dict[str, int]
    board_pss_bytes: int
    seconds: float
    minilm: Pair | None = None
    minilm_reason: str = ""

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))


def table(facts: Facts) -> RenderableType:
    """The facts for a person."""
    grid = Table(
        title="What this fleet just did",
        title_justify="left",
        title_style="bold",
        show_header=False,
        box=box.SIMPLE,
    )
    grid.add_column(style="bold")
    grid.add_column()
    for name, value in _rows(facts):
        grid.add_row(name, Text(value))
    good = facts.lost == 0
    verdict = Text("nothing was lost" if good else f"{facts.lost} messages were lost")
    verdict.stylize("bold green" if good else "bold red")
    return Group(grid, verdict)


def _rows(facts: Facts) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = [
        ("nodes", f"{facts.nodes}, each with a device, a bridge and an agent of its own"),
        (
            "digits classified on the boards",
            f"{facts.readings:,} readings of {facts.digits_held_out} held-out scans",
        ),
        ("accuracy v1", f"{facts.accuracy_v1:.2%}"),
        ("accuracy v2", f"{facts.accuracy_v2:.2%}"),
        ("v2 as a delta", _sizes(facts.delta_bytes, facts.compressed_bytes, facts.full_bytes)),
        (
            "each board fetched for v2",
            f"{max(facts.fetched_bytes.values(), default=0):,} bytes at most, everything included",
        ),
        ("waves", " -> ".join(str(size) for size in facts.waves) + " nodes"),
    ]
    if facts.minilm is not None:
        pair = facts.minilm
        rows.append((pair.what, _sizes(pair.delta_bytes, pair.compressed_bytes, pair.full_bytes)))
    else:
        rows.append(("MiniLM pair", f"left out: {facts.minilm_reason}"))
    others = ", ".join(f"{node} {count}" for node, count in facts.served_for_others.items())
    rows += [
        (
            f"command round trip ({facts.commands})",
            f"p50 {facts.command_p50_ms:.1f} ms, p99 {facts.command_p99_ms:.1f} ms",
        ),
        (
            "uplink cut",
            f"{facts.offline_s:.1f} s; the loop made {facts.offline_loop_steps} steps meanwhile",
        ),
        ("model taken away", f"{facts.offloaded} readings served by {others or 'nobody'}"),
        (
            "memory a board",
            f"{facts.board_pss_bytes / 2**20:.0f} MiB (agent, worker and bridge, PSS)",
        ),
        ("messages lost", f"{facts.lost} (repeats that were recognised: {facts.duplicates})"),
        ("took", f"{facts.seconds:.0f} s"),
    ]
    return rows


def _sizes(delta: int, compressed: int, full: int) -> str:
    return (
        f"{delta:,} bytes; the file {full:,}, best compressed {compressed:,}"
        f" ({delta / compressed:.2f} of that)"
    )
