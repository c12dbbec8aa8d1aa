"""Area `infer-http`: the agent's local API beside LitServe and MLServer: one model, one client, one run.

Each server has digits v2 in ONNX Runtime with one thread, and one worker process. What counts is CPU: of all
processes of the server, a request. The client is http_load.py; its own CPU is not in the figures.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import http_load
import infer_http_servers as servers
import measure
import processes
from measure import Column, Goal, Options, Rounds, Table
from shoal_fleet import digits

OURS = "shoal-agent, local API"
LITSERVE = "LitServe"
MLSERVER = "MLServer"
PEERS = (LITSERVE, MLSERVER)
CONTENDERS: dict[str, Callable[[Path], AbstractContextManager[servers.Server]]] = {
    OURS: servers.shoal_agent,
    LITSERVE: servers.litserve,
    MLSERVER: servers.mlserver,
}
CONNECTIONS = 8
GREY_LEVELS = 16
COLUMNS = (
    Column("cpu_us", "CPU us/req"),
    Column("rate", "requests/s"),
    Column("p50_ms", "p50 ms", 2),
    Column("p99_ms", "p99 ms", 2),
    Column("alone_ms", "alone p50 ms", 2),
    Column("idle_percent", "idle CPU %", 2),
    Column("pss_mib", "PSS MiB", 1),
    Column("correct_percent", "right %", 2, spread=False),
)


def run(options: Options, say: Callable[[str], None]) -> Table:
    """Measure the servers in shuffled rounds."""
    requests, alone, idle_s = (400, 50, 2.0) if options.is_quick else (6000, 500, 10.0)
    are_there = servers.are_peers_there()
    names = list(CONTENDERS) if are_there else [OURS]
    rounds = Rounds(options)
    rounds.run(
        {name: partial(_sample, name, requests, alone, idle_s, options) for name in names}, say=say
    )
    return Table(
        title="infer-http: digits v2 (INT8) over HTTP, JSON both ways",
        columns=COLUMNS,
        rows=tuple(rounds.row(name, is_ours=name == OURS) for name in names),
        goals=_goals(rounds) if are_there else (),
        settings=(
            (
                f"{requests:,} requests from {CONNECTIONS} connections kept open, each asks again at"
                f" once; then {alone} from one connection; then {idle_s:g} s of silence"
            ),
            "inputs: the 597 held-out scans; right: of the labels, the model's own accuracy",
            "CPU, PSS: of all processes of a server; ONNX Runtime with 1 thread, no spinning",
            "shoal-agent: as installed, at a broker, one worker process",
            *([f"peers: {servers.versions()}; LitServe with fast_queue"] if are_there else []),
        ),
        skipped=()
        if are_there
        else ("LitServe and MLServer: sh tools/setup-serving-peers has not made them",),
    )


def _goals(rounds: Rounds) -> tuple[Goal, ...]:
    goals = []
    for peer in PEERS:
        cpu = rounds.ratios("cpu_us", OURS, peer)
        goals.append(Goal(f"CPU a request, ours / {peer}", "", cpu, 0.3, decimals=2))
        pss = rounds.ratios("pss_mib", OURS, peer)
        goals.append(Goal(f"PSS, ours / {peer}", "", pss, 0.5, decimals=2))
    idle = rounds.figures(OURS)["idle_percent"]
    goals.append(Goal("idle CPU of ours", "%", idle, 0.5, decimals=2))
    return tuple(goals)


def _sample(
    name: str, requests: int, alone: int, idle_s: float, options: Options
) -> Mapping[str, float]:
    scans = digits.held_out()
    asked = [
        http_load.request(
            servers.PATH, http_load.tensor_body([level / GREY_LEVELS for level in scan.levels])
        )
        for scan in scans
    ]
    with (
        tempfile.TemporaryDirectory(dir=options.folder) as folder,
        CONTENDERS[name](Path(folder)) as server,
    ):
        http_load.ask(server.port, asked, connections=CONNECTIONS)
        pids = processes.tree(server.pid)
        before_s = _cpu_s(pids)
        many = http_load.ask(
            server.port, list(islice(cycle(asked), requests)), connections=CONNECTIONS
        )
        cpu_s = _cpu_s(pids) - before_s
        one = http_load.ask(server.port, list(islice(cycle(asked), alone)), connections=1)
        time.sleep(1.0)
        before_s, started_s = _cpu_s(pids), time.perf_counter()
        time.sleep(idle_s)
        idle = (_cpu_s(pids) - before_s) / (time.perf_counter() - started_s)
        pss_bytes = sum(processes.pss_bytes(pid) for pid in pids)
    labels = islice(cycle(scan.label for scan in scans), requests)
    right = sum(_best(body) == label for body, label in zip(many.bodies, labels, strict=True))
    return {
        "cpu_us": cpu_s / requests * 1e6,
        "rate": requests / many.took_s,
        "p50_ms": measure.percentile(many.latencies_s, 0.5) * 1e3,
        "p99_ms": measure.percentile(many.latencies_s, 0.99) * 1e3,
        "alone_ms": measure.percentile(one.latencies_s, 0.5) * 1e3,
        "idle_percent": idle * 100,
        "pss_mib": pss_bytes / (1 << 20),
        "correct_percent": right / requests * 100,
    }


def _cpu_s(pids: list[int]) -> float:
    return sum(map(processes.cpu_s, pids))


def _best(body: bytes) -> int:
    logits = json.loads(body)["outputs"][0]["data"]
    return max(range(len(logits)), key=logits.__getitem__)
