"""What the agent tells its child that enrols, and what the child tells back: one line of JSON each way."""

from typing import Literal

import msgspec

Kind = Literal["issued", "pending", "refused", "unreachable", "not_trusted", "unusable"]


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt. `now_ms` is the board's clock. `ca_pin` or `ca_file` say which authority is trusted."""

    state_dir: str
    node: str
    url: str
    now_ms: int
    ca_pin: str | None = None
    ca_file: str | None = None
    token_file: str | None = None
    hardware: str = ""


class Outcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How it went. `unusable`: this board's own files or settings are at fault.

    `key`: the sha256 of the key that asked. `door_ms`: the controller's clock, 0 when it said nothing.
    """

    kind: Kind
    reason: str = ""
    why: str = ""
    key: str = ""
    retry_s: float = 0.0
    door_ms: int = 0
    not_after_ms: int = 0
