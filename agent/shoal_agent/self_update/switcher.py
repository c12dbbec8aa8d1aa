"""Root's part of the agent's own update: judges what is asked, unpacks it, moves the links, watches, goes back.

It believes nothing that the agent says: the release is held against the update metadata, from a root of its own.
Deciding within a trial is `steps`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, assert_never

import msgspec
import structlog

from shoal_agent.self_update.errors import BadTreeError, NotNowError, SelfUpdateError
from shoal_agent.self_update.home import Home
from shoal_agent.self_update.request import (
    ARCHIVE,
    GROUP,
    MANIFEST,
    MAX_ARCHIVE_BYTES,
    MODEL,
    Asked,
    Folder,
)
from shoal_agent.self_update.standing import Standing, Trial, load, save
from shoal_agent.self_update.steps import (
    GoBack,
    Keep,
    Point,
    Restart,
    Returned,
    Seen,
    Wait,
    next_act,
)
from shoal_agent.updater.child import ADDRESS, judged
from shoal_agent.updater.floors import raised
from shoal_agent.updater.sources import DirectorySource
from shoal_agent.updater.wire import Question
from shoal_contract.errors import ContractError
from shoal_contract.messages import MAX_MESSAGE_BYTES, Manifest
from shoal_contract.release import parse_manifest
from shoal_contract.release_targets import path_of

log = structlog.get_logger()

POLL_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the switcher is told of its machine.

    Attributes:
        home: of the release trees.
        folder: where the agent asks.
        root_file: the root of the update metadata, root's own file.
        restart: restarts the agent from `current`, with the unit of that tree; OSError: that cannot be done.
        limit_s: so long a new agent may take to be healthy.
        keep: so many trees stay.
        machine, python: what a tree must be made for.
    """

    home: Path
    folder: Path
    root_file: Path
    restart: Callable[[], None]
    machine: str
    python: str
    limit_s: float = 300.0
    keep: int = 3
    clock_s: Callable[[], float] = time.monotonic
    now_s: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep


