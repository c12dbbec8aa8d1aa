"""What Shoal is made of, as a CycloneDX 1.5 document: every pinned package of every role, read from requirements/.

Resolves nothing and asks no index: the locks say it all. The same locks give the same bytes.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

ROLES: Final = ("agent", "bridge", "broker", "camera", "fleet", "images")
"""Locks of what is shipped; those of developers are not."""

_PIN: Final = re.compile(r"([a-z0-9][a-z0-9._-]*)==([^\s;\\]+)(?:\s*;\s*([^\\]+?))?\s*\\?")
_HASH: Final = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_NAMESPACE: Final = uuid.UUID("6f1d9a52-8c0e-4f0f-9a53-0d7f1c2b6a11")


class LockError(ValueError):
    """A line of a lock is neither a pin nor a hash."""


@dataclass(slots=True)
class Pinned:
    """One package in one version."""

    name: str
    version: str
    roles: set[str] = field(default_factory=set)
    markers: set[str] = field(default_factory=set)
    sha256: set[str] = field(default_factory=set)

    @property
    def purl(self) -> str:
        """As package URLs name it."""
        return f"pkg:pypi/{self.name}@{self.version}"


def read_lock(text: str, role: str, into: dict[str, Pinned]) -> None:
    """Add what a hashed requirements file pins, by purl.

    Raises:
        LockError: a line that nobody understands, or a pin without a hash.
    """
    current: Pinned | None = None
    fresh: set[str] = set()
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split("#", 1)[0].strip()
        if not words:
            continue
        if found := _HASH.match(words):
            if current is None:
                raise LockError(f"{role}.txt:{number}: a hash of nothing")
            current.sha256.add(found[1])
            fresh.discard(current.purl)
            continue
        pin = _PIN.fullmatch(words)
        if pin is None:
            raise LockError(
                f"{role}.txt:{number}: {line.strip()[:80]!r} is neither a pin nor a hash"
            )
        one = Pinned(pin[1], pin[2])
        current = into.setdefault(one.purl, one)
        current.roles.add(role)
        if pin[3]:
            current.markers.add(pin[3].strip())
        fresh.add(current.purl)
    if missing := sorted(purl for purl in fresh if not into[purl].sha256):
        raise LockError(f"{role}.txt: without a hash: {', '.join(missing)}")


def document(version: str, locks: Mapping[str, str]) -> dict[str, Any]:
    """The document for `version` of Shoal with these locks, text by role."""
    found: dict[str, Pinned] = {}
    for role, text in sorted(locks.items()):
        read_lock(text, role, found)
    components = [_component(found[purl]) for purl in sorted(found)]
    serial = uuid.uuid5(_NAMESPACE, json.dumps([version, components]))
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": f"pkg:pypi/shoal@{version}",
                "name": "shoal",
                "version": version,
                "purl": f"pkg:pypi/shoal@{version}",
                "licenses": [{"license": {"id": "Apache-2.0"}}],
            }
        },
        "components": components,
        "dependencies": [
            {"ref": f"pkg:pypi/shoal@{version}", "dependsOn": sorted(found)},
        ],
    }


def _component(one: Pinned) -> dict[str, Any]:
    # Properties, because a component's own hashes are of one file: these are of the wheels that may be installed.
    properties = [{"name": "shoal:role", "value": role} for role in sorted(one.roles)]
    properties += [{"name": "shoal:marker", "value": marker} for marker in sorted(one.markers)]
    properties += [{"name": "shoal:wheel-sha256", "value": digest} for digest in sorted(one.sha256)]
    return {
        "type": "library",
        "bom-ref": one.purl,
        "name": one.name,
        "version": one.version,
        "purl": one.purl,
        "properties": properties,
    }


def of_checkout(repository: Path, version: str) -> dict[str, Any]:
    """The document for the locks in this checkout; roles without a lock are left out."""
    paths = {role: repository / f"requirements/{role}.txt" for role in ROLES}
    return document(
        version, {role: path.read_text() for role, path in paths.items() if path.exists()}
    )
