"""Brings the files of a release onto the board: fetched, built from a delta, assembled, swept away again.

It knows files and nothing of what serves; `update` decides when, and journals each step before.
"""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog

from shoal_agent.errors import UnusableReleaseError, UpdateError
from shoal_agent.fetch import BlobFetcher
from shoal_agent.files import ContentStore, sha256_of
from shoal_agent.inference.errors import ModelRefusedError
from shoal_agent.inference.signature import Signature, signature_of
from shoal_agent.inference.verdict import Verdict
from shoal_agent.reconcile import Actual
from shoal_broker.bus_errors import BusError, StoreError
from shoal_contract.errors import ContractError
from shoal_contract.messages import BlobRef, Manifest, ModelWanted
from shoal_contract.release import SPEC_FILE, GateTable, ReleaseSpec, parse_manifest, parse_spec

log = structlog.get_logger()

BUILD_TIMEOUT_S = 600.0
VET_TIMEOUT_S = 300.0
"""Reading half a gigabyte from a slow card takes its time."""
_PASSING_ERRORS = frozenset({"StorageError", "MemoryError"})
_ATTEMPTS = 2
"""A child may also be killed from outside: only the second death is the release's fault."""


@dataclass(frozen=True, slots=True)
class Installed:
    """What is told of a release that serves: its version, the sha256 of its model file, its description."""

    version: str
    model_file: bytes
    spec: ReleaseSpec | None = None


@dataclass(frozen=True, slots=True)
class _Ended:
    """How a child ended. `code` is negative for a signal."""

    code: int | None
    stdout: bytes
    last_words: str

    def __str__(self) -> str:
        how = f"exit code {self.code}"
        if self.code is not None and self.code < 0:
            how = f"ended by {signal.Signals(-self.code).name}"
        return f"{how}: {self.last_words}" if self.last_words else how


