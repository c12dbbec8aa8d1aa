# Copyright: The Shoal authors
# SPDX-License-Identifier: Apache-2.0
"""Ansible filter: plain values as a TOML file. The counterpart of `tomllib`, for what a configuration holds."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

DOCUMENTATION = r"""
name: to_toml
short_description: Plain values as TOML
version_added: 0.1.0
description:
  - Keys whose value is null are left out, as a key that is not set.
  - What TOML cannot say (numbers that are none, other objects, lists that mix tables and values) is an error.
options:
  _input:
    description: A dictionary.
    type: dict
    required: true
author:
  - The Shoal authors (@shoal)
"""

EXAMPLES = r"""
- name: Write a configuration
  ansible.builtin.copy:
    content: "{{ {'node': 'press-4', 'broker': {'host': 'broker.example.net'}} | shoal.edge.to_toml }}"
    dest: /etc/shoal/agent.toml
    mode: "0640"
"""

RETURN = r"""
_value:
  description: The file's text.
  type: str
"""

BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def to_toml(table: Any) -> str:
    """The text of a TOML file that holds this table. Raises AnsibleFilterError."""
    if not isinstance(table, Mapping):
        raise AnsibleFilterError(f"to_toml: a dictionary is needed, not {type(table).__name__}")
    return "\n".join(_lines(table, ())) + "\n"


def _lines(table: Mapping[Any, Any], path: tuple[str, ...]) -> Iterator[str]:
    """Values first: what stands behind a table's head belongs to that table."""
    given = {str(key): value for key, value in table.items() if value is not None}
    inner: list[str] = []
    for key, value in given.items():
        if isinstance(value, Mapping):
            inner += ["", f"[{_dotted((*path, key))}]", *_lines(value, (*path, key))]
        elif (
            isinstance(value, list | tuple) and value and all(isinstance(v, Mapping) for v in value)
        ):
            for one in value:
                inner += ["", f"[[{_dotted((*path, key))}]]", *_lines(one, (*path, key))]
        else:
            yield f"{_key(key)} = {_value(value, _dotted((*path, key)))}"
    yield from inner


def _value(value: Any, where: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float) and math.isfinite(value):
        return repr(float(value))
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(one, where) for one in value)}]"
    raise AnsibleFilterError(f"to_toml: {where}: TOML has nothing for {value!r}")


def _text(value: str) -> str:
    # As JSON has it, but for the one control character that JSON lets stand.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _dotted(path: tuple[str, ...]) -> str:
    return ".".join(_key(part) for part in path)


def _key(key: str) -> str:
    return key if BARE_KEY.fullmatch(key) else _text(key)


class FilterModule:
    """The plugin."""

    def filters(self) -> dict[str, Callable[[Any], str]]:
        """By name."""
        return {"to_toml": to_toml}
