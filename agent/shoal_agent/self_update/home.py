"""The home of the release trees, `/opt/shoal`: which tree is current, moving the links, taking in and pruning trees.

The same layout as Ansible's role `release` leaves: `releases/<name>/`, absolute links `current` and `previous`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Final

from shoal_agent.self_update.errors import BadTreeError, NotNowError
from shoal_agent.self_update.tree_archive import CONFIG_FOLDER, read_about, unpack
from shoal_broker.durable import sync_directory

INCOMING: Final = ".incoming"
CONFIG_FILE: Final = "agent.toml"


class Home:
    """Release trees below one directory. Blocking."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.releases = directory / "releases"
        self.incoming = self.releases / INCOMING

    def led_to(self, link: str) -> str:
        """The name of the tree that `current` or `previous` leads to; empty: none."""
        try:
            return Path((self.directory / link).readlink()).name
        except (FileNotFoundError, OSError):
            return ""

    def has(self, tree: str) -> bool:
        """Whether this tree is there, whole: it was renamed when it was."""
        return bool(tree) and (self.releases / tree / "release.json").is_file()

    def point(self, link: str, tree: str) -> None:
        """Lead the link to this tree, at once and over a power cut; no tree: remove the link.

        Raises:
            OSError: the disk does not take it.
        """
        path, part = self.directory / link, self.directory / f".{link}.part"
        part.unlink(missing_ok=True)
        if tree:
            part.symlink_to(self.releases / tree)
            part.replace(path)
        else:
            path.unlink(missing_ok=True)
        sync_directory(self.directory)

    def take_in(self, archive: Path, *, machine: str, python: str) -> str:
        """Unpack an archive beside its place, give it the current tree's configuration, and then its name.

        Files of `etc/` that the archive brings win: that is how a release changes the configuration.

        Raises:
            BadTreeError: the archive holds no tree for this machine, or another one of that name is there.
            NotNowError: the current tree has no configuration to go on with.
            OSError: the disk does not take it.
        """
        fresh = self.incoming / "tree"
        about = unpack(archive, fresh, machine=machine, python=python)
        target = self.releases / about.version
        if self.has(about.version):
            if read_about(target) != read_about(fresh):
                raise BadTreeError(f"another build is there under the name {about.version}")
        else:
            self._add_configuration(fresh)
            shutil.rmtree(target, ignore_errors=True)
            fresh.rename(target)
            sync_directory(self.releases)
        if not (target / CONFIG_FOLDER / CONFIG_FILE).is_file():
            raise NotNowError(f"{about.version} is there without its {CONFIG_FILE}")
        return about.version

    def clear_incoming(self) -> None:
        """Remove what an interrupted run left, and make the folder to work in.

        Raises:
            OSError: the disk does not take it.
        """
        shutil.rmtree(self.incoming, ignore_errors=True)
        self.releases.mkdir(parents=True, exist_ok=True)
        self.incoming.mkdir(mode=0o700)

    def drop_incoming(self) -> None:
        """Remove the folder that was worked in."""
        shutil.rmtree(self.incoming, ignore_errors=True)

    def prune(self, keep: int) -> None:
        """Remove the oldest trees but `keep`; what the links lead to is always kept."""
        kept = {self.led_to("current"), self.led_to("previous")} - {""}
        others = sorted(
            (path for path in self.releases.iterdir() if path.is_dir() and path.name not in kept),
            key=lambda path: path.stat().st_mtime,
            reverse=True,
        )
        for path in others[max(0, keep - len(kept)) :]:
            shutil.rmtree(path, ignore_errors=True)

    def _add_configuration(self, fresh: Path) -> None:
        source = self.releases / self.led_to("current") / CONFIG_FOLDER
        target = fresh / CONFIG_FOLDER
        target.mkdir(mode=0o755, exist_ok=True)
        target.chmod(0o755)
        brought = {path.name for path in target.iterdir()}
        with contextlib.suppress(FileNotFoundError):
            for path in sorted(source.iterdir()):
                if path.is_file() and not path.is_symlink() and path.name not in brought:
                    _copy(path, target / path.name)
        # A brought configuration stays as private as the one that it takes the place of.
        for name in brought:
            if (source / name).is_file():
                _take_rights(source / name, target / name)
        sync_directory(target)
        sync_directory(fresh)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target, follow_symlinks=False)
    _take_rights(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())


def _take_rights(source: Path, target: Path) -> None:
    status = source.stat()
    target.chmod(status.st_mode & 0o777)
    if os.geteuid() == 0:
        os.chown(target, status.st_uid, status.st_gid)
