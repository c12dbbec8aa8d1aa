"""The HTTP servers of infer_http.py as processes on loopback, each with digits v2. Measures nothing."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import processes
from brokers import free_port, shoal_broker
from measure import BenchError
from shoal_agent.files import ContentStore
from shoal_agent.journal import Journal, Serving
from shoal_broker.store import Store
from shoal_contract.release import build_manifest, parse_manifest, parse_spec
from shoal_fleet import digits

START_TIMEOUT_S = 60.0
HERE = Path(__file__).parent
PEERS = HERE.parent / ".venv-serving-peers/bin"
PATH = "/v2/models/digits/infer"


@dataclass(frozen=True, slots=True)
class Server:
    """One that answers; `pid` and all below it are its processes."""

    pid: int
    port: int


@contextlib.contextmanager
def shoal_agent(folder: Path) -> Iterator[Server]:
    """The whole agent with the local API, at a broker. Raises BenchError."""
    port = free_port()
    state_dir = folder / "state"
    state_dir.mkdir(mode=0o700)
    asyncio.run(_install(state_dir))
    with shoal_broker("shoal-broker") as broker:
        config = folder / "agent.toml"
        config.write_text(
            f'node = "bench-http"\nstate_dir = "{state_dir}"\n'
            f'[broker]\nhost = "127.0.0.1"\nport = {broker.port}\ntransport = "codec"\n'
            f"[peers]\nenabled = false\n[local_api]\nport = {port}\n",
            encoding="utf-8",
        )
        program = Path(processes.PYTHON).with_name("shoal-agent")
        with _started(
            [program, "--config", config, "--log-format", "json"], folder, port
        ) as server:
            yield server


@contextlib.contextmanager
def litserve(folder: Path) -> Iterator[Server]:
    """LitServe, one API process and one worker. Raises BenchError."""
    port = free_port()
    script = HERE / "litserve_digits.py"
    with _started([PEERS / "python", script, _model(), str(port)], folder, port) as server:
        yield server


@contextlib.contextmanager
def mlserver(folder: Path) -> Iterator[Server]:
    """MLServer with its default of one worker, and without its debugging log. Raises BenchError."""
    ports = {name: free_port() for name in ("http_port", "grpc_port", "metrics_port")}
    settings = {"debug": False, "host": "127.0.0.1", "parallel_workers": 1, **ports}
    (folder / "settings.json").write_text(json.dumps(settings), encoding="ascii")
    model = {"name": "digits", "implementation": "mlserver_digits.Digits"}
    model["parameters"] = {"uri": str(_model())}
    (folder / "model-settings.json").write_text(json.dumps(model), encoding="ascii")
    arguments: list[str | Path] = [PEERS / "mlserver", "start", folder]
    with _started(arguments, folder, ports["http_port"], {"PYTHONPATH": str(HERE)}) as server:
        yield server


def are_peers_there() -> bool:
    """Whether tools/setup-serving-peers has made them."""
    return (PEERS / "mlserver").exists()


def versions() -> str:
    """Of the peers."""
    look = (
        "import importlib.metadata as m;"
        "print(', '.join(f'{n} {m.version(n)}' for n in ('litserve', 'mlserver', 'onnxruntime')))"
    )
    shown = subprocess.run(
        [PEERS / "python", "-c", look], capture_output=True, text=True, timeout=30, check=False
    )
    return shown.stdout.strip()


def _model() -> Path:
    directory = digits.release_dir(2)
    return directory / parse_spec((directory / "release.toml").read_bytes()).model.file


async def _install(state_dir: Path) -> None:
    """Leave a state directory as an agent leaves it that serves digits v2."""
    directory = digits.release_dir(2)
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


@contextlib.contextmanager
def _started(
    arguments: list[str | Path], folder: Path, port: int, env: dict[str, str] | None = None
) -> Iterator[Server]:
    """Yield once its model answers."""
    log = folder / "server.log"
    with (
        log.open("wb") as stderr,
        processes.child(
            arguments,
            stdout=stderr,
            stderr=stderr,
            # numpy's BLAS would start threads that none of the subjects needs.
            env={"OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1", **(env or {})},
        ) as child,
    ):
        until = time.monotonic() + START_TIMEOUT_S
        while not _answers(port):
            if child.poll() is not None or time.monotonic() > until:
                lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
                raise BenchError(f"{arguments[0]} does not serve: {lines[-1:]}")
            time.sleep(0.1)
        yield Server(child.pid, port)


def _answers(port: int) -> bool:
    body = json.dumps(
        {"inputs": [{"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0] * 64}]}
    )
    ask = f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
    ask += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as line:
            line.sendall(ask.encode())
            return b" 200 " in line.recv(64)
    except OSError:
        return False
