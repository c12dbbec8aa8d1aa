"""What a probe found out, for people and for programs. No broker, no printing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one probe: `means` is what it says about a fleet on this broker.

    `ok` is None where it cannot be told from outside: neither good nor bad.
    """

    probe: str
    ok: bool | None
    means: str
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that one run found out, and the line below it for whoever reads it, if any."""

    findings: list[Finding]
    note: str | None = None

    @property
    def ok(self) -> bool:
        """Nothing failed. What could not be told is not counted as good: see the findings."""
        return all(finding.ok is not False for finding in self.findings)
