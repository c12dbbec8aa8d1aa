"""The catalogue of releases: takes an upload in, checks it in a child, stores it by content.

Whether a model is good enough the rules of `quality_gate` say; here is what they are asked with.
"""

import asyncio
import json
import tarfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog
from sqlalchemy import select

from shoal_contract import messages, release
from shoal_contract.messages import BlobRef, Manifest, OperatorSet
from shoal_contract.release import ReleaseSpec
from shoal_fleet import quality_gate
from shoal_fleet.blob_store import BlobStore
from shoal_fleet.child import run_module
from shoal_fleet.clock import now_ms
from shoal_fleet.database import Database
from shoal_fleet.errors import ConflictError, NotFoundError, ReleaseError, StateError
from shoal_fleet.release_directory import (
    EVALUATION_MEMBER,
    PARENT_MEMBER,
    REPORT_FILES,
    read_spec,
    reports_in,
)
from shoal_fleet.release_judging import MAX_EVALUATION_BYTES, Gate, judge, take_aside
from shoal_fleet.scratch import scratch_folder
from shoal_fleet.tables import ReleaseRow, ReportRow

log = structlog.get_logger(__name__)

MAX_UPLOAD_BYTES: Final = 2 * release.MAX_FILE_BYTES + MAX_EVALUATION_BYTES + (64 << 20)
MAX_FILES: Final = 3 + len(REPORT_FILES) + 2
CHECK_TIMEOUT_S: Final = 300.0
MIN_PREFIX: Final = 4
ANNOUNCEMENT_BYTES: Final = 2048
"""What a wanted state holds beside the digests of chunks."""


