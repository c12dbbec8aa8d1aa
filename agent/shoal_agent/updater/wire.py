"""What the agent and its updater child say to each other over the pipe: lines of JSON, each at most 256 KiB.

The agent sends a Question; the child asks for files (Ask, answered by Given) and ends with its Verdict.
"""

from typing import Final, Literal

import msgspec

from shoal_agent.updater.floors import Floors

MAX_LINE_BYTES: Final = 256 * 1024
BROKER: Final = "broker"
"""The source that is reached through the agent: what the broker retains."""


class Question(msgspec.Struct, frozen=True, tag="question"):
    """Bring the metadata up to date, and say whether one of `paths` is this release.

    Attributes:
        directory: where verified metadata is kept.
        root_file: the root that the board was given, trusted without proof.
        source: BROKER, an http(s) address, or a directory.
        now_s: Unix time, not below any that was ever certain.
        paths: targets in order of preference; none: only refresh.
        release: the sha256 that the target must have, in hex.
    """

    directory: str
    root_file: str
    source: str
    floors: Floors
    now_s: int
    paths: list[str] = []
    release: str = ""


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    """The child wants this file."""

    name: str


class Given(msgspec.Struct, frozen=True, tag="given"):
    """A file. Without `data` there is none; with a `failure` nobody knows."""

    data: bytes | None = None
    failure: str = ""


class Verdict(msgspec.Struct, frozen=True, tag="verdict"):
    """What the metadata says.

    Attributes:
        kind: "listed": the release is a target; "unlisted": the metadata is good and it is not;
            "fresh": only a refresh was wanted; "unverified": the metadata cannot be relied on.
        seen: what was verified, to raise the journal's floors by, also when something else failed.
        path: the target that the release is.
        reason: for a person, where the release is not listed.
        expires_s: when the first of the metadata that says so runs out.
    """

    kind: Literal["listed", "unlisted", "fresh", "unverified"]
    seen: Floors | None = None
    path: str = ""
    reason: str = ""
    expires_s: int = 0


def line(message: Question | Ask | Given | Verdict) -> bytes:
    """One message, with its newline."""
    return msgspec.json.encode(message) + b"\n"
