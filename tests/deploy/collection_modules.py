"""The collection's own Python, imported as Ansible imports it, without Ansible."""

import importlib
import sys
import tempfile
from pathlib import Path
from types import ModuleType

COLLECTION = Path(__file__).resolve().parents[2] / "deploy/ansible"
_KEPT: list[tempfile.TemporaryDirectory] = []


def module_utils(name: str) -> ModuleType:
    """`ansible_collections.shoal.edge.plugins.module_utils.<name>`."""
    if not _KEPT:
        _KEPT.append(tempfile.TemporaryDirectory(prefix="collections-"))
        place = Path(_KEPT[0].name) / "ansible_collections/shoal"
        place.mkdir(parents=True)
        (place / "edge").symlink_to(COLLECTION)
        sys.path.append(_KEPT[0].name)
    return importlib.import_module(f"ansible_collections.shoal.edge.plugins.module_utils.{name}")