@dataclass(frozen=True, slots=True)
class Release:
    """A release that is in the catalogue."""

    id: bytes
    name: str
    version: str
    description: str
    manifest: bytes
    model_file: bytes
    size_bytes: int
    quality: dict[str, Any]
    added_ms: int

    @property
    def title(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"

    @property
    def files(self) -> tuple[messages.FileEntry, ...]:
        """What the manifest lists."""
        manifest: Manifest = messages.decode_as(self.manifest, Manifest)
        return tuple(manifest.files)


class Releases:
    """The catalogue. `scratch` is a directory for uploads on the same disk as the blobs."""

    def __init__(self, database: Database, store: BlobStore, *, scratch: Path) -> None:
        self._database = database
        self._store = store
        self._scratch = scratch

    async def add(
        self, upload: AsyncIterator[bytes], gate: Gate | None = None
    ) -> tuple[Release, dict[str, Any]]:
        """Take in a tar of a release directory; returns the release and the figures of its check.

        The same release again changes nothing.

        Raises:
            ReleaseError: it is no release, its model does not do what it says, or is not good enough.
            ConflictError: this name and version has another content already.
        """
        with scratch_folder(self._scratch) as folder:
            archive = folder / "upload.tar"
            directory = folder / "release"
            await _receive(upload, archive)
            await asyncio.to_thread(_unpack, archive, directory)
            archive.unlink()
            evaluation, parent = (
                take_aside(directory, name, folder) for name in (EVALUATION_MEMBER, PARENT_MEMBER)
            )
            check_can_be_announced(
                directory, read_spec(directory), chunk_bytes=self._store.chunk_bytes
            )
            figures = await _check(directory)
            used = msgspec.convert(figures.pop("operator_sets"), list[OperatorSet])
            spec = read_spec(directory)
            known = [item for item in await self.list_all() if item.name == spec.name]
            # One that is in the catalogue was judged when it came.
            if any(item.version == spec.version for item in known):
                quality: dict[str, Any] = {}
            else:
                rivals = [
                    quality_gate.Rival(
                        item.title, await self.spec(item), item.quality, item.model_file
                    )
                    for item in known
                ]
                quality = await judge(
                    self._store,
                    directory,
                    rivals,
                    evaluation=evaluation,
                    parent=parent,
                    gate=gate or Gate(),
                )
            figures["quality"] = quality
            return await self._store_all(directory, used, quality), figures

    async def list_all(self) -> list[Release]:
        """Every release, by name and then newest version first."""
        async with self._database.read() as session:
            rows = (await session.scalars(select(ReleaseRow))).all()
        found = sorted(
            (_release(row) for row in rows),
            key=lambda item: release.version_key(item.version),
            reverse=True,
        )
        return sorted(found, key=lambda item: item.name)

    async def get(self, release_id: bytes) -> Release:
        """The release with this id.

        Raises:
            NotFoundError: there is none.
        """
        async with self._database.read() as session:
            row = await session.get(ReleaseRow, release_id)
        if row is None:
            raise NotFoundError(f"there is no release {release_id.hex()[:12]}")
        return _release(row)

    async def find(self, text: str) -> Release:
        """The release that a person means: `name@version` or the beginning of an id.

        Raises:
            NotFoundError: none, or more than one.
        """
        known = await self.list_all()
        found = [
            item
            for item in known
            if item.title == text or (len(text) >= MIN_PREFIX and item.id.hex().startswith(text))
        ]
        if len(found) == 1:
            return found[0]
        if found:
            raise NotFoundError(f"{text!r} is the beginning of {len(found)} releases")
        titles = ", ".join(item.title for item in known[:5]) or "none yet"
        raise NotFoundError(f"there is no release {text!r} (there is: {titles})")

    async def report(self, item: Release) -> dict[str, str]:
        """The texts of the report that came with the release, by file name.

        Raises:
            NotFoundError: none came with it.
        """
        async with self._database.read() as session:
            rows = await session.scalars(select(ReportRow).where(ReportRow.release == item.id))
            found = {row.name: row.content.decode("utf-8", "replace") for row in rows}
        if REPORT_FILES[0] not in found:
            raise NotFoundError(
                f"{item.title} came without a report (shoal release build makes one)"
            )
        return found

    async def spec(self, item: Release) -> ReleaseSpec:
        """The release's description.

        Raises:
            StateError: it cannot be read any more.
        """
        digest = next(entry.digest for entry in item.files if entry.name == release.SPEC_FILE)
        try:
            data = await asyncio.to_thread(self._store.path(digest).read_bytes)
        except OSError as exc:
            raise StateError(f"{item.title}: {exc.strerror}") from exc
        return release.parse_spec(data)

    async def bases(self, name: str, *, limit: int) -> list[bytes]:
        """Model files of the newest releases of this name."""
        newest = [item for item in await self.list_all() if item.name == name]
        return [item.model_file for item in newest[:limit]]

    async def blobs(self, item: Release) -> list[BlobRef]:
        """The blobs of the release's files, in the manifest's order.

        Raises:
            StateError: one is gone from the store.
        """
        return [await self.blob(entry.digest) for entry in item.files]

    async def blob(self, digest: bytes) -> BlobRef:
        """A blob that must be here.

        Raises:
            StateError: it is not.
        """
        ref = await self._store.ref(digest)
        if ref is None:
            raise StateError(f"blob {digest.hex()[:12]} is gone from the store")
        return ref

    async def _store_all(
        self, directory: Path, used: list[OperatorSet], judged: dict[str, Any]
    ) -> Release:
        spec = read_spec(directory)
        files = {
            name: await asyncio.to_thread((directory / name).read_bytes) for name in spec.files
        }
        reports = {
            name: await asyncio.to_thread((directory / name).read_bytes)
            for name in reports_in(directory)
        }
        manifest = await asyncio.to_thread(release.build_manifest, spec, files, used)
        refs = {name: await self._store.add(content) for name, content in files.items()}
        ref = await self._store.add(manifest)
        row = ReleaseRow(
            id=ref.digest,
            name=spec.name,
            version=spec.version,
            description=spec.description,
            manifest=manifest,
            model_file=refs[spec.model.file].digest,
            size_bytes=sum(len(content) for content in files.values()),
            quality={
                "metric": spec.quality.metric,
                "value": spec.quality.value,
                "evaluated_on": spec.quality.evaluated_on,
                **judged,
            },
            added_ms=now_ms(),
        )
        async with self._database.write() as session:
            known = await session.scalar(
                select(ReleaseRow).where(
                    ReleaseRow.name == spec.name, ReleaseRow.version == spec.version
                )
            )
            if known is not None and known.id != row.id and not _are_same_files(known, row):
                raise ConflictError(
                    f"{spec.name}@{spec.version} is there with another content"
                    f" ({known.id.hex()[:12]}): give the changed one a new version"
                )
            if known is None:
                session.add(row)
                await session.flush()
            for name, content in reports.items():
                release_id = (known or row).id
                await session.merge(ReportRow(release=release_id, name=name, content=content))
        added = _release(known or row)
        log.info("release added", release=added.title, id=added.id.hex()[:12], new=known is None)
        return added


def check_can_be_announced(
    directory: Path, spec: release.ReleaseSpec, *, chunk_bytes: int = messages.CHUNK_BYTES
) -> None:
    """A node is told of a release in one message, with the digest of every chunk of every file.

    Raises:
        ReleaseError: it does not fit.
    """
    listed_bytes = sum(
        -(-(directory / name).stat().st_size // chunk_bytes) * messages.CHUNK_DIGEST_BYTES
        for name in spec.files
    )
    if listed_bytes > messages.MAX_MESSAGE_BYTES - ANNOUNCEMENT_BYTES:
        raise ReleaseError(
            f"{spec.model.file}: is too large to be announced in one message"
            f" ({listed_bytes} bytes of chunk digests at {chunk_bytes} bytes a chunk)"
        )


async def _receive(upload: AsyncIterator[bytes], archive: Path) -> None:
    received = 0
    try:
        with archive.open("wb") as file:
            async for piece in upload:
                received += len(piece)
                if received > MAX_UPLOAD_BYTES:
                    raise ReleaseError(f"the upload is larger than {MAX_UPLOAD_BYTES} bytes")
                await asyncio.to_thread(file.write, piece)
    except OSError as exc:
        raise StateError(f"cannot store the upload: {exc.strerror}") from exc


def _unpack(archive: Path, directory: Path) -> None:
    """Only plain files with plain names leave the archive."""
    directory.mkdir()
    try:
        with tarfile.open(archive, "r:") as tar:
            for count, member in enumerate(tar, start=1):
                if count > MAX_FILES:
                    raise ReleaseError(f"a release has at most {MAX_FILES} files; there are more")
                if not member.isreg() or Path(member.name).name != member.name:
                    raise ReleaseError(f"{member.name[:80]!r} is not a plain file")
                if member.size > release.MAX_FILE_BYTES:
                    raise ReleaseError(
                        f"{member.name[:80]!r} is larger than {release.MAX_FILE_BYTES} bytes"
                    )
                content = tar.extractfile(member)
                if content is None:
                    raise ReleaseError(f"{member.name[:80]!r} has no content")
                with content, (directory / member.name).open("xb") as file:
                    while piece := content.read(1 << 20):
                        file.write(piece)
    except (tarfile.TarError, FileExistsError, ValueError, EOFError) as exc:
        raise ReleaseError("the upload is not a tar of a release directory") from exc
    except OSError as exc:
        raise StateError(f"cannot unpack the upload: {exc.strerror}") from exc


async def _check(directory: Path) -> dict[str, Any]:
    # First here, where nothing is run: the line names the file without a child's help.
    spec = read_spec(directory)
    ended = await run_module("shoal_fleet.release_check", str(directory), timeout_s=CHECK_TIMEOUT_S)
    if ended.exit_code is None:
        raise ReleaseError(f"{spec.model.file}: the check took longer than {CHECK_TIMEOUT_S:g} s")
    try:
        verdict = json.loads(ended.stdout)
    except ValueError as exc:
        raise ReleaseError(
            f"{spec.model.file}: the check died on it (exit code {ended.exit_code})"
        ) from exc
    if not verdict.pop("ok"):
        raise ReleaseError(verdict["reason"])
    figures: dict[str, Any] = verdict
    return figures


def _are_same_files(one: ReleaseRow, other: ReleaseRow) -> bool:
    """Manifests say more than they once did: a release that was added before is still the same."""
    return _release(one).files == _release(other).files


def _release(row: ReleaseRow) -> Release:
    return Release(
        id=row.id,
        name=row.name,
        version=row.version,
        description=row.description,
        manifest=row.manifest,
        model_file=row.model_file,
        size_bytes=row.size_bytes,
        quality=row.quality,
        added_ms=row.added_ms,
    )
