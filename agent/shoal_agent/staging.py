"""Brings the files of a release onto the board: fetched, built from a delta, assembled, swept away again.

It knows files and nothing of what serves; `update` decides when, and journals each step before.
"""

import asyncio
import contextlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass

import structlog

from shoal_agent.errors import UnusableReleaseError, UpdateError
from shoal_agent.fetch import BlobFetcher
from shoal_agent.files import ContentStore, sha256_of
from shoal_agent.reconcile import Actual
from shoal_broker.bus_errors import BusError, StoreError
from shoal_contract.errors import ContractError
from shoal_contract.messages import BlobRef, Manifest, ModelWanted
from shoal_contract.release import SPEC_FILE, ReleaseSpec, parse_manifest, parse_spec

log = structlog.get_logger()

BUILD_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Installed:
    """What is told of a release that serves: its version, and the sha256 of its model file."""

    version: str
    model_file: bytes


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
        self._bad_deltas: set[bytes] = set()

    def look(self, wanted: ModelWanted, *, serving: bytes | None, admitted: bool) -> Actual:
        """What is true of a wanted release; a damaged manifest is dropped, so that it comes anew.

        Raises:
            UnusableReleaseError: its manifest is none.
        """
        blobs = self._content.digests()
        if wanted.release in blobs and self._content.drop_if_damaged(wanted.release):
            log.warning("damaged manifest", model=wanted.model, release=wanted.release.hex()[:12])
            blobs -= {wanted.release}
        return Actual(
            serving=serving,
            blobs=blobs,
            manifest=self._manifest(wanted.release) if wanted.release in blobs else None,
            assembled=self._content.release_dir(wanted.release).is_dir(),
            admitted=admitted,
            bad_deltas=frozenset(self._bad_deltas),
        )

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
        """
        output = self._content.part(target)
        child = await asyncio.create_subprocess_exec(
            self._python, "-P", "-m", "shoal_delta", "apply",
            str(self._content.path(base)), str(self._content.path(delta)), "-o", str(output),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            async with asyncio.timeout(BUILD_TIMEOUT_S):
                _, stderr = await child.communicate()
        except TimeoutError:
            stderr = b"it took too long"
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        if child.returncode == 0 and self._content.adopt(output, target):
            return
        reason = stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["wrong content"]
        log.warning("a delta failed", delta=delta.hex()[:12], reason=reason[0])
        output.unlink(missing_ok=True)
        self._bad_deltas.add(delta)

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
            return Installed(spec.version, sha256_of(path))
        return Installed(spec.version, digests[spec.model.file])

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
