"""Area `infer-memory`: what agent and worker weigh, and how much of it comes back when a model is evicted.

PSS of a real agent and all its processes: idle without models, with a worker whose model weighs next to nothing, with a
sentence encoder in INT8. Eviction is measured on a worker process alone (infer_memory_child.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import infer_models
import infer_text_model
import processes
from brokers import Broker, shoal_broker
from idle_agent import idle_agent
from measure import BenchError, Column, Goal, Options, Rounds, Row, Table
from shoal_agent.files import ContentStore
from shoal_agent.journal import Journal, Serving
from shoal_broker.store import Store
from shoal_contract.release import build_manifest, parse_manifest, parse_spec
from shoal_fleet import digits

TIMEOUT_S = 120.0
SETTLE_S = 3.0
LOAD_TIMEOUT_S = 60.0
NEVER_S = 86_400.0
CORE, WORKER, TEXT = "agent core", "agent + worker, digits", "agent + worker, INT8 encoder"
GOALS_MIB = {CORE: 36, WORKER: 85, TEXT: 140}
EVICTED = ("mlp", infer_text_model.NAME, "cnn")
GIVEN_BACK = 0.7
MIB = 1 << 20
COLUMNS = (
    Column("pss_mib", "PSS MiB", 1),
    Column("empty_mib", "empty", 1),
    Column("loaded_mib", "loaded", 1),
    Column("evicted_mib", "evicted", 1),
    Column("given_back", "given back", 2),
)


def run(options: Options, say: Callable[[str], None]) -> Table:
    """Measure idle agents and evictions in shuffled rounds."""
    directories = {name: options.folder / f"memory-{name}" for name in EVICTED}
    for name, directory in directories.items():
        say(f"generating {name}")
        if name == infer_text_model.NAME:
            infer_text_model.write(directory)
        else:
            infer_models.write(directory, name)
    rounds = Rounds(options)
    with shoal_broker("shoal-broker") as broker:
        agents = {
            CORE: None,
            WORKER: digits.release_dir(2),
            TEXT: directories[infer_text_model.NAME],
        }
        subjects: dict[str, Callable[[], Mapping[str, float]]] = {
            name: partial(_agent, broker, options.folder, directory)
            for name, directory in agents.items()
        }
        for name, directory in directories.items():
            subjects[f"evict: {name}"] = partial(_evict, options.folder, directory)
        rounds.run(subjects, say=say)
    return Table(
        title="infer-memory: what agent and worker weigh (PSS)",
        columns=COLUMNS,
        rows=tuple(Row(name, is_ours=True, figures=rounds.figures(name)) for name in subjects),
        goals=tuple(_goals(rounds)),
        settings=(
            f"agent: transport codec, nothing happens, {SETTLE_S:g} s after all is loaded; agent core: without a model",
            f"digits: a model of {_size(digits.release_dir(2))}, so nearly an empty worker",
            f"encoder: {infer_text_model.ABOUT}",
            (
                "evict: a worker process alone, as after a restart (optimised form on the disk): before the model, after"
                " some batches, after its eviction; given back: of what the model made it grow"
            ),
            (
                "what a worker keeps is mostly ONNX Runtime's own, made with its first session: a small model gives back"
                " a smaller share, and has no goal"
            ),
        ),
    )


def _goals(rounds: Rounds) -> list[Goal]:
    return [
        *(
            Goal(f"idle: {name}", "MiB", rounds.figures(name)["pss_mib"], limit, decimals=1)
            for name, limit in GOALS_MIB.items()
        ),
        *(
            Goal(
                f"eviction: memory given back, {name}",
                "",
                rounds.figures(f"evict: {name}")["given_back"],
                GIVEN_BACK if name != "cnn" else None,
                is_minimum=True,
                decimals=2,
            )
            for name in EVICTED
        ),
    ]


def _agent(broker: Broker, folder: Path, directory: Path | None) -> Mapping[str, float]:
    with tempfile.TemporaryDirectory(dir=folder) as name:
        home = Path(name)
        if directory is not None:
            (home / "state").mkdir(mode=0o700)
            asyncio.run(install(home / "state", directory))
        with idle_agent(
            home, broker.port, node="bench-memory", transport="codec", report_every_s=NEVER_S
        ) as agent:
            _until_children(agent.pid, 0 if directory is None else 1)
            time.sleep(SETTLE_S)
            pids = processes.tree(agent.pid)
            return {"pss_mib": sum(map(processes.pss_bytes, pids)) / MIB}


async def install(state_dir: Path, directory: Path) -> None:
    """Leave a state directory as an agent leaves it that serves this release."""
    spec = parse_spec((directory / "release.toml").read_bytes())
    files = {name: (directory / name).read_bytes() for name in spec.files}
    encoded = build_manifest(spec, files)
    release = hashlib.sha256(encoded).digest()
    content = ContentStore(state_dir)
    for data in (encoded, *files.values()):
        content.path(hashlib.sha256(data).digest()).write_bytes(data)
    content.assemble(release, parse_manifest(encoded, release=release))
    async with Store.open(state_dir / "agent.db") as store:
        journal = await Journal.load(store)
        await journal.set_serving(spec.name, Serving(release, None))


def _until_children(pid: int, count: int) -> None:
    """The agent says that it is ready when what served before is loaded."""
    until = time.monotonic() + LOAD_TIMEOUT_S
    while len(processes.tree(pid)) - 1 != count:
        if time.monotonic() > until:
            raise BenchError(f"the agent has {len(processes.tree(pid)) - 1} children, not {count}")
        time.sleep(0.1)


def _evict(folder: Path, directory: Path) -> Mapping[str, float]:
    script = Path(__file__).with_name("infer_memory_child.py")
    with (
        tempfile.TemporaryDirectory(dir=folder) as forms,
        processes.child(
            [processes.PYTHON, script, directory, forms], stdout=subprocess.PIPE
        ) as child,
    ):
        try:
            said, _ = child.communicate(timeout=TIMEOUT_S)
            took: dict[str, float] = json.loads(said)
        except (subprocess.TimeoutExpired, ValueError) as exc:
            raise BenchError(f"the eviction of {directory.name} was not measured") from exc
    return took


def _size(directory: Path) -> str:
    return f"{(directory / 'model.onnx').stat().st_size / 1024:.0f} KiB"
