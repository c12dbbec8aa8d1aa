"""May this release come into the catalogue? The rules of the quality gate; nothing is run or stored here.

Every refusal names the figure that it is about.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from shoal_contract.release import ReleaseSpec, version_key

MAX_DROP: Final = 0.01
"""By so much the accuracy may lie below the parent's or the current release's, unless somebody says otherwise."""

_EXACT: Final = 1e-9
"""Accuracies are counts over counts: their difference is no exact number."""


@dataclass(frozen=True, slots=True)
class Rival:
    """A release of the same name that is in the catalogue: its description, the quality on record, the model's digest."""

    title: str
    spec: ReleaseSpec
    quality: Mapping[str, Any]
    model_file: bytes = b""


@dataclass(frozen=True, slots=True)
class Measured:
    """Shares of items answered right, of the same evaluation set; None: was not measured."""

    items: int
    accuracy: float
    parent: float | None = None
    current: float | None = None


def current_of(rivals: Sequence[Rival]) -> Rival | None:
    """The newest one."""
    return max(rivals, key=lambda rival: version_key(rival.spec.version), default=None)


def signature_refusal(spec: ReleaseSpec, rivals: Sequence[Rival]) -> str | None:
    """Why the signature is not as its version promises: it is one and the same within a major version."""
    major = version_key(spec.version)[0]
    same = [rival for rival in rivals if version_key(rival.spec.version)[0] == major]
    rival = current_of(same)
    if rival is None:
        return None
    change = signature_change(rival.spec, spec)
    if change is None:
        return None
    newest = max(version_key(each.spec.version)[0] for each in rivals)
    return (
        f"{spec.name}@{spec.version}: {change} since {rival.title}:"
        f" a signature changes with a new major version ({max(newest, major) + 1}.0.0)"
    )


def signature_change(old: ReleaseSpec, new: ReleaseSpec) -> str | None:
    """The first difference between what two releases take and give, in words."""
    if old.batch != new.batch:
        return f"batch was {_said(old.batch)} and is {_said(new.batch)}"
    for kind in ("input", "output"):
        was, now = _tables(old, kind), _tables(new, kind)
        for name in sorted(was.keys() | now.keys()):
            if name not in now:
                return f"{kind} {name!r} is gone"
            if name not in was:
                return f"{kind} {name!r} is new"
            for key in sorted(was[name].keys() | now[name].keys()):
                one, other = was[name].get(key), now[name].get(key)
                if one != other:
                    return f"{key} of {kind} {name!r} was {_said(one)} and is {_said(other)}"
    return None


def _tables(spec: ReleaseSpec, kind: str) -> dict[str, dict[str, Any]]:
    """What a release says of its inputs or outputs, by name."""
    if spec.items is not None:
        tables: Sequence[Any] = spec.items[:1] if kind == "input" else spec.items[1:]
    else:
        tables = spec.served[0] if kind == "input" else spec.served[1]
    return {table.name: msgspec.to_builtins(table) for table in tables}


def quality_refusal(
    spec: ReleaseSpec, current: Rival | None, measured: Measured | None, *, max_drop: float
) -> str | None:
    """Why the model is not good enough: measured where it was, else by what both releases say of themselves."""
    title = f"{spec.name}@{spec.version}"
    if measured is not None:
        said = f"{title}: accuracy {measured.accuracy:.4f} on {measured.items} items"
        pairs = (
            ("its float parent", measured.parent),
            ("the current release" if current is None else current.title, measured.current),
        )
        for whose, other in pairs:
            if other is not None and _is_below(measured.accuracy, other, max_drop):
                return (
                    f"{said} is {other - measured.accuracy:.4f} below that of {whose}"
                    f" ({other:.4f}); at most {max_drop:g} is allowed (--max-drop)"
                )
        return None
    if current is None:
        return None
    old, new = current.quality, spec.quality
    is_comparable = (old["metric"], old["evaluated_on"]) == (new.metric, new.evaluated_on)
    if is_comparable and new.metric == "accuracy" and _is_below(new.value, old["value"], max_drop):
        return (
            f"{title}: says {new.metric} {new.value:.4f} of itself, {old['value'] - new.value:.4f} below"
            f" {current.title} ({old['value']:.4f}); at most {max_drop:g} is allowed (--max-drop)"
        )
    return None


def _is_below(value: float, other: float, max_drop: float) -> bool:
    # A NaN is below everything.
    return not value >= other - max_drop - _EXACT


def _said(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"  # noqa: PLR2004 - a line stays one
