"""python-tuf with what it leaves open: floors from the journal, a clock that does not go back, files that last.

python-tuf decides what is signed, fresh and consistent. It keeps its files without fsync, so after a power cut
they may be empty, and an old timestamp would be news again: what the floors say was seen is not seen anew.
Runs in the updater child and in tools/tuf-client.
"""

import contextlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tuf.api.exceptions import DownloadError, RepositoryError
from tuf.api.metadata import Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.ngclient import Updater, UpdaterConfig

from shoal_agent.updater.errors import RolledBackError, UnverifiedError
from shoal_agent.updater.fetcher import Fetcher
from shoal_agent.updater.floors import Floors, older
from shoal_broker.durable import sync_directory
from shoal_contract.release_targets import ISSUED_FIELD, MAX_METADATA_BYTES

LIMITS: Final = UpdaterConfig(
    root_max_length=MAX_METADATA_BYTES,
    timestamp_max_length=16 * 1024,
    snapshot_max_length=MAX_METADATA_BYTES,
    targets_max_length=MAX_METADATA_BYTES,
)
_ONLINE_FILES: Final = ("timestamp.json", "snapshot.json")


class Judge:
    """One look at the metadata.

    Args:
        directory: where verified files are kept; it may be empty or damaged.
        root: the root that is trusted without proof.
        address: what the metadata's addresses begin with, for the fetcher.
        now_s: the time that expiries are held against.
        target_dir, target_address: where targets are downloaded to and from, for who downloads any.
    """

    def __init__(
        self,
        directory: Path,
        root: bytes,
        fetcher: Fetcher,
        *,
        address: str,
        floors: Floors,
        now_s: int,
        target_dir: Path | None = None,
        target_address: str | None = None,
    ) -> None:
        self._directory = directory
        self._floors = floors
        with self._verifying():
            directory.mkdir(parents=True, exist_ok=True)
            self._synced = self._files()
            for leftover in directory.glob("tmp*"):
                leftover.unlink()
            self._updater = Updater(
                str(directory),
                address,
                target_dir=None if target_dir is None else str(target_dir),
                target_base_url=target_address,
                fetcher=fetcher,
                config=LIMITS,
                bootstrap=root,
            )
            self._trusted = self._updater._trusted_set  # noqa: SLF001 - a test holds that it is there
            self._trusted.reference_time = datetime.fromtimestamp(now_s, UTC)

    def refresh(self) -> None:
        """Bring the top-level metadata up to date, verified, durable, and not below the floors.

        Raises:
            RolledBackError: it is older than what was seen.
            UnverifiedError: it cannot be had, is expired, or not signed as it must be.
        """
        with self._verifying():
            self._updater.refresh()
        if reason := older(self.seen(), self._floors):
            for name in _ONLINE_FILES:
                (self._directory / name).unlink(missing_ok=True)
            raise RolledBackError(reason)

    def find(self, path: str) -> TargetFile | None:
        """What the metadata says of a target; None: nobody who may list it does.

        Raises:
            UnverifiedError: the metadata of whoever might list it cannot be relied on.
        """
        with self._verifying():
            return self._updater.get_targetinfo(path)

    def download(self, target: TargetFile) -> Path:
        """The verified file of a target, fetched unless it is there.

        Raises:
            UnverifiedError: what came is not the target.
        """
        with self._verifying():
            found = self._updater.find_cached_target(target)
            path = Path(found or self._updater.download_target(target))
            with path.open("rb") as file:
                os.fsync(file.fileno())
            sync_directory(path.parent)
            return path

    def seen(self) -> Floors:
        """What has been verified so far; 0 for what has not."""
        root: Root = self._trusted.root
        timestamp = self._trusted.timestamp if Timestamp.type in self._trusted else None
        snapshot = self._trusted.snapshot if Snapshot.type in self._trusted else None
        issued_s = 0
        if timestamp is not None:
            said = timestamp.unrecognized_fields.get(ISSUED_FIELD, 0)
            # Signed after its own end is nonsense, and would only push the clock.
            if isinstance(said, int) and 0 < said <= timestamp.expires.timestamp():
                issued_s = said
        return Floors(
            root=root.version,
            timestamp=0 if timestamp is None else timestamp.version,
            snapshot=0 if timestamp is None else timestamp.snapshot_meta.version,
            issued_s=issued_s,
            timestamp_keys=sorted(root.roles[Timestamp.type].keyids),
            roles=(
                {}
                if snapshot is None
                else {name: meta.version for name, meta in snapshot.meta.items()}
            ),
            snapshot_keys=sorted(root.roles[Snapshot.type].keyids),
        )

    def expires_s(self) -> int:
        """When the first of everything that was looked at runs out, in Unix time; 0 before a refresh."""
        # Iterating over this mapping gives its values.
        ends = [signed.expires.timestamp() for signed in self._trusted]
        return int(min(ends)) if Targets.type in self._trusted else 0

    @contextlib.contextmanager
    def _verifying(self) -> Iterator[None]:
        """One kind of error comes out of this block."""
        try:
            yield
        except (RepositoryError, DownloadError) as exc:
            raise UnverifiedError(f"{type(exc).__name__.removesuffix('Error')}: {exc}") from exc
        except (OSError, ValueError, RecursionError) as exc:
            raise UnverifiedError(str(exc)) from exc

    def settle(self) -> None:
        """Make what was kept last: to be called before anybody acts on what was seen.

        Raises:
            UnverifiedError: the disk does not take it.
        """
        with self._verifying():
            self._sync()

    def _sync(self) -> None:
        new = self._files() - self._synced
        for path, _, _ in new:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        for folder in {path.parent for path, _, _ in new}:
            sync_directory(folder)
        self._synced |= new

    def _files(self) -> set[tuple[Path, int, int]]:
        """Each file with its inode and time: python-tuf writes beside and renames, so a new one differs."""
        return {
            (path, (status := path.stat()).st_ino, status.st_mtime_ns)
            for path in self._directory.rglob("*.json")
            if path.is_file() and not path.is_symlink()
        }