class Staging:
    """The files of releases on this board.

    Args:
        python: the interpreter for the short-lived child that applies deltas.
    """

    def __init__(
        self, content: ContentStore, fetcher: BlobFetcher, *, python: str = sys.executable
    ) -> None:
        self._content = content
        self._fetcher = fetcher
        self._python = python
        # Why each did not lead to its file.
        self._bad_deltas: dict[bytes, str] = {}

    def look(
        self, wanted: ModelWanted, *, serving: bytes | None, admitted: bool, shadowed: bool
    ) -> Actual:
        """What is true of a wanted release; a damaged manifest is dropped, so that it comes anew.

        Raises:
            UnusableReleaseError: its manifest is none.
        """
        blobs = self._content.digests()
        if wanted.release in blobs and self._content.drop_if_damaged(wanted.release):
            log.warning("damaged manifest", model=wanted.model, release=wanted.release.hex()[:12])
            blobs -= {wanted.release}
        manifest = self._manifest(wanted.release) if wanted.release in blobs else None
        return Actual(
            serving=serving,
            blobs=blobs,
            manifest=manifest,
            assembled=manifest is not None and self._content.is_assembled(wanted.release, manifest),
            admitted=admitted,
            shadowed=shadowed,
            bad_deltas=frozenset(self._bad_deltas),
        )

    def why_no_delta(self, wanted: ModelWanted) -> str:
        """Why a delta that is offered was of no use here; "": none was tried in vain."""
        reasons = (self._bad_deltas.get(offer.blob.digest) for offer in wanted.deltas)
        return next((f"a delta failed: {reason}" for reason in reasons if reason), "")

    def why_not_now(self) -> str:
        """Why nothing may be fetched now; "": it may."""
        return self._fetcher.allowance.why_not_now()

    async def fetch(self, blob: BlobRef) -> None:
        """Bring a blob here.

        Raises:
            UpdateError: it cannot come or be kept now.
            StoreError: the request for its chunks cannot be kept.
        """
        try:
            await self._fetcher.fetch(blob)
        except StoreError:
            raise
        except BusError as exc:
            raise UpdateError(f"chunks cannot be asked for: {exc}") from exc

    async def build(self, base: bytes, delta: bytes, target: bytes) -> None:
        """Apply a delta in a child: numpy stays out of this process, and the child may be killed.

        A delta that does not lead to `target` is remembered and not tried again.

        Raises:
            UpdateError: disk or memory stood in the way, which is no fault of the delta.
        """
        output = self._content.part(target)
        ended = await self._run(
            *(
                "shoal_delta",
                "apply",
                str(self._content.path(base)),
                str(self._content.path(delta)),
            ),
            *("-o", str(output), "--json"),
            timeout_s=BUILD_TIMEOUT_S,
        )
        if ended.code == 0 and self._content.adopt(output, target):
            return
        reason = ended.last_words or "wrong content"
        if _error_kind(ended.stdout) in _PASSING_ERRORS:
            raise UpdateError(f"a delta cannot be applied now: {reason}")
        log.warning("a delta failed", delta=delta.hex()[:12], reason=reason)
        output.unlink(missing_ok=True)
        self._bad_deltas[delta] = reason

    async def vet(self, release: bytes) -> None:
        """Hold the files of an assembled release against its manifest, in a child that may do nothing else.

        Raises:
            ModelRefusedError: they are not what it says, or may not be tried; the message is the reason.
            OSError: no child can be started.
        """
        directory = self._content.release_dir(release)
        for attempt in range(1, _ATTEMPTS + 1):
            ended = await self._run(
                *("shoal_agent.inference.vetting_child", str(directory), release.hex()),
                str(self._content.directory),
                timeout_s=VET_TIMEOUT_S,
            )
            verdict = _verdict(ended.stdout)
            if ended.code == 0 and verdict is not None:
                if verdict:
                    raise ModelRefusedError(verdict)
                return
            if attempt == _ATTEMPTS:
                raise ModelRefusedError(f"the check of its files did not end well: {ended}")

    async def _run(self, *arguments: str, timeout_s: float) -> "_Ended":
        child = await asyncio.create_subprocess_exec(
            self._python, "-P", "-m", *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        stdout = stderr = b""
        is_late = False
        try:
            async with asyncio.timeout(timeout_s):
                stdout, stderr = await child.communicate()
        except TimeoutError:
            is_late = True
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        lines = stderr.decode("utf-8", "replace").strip().splitlines()
        last_words = "it took too long" if is_late else lines[-1][:200] if lines else ""
        return _Ended(child.returncode, stdout, last_words)

    def assemble(self, model: str, release: bytes) -> None:
        """Make the release's directory.

        Raises:
            UnusableReleaseError: its description is wrong, or is of another model.
        """
        self._content.assemble(release, self._manifest(release))
        spec = self._spec(release)
        if spec.name != model:
            raise UnusableReleaseError(f"the release is for {spec.name!r}, not for {model!r}")

    def describe(self, release: bytes) -> Installed:
        """What is told of an assembled release.

        Raises:
            UnusableReleaseError: its description is wrong.
            OSError: its files cannot be read.
        """
        spec = self._spec(release)
        try:
            digests = {entry.name: entry.digest for entry in self._manifest(release).files}
        except (OSError, UnusableReleaseError):
            # The files themselves were good enough to load: a lost manifest must not stop them.
            path = self._content.release_dir(release) / spec.model.file
            return Installed(spec.version, sha256_of(path), spec)
        return Installed(spec.version, digests[spec.model.file], spec)

    def gate(self, release: bytes) -> GateTable:
        """What an assembled release is to be held against.

        Raises:
            UnusableReleaseError: its description is wrong.
            OSError: its files cannot be read.
        """
        return self._spec(release).gate

    def signature(self, release: bytes) -> Signature:
        """What an assembled release promises to take and give.

        Raises:
            UnusableReleaseError: its description is wrong.
            OSError: its files cannot be read.
        """
        return signature_of(self._spec(release))

    def sweep(self, releases: Iterable[bytes], *, arriving: Iterable[bytes] = ()) -> None:
        """Keep these releases with their files, and blobs under way; delete everything else."""
        kept = set(releases)
        blobs = kept | set(arriving)
        for release in kept:
            # One that cannot be read keeps nothing: it is refused, or will be fetched again.
            with contextlib.suppress(UnusableReleaseError):
                if self._content.has(release):
                    blobs.update(entry.digest for entry in self._manifest(release).files)
        freed = self._content.sweep(keep_releases=kept, keep_blobs=blobs)
        if freed:
            log.info("old files deleted", freed_bytes=freed)

    def _manifest(self, release: bytes) -> Manifest:
        try:
            return parse_manifest(self._content.path(release).read_bytes(), release=release)
        except ContractError as exc:
            raise UnusableReleaseError(f"the manifest cannot be used: {exc}") from exc

    def _spec(self, release: bytes) -> ReleaseSpec:
        path = self._content.release_dir(release) / SPEC_FILE
        try:
            return parse_spec(path.read_bytes())
        except ContractError as exc:
            raise UnusableReleaseError(str(exc)) from exc


def _error_kind(stdout: bytes) -> str:
    """The name of the error that `shoal-delta --json` tells; "": it tells none."""
    try:
        told = msgspec.json.decode(stdout, type=dict[str, Any])
    except msgspec.MsgspecError:
        return ""
    return str(told.get("error", ""))


def _verdict(stdout: bytes) -> str | None:
    """The reason that the child gives, "" for none; None: it gives no verdict."""
    try:
        return msgspec.json.decode(stdout, type=Verdict).reason
    except msgspec.MsgspecError:
        return None
