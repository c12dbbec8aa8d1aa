# Copyright: The Shoal authors
# SPDX-License-Identifier: Apache-2.0
"""Ansible lookup: what a packed release tree says of itself."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from typing import Any

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

DOCUMENTATION = r"""
name: release_tree
short_description: What a packed release tree says of itself
version_added: 0.1.0
description:
  - Reads C(release.json) of an archive that C(tools/release-tree) made, on the control machine.
  - Unpacks nothing.
options:
  _terms:
    description: Paths of archives.
    required: true
author:
  - The Shoal authors (@shoal)
"""

EXAMPLES = r"""
- name: Say what is in it
  ansible.builtin.debug:
    msg: "{{ lookup('shoal.edge.release_tree', 'dist/shoal-agent-aarch64.tar.gz').id }}"
"""

RETURN = r"""
_list:
  description: One for each archive.
  type: list
  elements: dict
  contains:
    id:
      description: The name of its only folder.
      type: str
    machine:
      description: The machine type that it is for.
      type: str
    python:
      description: The Python minor version that it is for.
      type: str
    roles:
      description: Whose commands are in it.
      type: list
      elements: str
    sha256:
      description: Of its C(release.json), which names the content of every other file.
      type: str
    archive:
      description: Where it lies.
      type: str
"""

MAX_BYTES = 16 * 1024 * 1024
ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+_-]{0,99}")


def described(path: str) -> dict[str, Any]:
    """What the archive says. Raises AnsibleLookupError."""
    try:
        with tarfile.open(path) as archive:
            for entry in archive:
                folder, slash, name = entry.name.removeprefix("./").partition("/")
                if slash and name == "release.json" and entry.isfile():
                    return _checked(path, folder, _content(archive, entry))
    except (OSError, EOFError, tarfile.TarError, ValueError, RecursionError) as exc:
        raise AnsibleLookupError(f"{path}: {exc}") from exc
    raise AnsibleLookupError(f"{path}: is no release tree: there is no <id>/release.json in it")


def _content(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    if entry.size > MAX_BYTES:
        raise ValueError(f"release.json is larger than {MAX_BYTES} bytes")
    file = archive.extractfile(entry)
    return b"" if file is None else file.read(MAX_BYTES)


def _checked(path: str, folder: str, text: bytes) -> dict[str, Any]:
    about = json.loads(text)
    if not isinstance(about, dict):
        raise ValueError("release.json is no object")  # noqa: TRY004 - of what the file says
    if ID.fullmatch(folder) is None or folder != about.get("version"):
        raise ValueError(f"the folder {folder!r} is not what release.json calls the release")
    machine, python, roles = (about.get(key) for key in ("arch", "python", "roles"))
    if not isinstance(machine, str) or not isinstance(python, str) or not isinstance(roles, list):
        raise ValueError("release.json does not say for which machine, Python and roles")  # noqa: TRY004
    return {
        "id": folder,
        "machine": machine,
        "python": python,
        "roles": roles,
        "sha256": hashlib.sha256(text).hexdigest(),
        "archive": path,
    }


class LookupModule(LookupBase):
    """The plugin."""

    def run(self, terms: list[str], variables: dict | None = None, **kwargs: Any) -> list[dict]:
        """What each archive says."""
        self.set_options(var_options=variables, direct=kwargs)
        return [described(str(term)) for term in terms]
