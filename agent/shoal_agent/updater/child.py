"""The updater child: one question on stdin, files asked for and given over the pipe, one verdict, and gone.

`python -m shoal_agent.updater.child`, started by `signed_releases`. python-tuf and cryptography live and die here.
"""

import contextlib
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from shoal_agent.errors import AgentError
from shoal_agent.updater.errors import UnverifiedError
from shoal_agent.updater.fetcher import Fetcher
from shoal_agent.updater.judge import Judge
from shoal_agent.updater.sources import DirectorySource, HttpSource, MissingError, Source
from shoal_agent.updater.wire import (
    BROKER,
    MAX_LINE_BYTES,
    Ask,
    Given,
    Question,
    Verdict,
    line,
)
from shoal_contract.release_targets import MAX_METADATA_BYTES

ADDRESS: Final = "shoal:///"
MAX_MEMORY_BYTES: Final = 512 << 20
MAX_CPU_S: Final = 60


class AgentSource:
    """What the broker retains, asked of the agent over the pipe."""

    def __init__(self, read: BinaryIO, write: BinaryIO) -> None:
        self._read = read
        self._write = write

    def pieces(self, name: str, *, left_s: Callable[[], float]) -> Iterator[bytes]:  # noqa: ARG002 - the agent has its own patience
        """See Source."""
        self._write.write(line(Ask(name)))
        self._write.flush()
        try:
            given = msgspec.json.decode(self._read.readline(MAX_LINE_BYTES), type=Given)
        except msgspec.DecodeError as exc:
            raise OSError("the agent is gone") from exc
        if given.failure:
            raise OSError(given.failure)
        if given.data is None:
            raise MissingError(name)
        yield given.data


def judged(question: Question, source: Source, *, address: str = ADDRESS) -> Verdict:
    """What the metadata says to the question; never raises for what comes from outside."""
    judge: Judge | None = None
    try:
        judge = Judge(
            Path(question.directory),
            _root(Path(question.root_file)),
            Fetcher({address: source}),
            address=address,
            floors=question.floors,
            now_s=question.now_s,
        )
        judge.refresh()
        verdict = _answer(question, judge)
        judge.settle()
    except AgentError as exc:
        if judge is None:
            return Verdict("unverified", reason=str(exc)[:500])
        # What was verified before it failed counts: a newer root, and whom it deposed.
        with contextlib.suppress(UnverifiedError):
            judge.settle()
        return Verdict("unverified", judge.seen(), reason=str(exc)[:500])
    return verdict


def _answer(question: Question, judge: Judge) -> Verdict:
    if not question.paths:
        return Verdict("fresh", judge.seen(), expires_s=judge.expires_s())
    others: list[str] = []
    failures: list[str] = []
    for path in question.paths:
        try:
            target = judge.find(path)
        except UnverifiedError as exc:
            failures.append(f"{path}: {exc}")
            continue
        if target is None:
            continue
        if target.hashes.get("sha256") == question.release:
            return Verdict("listed", judge.seen(), path, expires_s=judge.expires_s())
        others.append(path)
    if failures:
        return Verdict("unverified", judge.seen(), reason="; ".join(failures)[:500])
    groups = ", ".join(path.partition("/")[0] for path in question.paths)
    reason = f"nobody has signed the release {question.release[:12]} for {groups}"
    if others:
        reason += f"; {', '.join(others)} is another one"
    return Verdict("unlisted", judge.seen(), reason=reason)


def _root(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_METADATA_BYTES + 1)
    except OSError as exc:
        raise UnverifiedError(f"[trust] root_file {path}: {exc.strerror}") from exc
    if len(data) > MAX_METADATA_BYTES:
        raise UnverifiedError(f"[trust] root_file {path} is too large")
    return data


def _source(text: str, read: BinaryIO, write: BinaryIO) -> tuple[Source, str]:
    if text == BROKER:
        return AgentSource(read, write), ADDRESS
    if "://" in text:
        address = text if text.endswith("/") else text + "/"
        return HttpSource(address), address
    return DirectorySource(Path(text)), ADDRESS


def main() -> None:
    """Answer the one question on stdin."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
    read, write = sys.stdin.buffer, sys.stdout.buffer
    question = msgspec.json.decode(read.readline(MAX_LINE_BYTES), type=Question)
    source, address = _source(question.source, read, write)
    write.write(line(judged(question, source, address=address)))
    write.flush()


if __name__ == "__main__":
    main()
