"""The hashed requirements: roles that are installed together pin the same versions."""

import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
ROLES = ("agent", "bridge", "broker", "camera", "fleet", "images", "postgres")
PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^ ;\\]+)", re.MULTILINE)


def test_no_two_roles_pin_different_versions_of_a_package() -> None:
    pinned: dict[str, dict[str, set[str]]] = {}
    for role in ROLES:
        for name, version in PIN.findall((REPOSITORY / f"requirements/{role}.txt").read_text()):
            # A package may have a version for each Python.
            pinned.setdefault(name, {}).setdefault(role, set()).add(version)
    shared = {name: roles for name, roles in pinned.items() if len(roles) > 1}
    assert shared
    differing = {
        name: roles
        for name, roles in shared.items()
        if any(versions != next(iter(roles.values())) for versions in roles.values())
    }
    assert differing == {}
