# Copyright: The Shoal authors
# SPDX-License-Identifier: Apache-2.0
"""Ansible inventory: the nodes that the fleet's controller knows, grouped by their labels."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin, Constructable

DOCUMENTATION = r"""
name: fleet
short_description: The nodes of a Shoal fleet, from its controller
version_added: 0.1.0
description:
  - Asks the controller's API for its nodes. Each is a host named as the node; each label is a group C(<key>_<value>), so that
    C(ansible -m ping site_oslo) reaches the boards whose label C(site) is C(oslo).
  - All are in the group C(boards), and in C(shoal_online) or C(shoal_offline). Revoked nodes are left out.
  - The controller does not know by which name SSH reaches a board; where that is not the node's, say it with C(compose).
extends_documentation_fragment:
  - constructed
options:
  plugin:
    description: This plugin's name.
    type: str
    required: true
    choices: [shoal.edge.fleet]
  url:
    description: The controller's address. Other machines are asked over TLS only.
    type: str
    required: true
    env:
      - name: SHOAL_URL
  state_dir:
    description: A folder with C(token) and, if the fleet's authority vouches for the controller, C(ca.crt), as the playbooks leave it.
    type: path
    required: true
    env:
      - name: SHOAL_STATE_DIR
  timeout_s:
    description: How many seconds to wait for an answer.
    type: int
    default: 20
author:
  - The Shoal authors (@shoal)
"""

EXAMPLES = r"""
# oslo.shoal.yml
plugin: shoal.edge.fleet
url: https://controller.example.net:8750
state_dir: ~/shoal-control
compose:
  ansible_host: shoal_node ~ '.boards.example.net'
keyed_groups:
  - key: shoal_hardware.machine
    prefix: machine
"""

MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_TOKEN_BYTES = 256
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
SUFFIXES = ("shoal.yml", "shoal.yaml")
UNAUTHORIZED = 401


class InventoryModule(BaseInventoryPlugin, Constructable):
    """The plugin."""

    NAME = "shoal.edge.fleet"

    def verify_file(self, path: str) -> bool:
        """Files are told by their names: *.shoal.yml."""
        return super().verify_file(path) and path.endswith(SUFFIXES)

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:  # noqa: FBT001, FBT002
        """Ask the controller, and add what it answers. Raises AnsibleParserError."""
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        folder = Path(self.get_option("state_dir")).expanduser()
        for node in nodes_of(self.get_option("url"), folder, self.get_option("timeout_s")):
            self._add(node)

    def _add(self, node: dict[str, Any]) -> None:
        name = node["node"]
        reported = node["reported"] or {}
        variables = {
            "shoal_node": name,
            "shoal_agent_node": name,
            "shoal_labels": node["labels"],
            "shoal_online": node["online"],
            "shoal_version": reported.get("version", ""),
            "shoal_hardware": reported.get("hardware", {}),
            "shoal_models": {one["model"]: one["version"] for one in reported.get("models", [])},
        }
        self.inventory.add_host(name)
        for key, value in variables.items():
            self.inventory.set_variable(name, key, value)
        groups = ["boards", "shoal_online" if node["online"] else "shoal_offline"]
        groups += [f"{key}_{value}" for key, value in node["labels"].items()]
        for group in groups:
            known = self.inventory.add_group(self._sanitize_group_name(group))
            self.inventory.add_child(known, name)
        strict = self.get_option("strict")
        self._set_composite_vars(self.get_option("compose"), variables, name, strict=strict)
        self._add_host_to_composed_groups(self.get_option("groups"), variables, name, strict=strict)
        self._add_host_to_keyed_groups(
            self.get_option("keyed_groups"), variables, name, strict=strict
        )


def nodes_of(url: str, folder: Path, timeout_s: int) -> list[dict[str, Any]]:
    """The nodes that are not revoked. Raises AnsibleParserError."""
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise AnsibleParserError(f"{url}: the token goes to another machine over https only")
    try:
        with (folder / "token").open("rb") as file:
            token = file.read(MAX_TOKEN_BYTES).decode("ascii").strip()
        authority = folder / "ca.crt"
        context = ssl.create_default_context(cafile=authority if authority.exists() else None)
        request = urllib.request.Request(  # noqa: S310 - the scheme was looked at
            f"{url.rstrip('/')}/api/nodes", headers={"Authorization": f"Bearer {token}"}
        )
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context), _NoDetour
        )
        with opener.open(request, timeout=timeout_s) as answer:
            text = answer.read(MAX_ANSWER_BYTES + 1)
        if len(text) > MAX_ANSWER_BYTES:
            raise AnsibleParserError(f"{url}: the answer is larger than {MAX_ANSWER_BYTES} bytes")
        return [node for node in json.loads(text) if not _is_revoked(node)]
    except urllib.error.HTTPError as exc:
        said = "the token is not the controller's" if exc.code == UNAUTHORIZED else exc.reason
        raise AnsibleParserError(f"{url}: {exc.code}: {said}") from exc
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as exc:
        raise AnsibleParserError(f"{url}: {exc}") from exc


def _is_revoked(node: dict[str, Any]) -> bool:
    return bool((node["identity"] or {}).get("revoked_ms"))


class _NoDetour(urllib.request.HTTPRedirectHandler):
    """The token is for this address alone."""

    def redirect_request(self, *_: Any) -> None:
        """Nowhere else."""
