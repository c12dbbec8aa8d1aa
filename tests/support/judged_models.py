"""Many hostile models through the agent's own admission, and a count of what came of them.

The vetting runs in this process: whatever it raises but a refusal ends the test. The trial runs in a trial's process,
which judges one model after the other and is opened anew when a model ends it (as in `try_out`, the second death in a
row is the model's fault). Now and then one goes the whole way, through two fresh processes.
"""

import hashlib
import sys
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.shoal_agent.inference import tiny_release as tiny
from tests.support import mutated_models

from shoal_agent.files import ContentStore
from shoal_agent.inference.errors import ModelRefusedError, WorkerLostError
from shoal_agent.inference.model_errors import ModelError
from shoal_agent.inference.process_worker import ProcessWorker
from shoal_agent.inference.settings import WorkerSettings
from shoal_agent.inference.trial import try_out
from shoal_agent.inference.vetting import vet
from shoal_agent.inference.worker import CallRefusedError
from shoal_agent.staging import Staging
from shoal_contract.errors import DecodeError
from shoal_contract.messages import Manifest
from shoal_contract.onnx_outline import outline
from shoal_contract.release import build_manifest, parse_manifest, parse_spec

TRIAL_BYTES = 96 << 20
TIMEOUT_S = 2.0
SETTINGS = WorkerSettings(nice=10, trial_cpu_s=3600)
A_PROCESS_JUDGES = 500
WHOLE_WAY_EVERY = 250


@dataclass(slots=True)
class Judged:
    """What came of the models. `peak_bytes`: how much a trial's process grew at most."""

    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    unreasoned: list[int] = field(default_factory=list)
    processes: int = 0
    peak_bytes: int = 0

    def refused(self, number: int, by: str, reason: str) -> None:
        self.outcomes[by] += 1
        self.reasons[" ".join(reason.split(":", maxsplit=2)[-1].split()[:6])] += 1
        if not reason.strip() or "\n" in reason or len(reason) > 2048:
            self.unreasoned.append(number)


class Judge:
    """Judges models one by one in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.judged = Judged()
        self._folder = folder
        self._bases = mutated_models.bases()
        self._stack = AsyncExitStack()
        self._worker: ProcessWorker | None = None
        self._seen = self._baseline_bytes = 0

    async def close(self) -> None:
        """End the process that is left."""
        await self._stack.aclose()
        self._worker = None

    async def judge(self, number: int) -> None:
        """The model of this number."""
        directory = self._folder / "release"
        model = mutated_models.mutated(self._bases[number % len(self._bases)], number)
        tiny.write(directory, model=model)
        manifest = _manifest(directory, self._listed(number, model))
        if number % WHOLE_WAY_EVERY == 0:
            await self._whole_way(number, directory, manifest)
            return
        try:
            vet(directory, parse_manifest(manifest, release=hashlib.sha256(manifest).digest()))
        except ModelError as exc:
            self.judged.refused(number, "refused unseen", str(exc))
            return
        await self._try(number, directory)

    def _listed(self, number: int, model: bytes):
        """Operators as the release's builder found them; for every other model, those of the spoilt file itself."""
        try:
            return outline(
                model if number % 2 else self._bases[number % len(self._bases)]
            ).operator_sets
        except DecodeError:
            return ()

    async def _try(self, number: int, directory: Path) -> None:
        release = number.to_bytes(32)
        for _ in range(2):
            worker = await self._open()
            try:
                await worker.load(
                    release,
                    directory,
                    trial_bytes=TRIAL_BYTES,
                    calibrate_rows=4,
                    timeout_s=TIMEOUT_S,
                )
                self._note_peak()
                await worker.unload(release)
            except CallRefusedError as exc:
                self._note_peak()
                self.judged.refused(number, "refused in the trial", str(exc))
                return
            except WorkerLostError as exc:
                reason = str(exc)
                self.judged.outcomes["processes lost"] += 1
                continue
            self.judged.outcomes["admitted"] += 1
            return
        self.judged.refused(number, "ended its process twice", reason)

    async def _open(self) -> ProcessWorker:
        worker = self._worker
        if worker is not None and worker.lost is None and self._seen < A_PROCESS_JUDGES:
            self._seen += 1
            return worker
        await self.close()
        self._stack = AsyncExitStack()
        self._worker = worker = await self._stack.enter_async_context(
            ProcessWorker.open(python=sys.executable, settings=SETTINGS)
        )
        self.judged.processes += 1
        self._seen = 1
        self._baseline_bytes = status_bytes(worker.pid, "VmRSS")
        return worker

    def _note_peak(self) -> None:
        """After each model: a load forgets the peak of the one before."""
        if self._worker is not None and self._worker.lost is None:
            grown = status_bytes(self._worker.pid, "VmHWM") - self._baseline_bytes
            self.judged.peak_bytes = max(self.judged.peak_bytes, grown)

    async def _whole_way(self, number: int, directory: Path, manifest: bytes) -> None:
        """As on a board: from the content store, through both children."""
        release = hashlib.sha256(manifest).digest()
        content = ContentStore(self._folder / "state")
        installed = _installed(content, directory, manifest)
        self.judged.outcomes["the whole way"] += 1
        try:
            await Staging(content, None).vet(release)
            await try_out(
                release,
                installed,
                python=sys.executable,
                memory_bytes=TRIAL_BYTES,
                timeout_s=TIMEOUT_S,
            )
        except ModelRefusedError as exc:
            self.judged.refused(number, "refused on the whole way", str(exc))
        else:
            self.judged.outcomes["admitted"] += 1
        content.sweep(keep_releases=(), keep_blobs=())


def status_bytes(pid: int | str, name: str) -> int:
    """A size of a process (proc(5)); 0: it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def _manifest(directory: Path, operator_sets) -> bytes:
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    return build_manifest(parse_spec(files["release.toml"]), files, operator_sets)


def _installed(content: ContentStore, directory: Path, manifest: bytes) -> Path:
    for data in (manifest, *(path.read_bytes() for path in directory.iterdir())):
        content.path(hashlib.sha256(data).digest()).write_bytes(data)
    parsed = _parsed(manifest)
    return content.assemble(hashlib.sha256(manifest).digest(), parsed)


def _parsed(manifest: bytes) -> Manifest:
    return parse_manifest(manifest, release=hashlib.sha256(manifest).digest())
