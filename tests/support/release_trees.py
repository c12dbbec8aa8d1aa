"""Small release trees and a board that has some: what the switcher needs, with a real signed repository."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
from tests.support.signed_repository import SignedRepository

from shoal_agent.self_update.asking import ask, say_healthy
from shoal_agent.self_update.request import FOLDER, GROUP, MODEL
from shoal_agent.self_update.standing import Standing, load
from shoal_agent.self_update.switcher import Surroundings, Switcher
from shoal_contract import messages
from shoal_contract.messages import FileEntry, Manifest

MACHINE, PYTHON = "aarch64", "3.11"


def about(version: str, files: Mapping[str, bytes], **other: object) -> bytes:
    """A release.json."""
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    values = {"version": version, "roles": ["agent"], "python": PYTHON, "arch": MACHINE}
    return json.dumps({**values, "files": digests, **other}).encode()


def packed(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """An archive of these members, whatever they are."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member, content in members:
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(raw.getvalue(), 1, mtime=0)


def member(name: str, content: bytes = b"", **values: object) -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    for key, value in values.items():
        setattr(entry, key, value)
    return entry, content


def tree_archive(version: str, files: Mapping[str, bytes] | None = None, **other: object) -> bytes:
    """A good release tree's archive."""
    if files is None:
        files = {"bin/shoal-agent": b"#!/bin/sh\n", "lib/shoal_agent/code.py": version.encode()}
    every = {"release.json": about(version, files, **other), **files}
    return packed([member(f"{version}/{name}", content) for name, content in every.items()])


class TreeBoard:
    """A board with the tree `0.1.0` and its configuration, an agent that is as healthy as `behaves` says.

    Args:
        behaves: called at every restart with the name of the tree that is current; whether the agent does well.
    """

    def __init__(
        self,
        folder: Path,
        repository: SignedRepository,
        behaves: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self.home, self.state = folder / "home", folder / "state"
        self.repository, self.behaves = repository, behaves
        self.restarts: list[str] = []
        self.clock_s = 0.0
        self.root_file = repository.root_file
        tree = self.home / "releases/0.1.0"
        (tree / "etc").mkdir(parents=True)
        (tree / "release.json").write_bytes(about("0.1.0", {}))
        (tree / "etc/agent.toml").write_text("node = 'a'\n")
        (tree / "etc/agent.toml").chmod(0o640)
        (self.home / "current").symlink_to(tree)
        self.state.mkdir()

    @property
    def current(self) -> str:
        return (self.home / "current").resolve().name

    @property
    def previous(self) -> str:
        link = self.home / "previous"
        return link.readlink().name if link.is_symlink() else ""

    @property
    def trees(self) -> list[str]:
        return sorted(path.name for path in (self.home / "releases").iterdir())

    @property
    def standing(self) -> Standing:
        return load(self.home)

    def release(
        self, archive: bytes, *, name: str = MODEL, group: str | None = GROUP
    ) -> tuple[bytes, bytes]:
        """Id and manifest of a release of the agent, signed for this group."""
        spec = b"kind"
        manifest = messages.encode(
            Manifest(
                name=name,
                version="0.0.1",
                files=[
                    FileEntry("release.toml", len(spec), hashlib.sha256(spec).digest()),
                    FileEntry("tree.tar.gz", len(archive), hashlib.sha256(archive).digest()),
                ],
            )
        )
        if group is not None:
            self.repository.release(group, (MODEL, manifest))
        return hashlib.sha256(manifest).digest(), manifest

    def ask(self, archive: bytes, manifest: bytes, *, models: tuple[str, ...] = ()) -> str:
        """As the agent asks."""
        (self.state / "m").write_bytes(manifest)
        (self.state / "a").write_bytes(archive)
        return ask(
            self.state,
            hashlib.sha256(manifest).digest(),
            manifest=self.state / "m",
            archive=self.state / "a",
            metadata=self.repository.files(),
            models=models,
        )

    def around(self) -> Surroundings:
        return Surroundings(
            home=self.home,
            folder=self.state / FOLDER,
            root_file=self.root_file,
            restart=self._restart,
            machine=MACHINE,
            python=PYTHON,
            limit_s=10.0,
            keep=3,
            clock_s=lambda: self.clock_s,
            now_s=lambda: float(self.repository.now_s),
            sleep=self._sleep,
        )

    def switch(self) -> Standing:
        """One run of the switcher."""
        return Switcher(self.around()).run()

    def _sleep(self, time_s: float) -> None:
        self.clock_s += time_s

    def _restart(self) -> None:
        self.restarts.append(self.current)
        trial = msgspec.json.decode((self.home / "switch.json").read_bytes(), type=Standing).trial
        if trial is not None and self.current == trial.tree and self.behaves(self.current):
            say_healthy(self.state, trial.token)
