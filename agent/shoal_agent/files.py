"""Files that survive a power cut, and the content store that the agent keeps models in.

Everything is written as temp file + fsync + rename + fsync of the directory. Blobs are named by their
sha256; a release is a directory of links to them.
"""

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path

from shoal_broker.durable import sync_directory
from shoal_contract.messages import Manifest

_READ_BYTES = 1 << 20


def sha256_of(path: Path) -> bytes:
    """The sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
    return digest.digest()


class ContentStore:
    """Blobs by digest, and releases assembled from them, below one directory.

    Layout: `blobs/<sha256>`, `parts/<sha256>` (arriving), `releases/<release id>/<files>`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.blobs = directory / "blobs"
        self.parts = directory / "parts"
        self.releases = directory / "releases"
        for folder in (self.blobs, self.parts, self.releases):
            folder.mkdir(parents=True, exist_ok=True)
        # What is flushed within them is lost all the same while their own names are not flushed.
        sync_directory(directory)
        for leftover in self.releases.glob("*.part"):
            shutil.rmtree(leftover)

    def path(self, digest: bytes) -> Path:
        """Where the blob with this digest stands, whether or not it is there."""
        return self.blobs / digest.hex()

    def has(self, digest: bytes) -> bool:
        """Whether the blob is here; it was verified when it was put in."""
        return self.path(digest).is_file()

    def digests(self) -> frozenset[bytes]:
        """The blobs that are here."""
        return frozenset(bytes.fromhex(path.name) for path in self.blobs.iterdir())

    def part(self, digest: bytes) -> Path:
        """Where the blob is collected until it is complete."""
        return self.parts / digest.hex()

    def adopt(self, path: Path, digest: bytes) -> bool:
        """Move a complete, synced file into the store; False (and it is deleted) if it is not that blob."""
        if sha256_of(path) != digest:
            path.unlink()
            return False
        path.replace(self.path(digest))
        sync_directory(self.blobs)
        return True

    def release_dir(self, release: bytes) -> Path:
        """The directory of an assembled release, whether or not it is there."""
        return self.releases / release.hex()

    def is_assembled(self, release: bytes, manifest: Manifest) -> bool:
        """Whether the release's directory is here with every file; one that a power cut left in pieces is not."""
        directory = self.release_dir(release)
        return all((directory / entry.name).is_file() for entry in manifest.files)

    def assemble(self, release: bytes, manifest: Manifest) -> Path:
        """Make the release's directory of links to its blobs, all at once."""
        target = self.release_dir(release)
        if self.is_assembled(release, manifest):
            return target
        shutil.rmtree(target, ignore_errors=True)
        temporary = target.with_name(target.name + ".part")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        for entry in manifest.files:
            (temporary / entry.name).hardlink_to(self.path(entry.digest))
        sync_directory(temporary)
        temporary.replace(target)
        sync_directory(self.releases)
        return target

    def drop_damaged(self, release: bytes) -> list[str]:
        """Delete a release and those of its blobs that are not what their names say.

        They will be fetched again. Returns the names of the damaged blobs.
        """
        directory = self.release_dir(release)
        inodes = (
            {path.stat().st_ino for path in directory.iterdir()} if directory.is_dir() else set()
        )
        damaged = [
            path
            for path in (*self.blobs.iterdir(),)
            if path.stat().st_ino in inodes and sha256_of(path).hex() != path.name
        ]
        if damaged or not inodes:
            shutil.rmtree(directory, ignore_errors=True)
        for path in damaged:
            path.unlink()
        return [path.name for path in damaged]

    def drop_if_damaged(self, digest: bytes) -> bool:
        """Delete a blob that is not what its name says; whether it was."""
        path = self.path(digest)
        if not path.is_file() or sha256_of(path) == digest:
            return False
        path.unlink()
        return True

    def sweep(self, *, keep_releases: Iterable[bytes], keep_blobs: Iterable[bytes]) -> int:
        """Delete every other release, blob and part; returns the bytes that were given back."""
        releases = {release.hex() for release in keep_releases}
        blobs = {digest.hex() for digest in keep_blobs}
        freed = 0
        for directory in list(self.releases.iterdir()):
            if directory.name not in releases:
                shutil.rmtree(directory)
        for folder in (self.blobs, self.parts):
            for path in list(folder.iterdir()):
                if path.name not in blobs:
                    freed += path.stat().st_size
                    path.unlink()
        return freed