class Switcher:
    """One run: ends a trial that a power cut broke off, then does what is asked. Blocking."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._home = Home(around.home)
        self._folder = Folder(around.folder)

    def run(self) -> Standing:
        """Do all there is to do; what is remembered then.

        Raises:
            NotNowError: what is remembered cannot be read.
            OSError: the disk does not take what must be kept, or the agent cannot be restarted.
        """
        standing = load(self._around.home)
        if standing.trial is not None:
            standing = self._end(standing)
        try:
            asked = self._folder.asked()
        except NotNowError as exc:
            log.warning("request refused", reason=str(exc))
            return standing
        if asked is None or asked.token == standing.answered:
            return standing
        return self._answer(standing, asked)

    def _answer(self, standing: Standing, asked: Asked) -> Standing:
        answered = msgspec.structs.replace(standing, answered=asked.token, reason="")
        try:
            self._home.clear_incoming()
            try:
                answered, tree = self._prepared(answered, asked)
            finally:
                self._home.drop_incoming()
        except BadTreeError as exc:
            answered = answered.refusing(asked.release, str(exc))
        except (SelfUpdateError, OSError, MemoryError) as exc:
            answered = msgspec.structs.replace(answered, reason=(str(exc) or "no memory")[:500])
        else:
            current = self._home.led_to("current")
            trees = {**answered.trees, tree: asked.release}
            trees = {name: one for name, one in trees.items() if self._home.has(name)}
            answered = msgspec.structs.replace(answered, trees=trees)
            if tree != current:
                trial = Trial(
                    tree=tree,
                    previous=current,
                    release=asked.release,
                    token=asked.token,
                    older=self._home.led_to("previous"),
                    models=asked.models,
                )
                answered = msgspec.structs.replace(answered, trial=trial)
        save(self._around.home, answered)
        if answered.trial is None:
            log.info("request answered", release=asked.release[:12], reason=answered.reason)
            return answered
        return self._end(answered)

    def _prepared(self, standing: Standing, asked: Asked) -> tuple[Standing, str]:
        """The tree of the release, there under its name; nothing leads to it yet."""
        if asked.release in standing.refused:
            raise NotNowError(standing.refused[asked.release])
        if not self._home.has(self._home.led_to("current")):
            raise NotNowError("no release tree is current: there would be nothing to go back to")
        standing = self._require_signed(standing, asked.release)
        manifest = self._manifest(bytes.fromhex(asked.release))
        archive = self._home.incoming / ARCHIVE
        entry = next((entry for entry in manifest.files if entry.name == ARCHIVE), None)
        if manifest.name != MODEL or entry is None:
            raise BadTreeError(f"the release is {manifest.name}, not {MODEL} with a {ARCHIVE}")
        self._folder.copy(ARCHIVE, archive, MAX_ARCHIVE_BYTES)
        with archive.open("rb") as file:
            if hashlib.file_digest(file, "sha256").digest() != entry.digest:
                raise NotNowError(f"{ARCHIVE} is not the one that the manifest lists")
        tree = self._home.take_in(archive, machine=self._around.machine, python=self._around.python)
        return standing, tree

    def _require_signed(self, standing: Standing, release: str) -> Standing:
        source = self._home.incoming / "metadata"
        self._folder.copy_metadata(source)
        question = Question(
            directory=str(self._around.home / "metadata"),
            root_file=str(self._around.root_file),
            source=str(source),
            floors=standing.floors,
            now_s=max(int(self._around.now_s()), standing.floors.issued_s),
            paths=[path_of(GROUP, MODEL, bytes.fromhex(release))],
            release=release,
        )
        verdict = judged(question, DirectorySource(source), address=ADDRESS)
        if verdict.seen is not None:
            standing = msgspec.structs.replace(
                standing, floors=raised(standing.floors, verdict.seen)
            )
            save(self._around.home, _unanswered(standing))
        if verdict.kind != "listed":
            raise NotNowError(f"not switched: {verdict.reason}")
        return standing

    def _manifest(self, release: bytes) -> Manifest:
        data = self._folder.small(MANIFEST, MAX_MESSAGE_BYTES)
        if data is None or hashlib.sha256(data).digest() != release:
            raise NotNowError("the manifest is not the release's")
        try:
            return parse_manifest(data, release=release)
        except ContractError as exc:
            raise BadTreeError(str(exc)) from exc

    def _end(self, standing: Standing) -> Standing:
        """Bring the trial to its end, however often that was begun."""
        trial = standing.trial
        if trial is None:
            return standing
        trial = msgspec.structs.replace(trial, starts=trial.starts + 1)
        standing = self._keep(standing, trial)
        restarted, since_s = False, self._around.clock_s()
        while True:
            seen = Seen(
                current=self._home.led_to("current"),
                restarted=restarted,
                answer=self._folder.healthy(),
                waited_s=self._around.clock_s() - since_s,
                limit_s=self._around.limit_s,
            )
            match next_act(trial, seen):
                case Point(tree):
                    self._point(trial, tree)
                    restarted = False
                case Restart():
                    self._restart(trial)
                    restarted, since_s = True, self._around.clock_s()
                case Wait():
                    self._around.sleep(POLL_S)
                case GoBack(reason):
                    log.error("release given up", tree=trial.tree, reason=reason)
                    trial = msgspec.structs.replace(trial, phase="returning")
                    standing = self._keep(standing.refusing(trial.release, reason), trial)
                    restarted = False
                case Keep() | Returned() as ended:
                    standing = self._keep(standing, None)
                    self._home.prune(self._around.keep)
                    log.info("trial ended", tree=trial.tree, how=type(ended).__name__)
                    return standing
                case other:
                    assert_never(other)

    def _point(self, trial: Trial, tree: str) -> None:
        """Lead `previous` first, so that there is always a way back, as Ansible does; `current` decides."""
        self._home.point("previous", trial.previous if tree == trial.tree else trial.older)
        self._home.point("current", tree)

    def _restart(self, trial: Trial) -> None:
        try:
            self._around.restart()
        except OSError as exc:
            # A unit that does not come up within its time is what a trial is there to find out.
            log.warning("the agent did not start", tree=trial.tree, reason=str(exc))

    def _keep(self, standing: Standing, trial: Trial | None) -> Standing:
        standing = msgspec.structs.replace(standing, trial=trial)
        save(self._around.home, standing)
        return standing


def _unanswered(standing: Standing) -> Standing:
    """To be kept before the request is answered: a power cut then leaves it to be answered."""
    return msgspec.structs.replace(standing, answered="")
