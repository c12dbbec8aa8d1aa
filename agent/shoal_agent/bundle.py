"""Packs the facts of a node and its newest log lines into one message. Loaded when somebody asks for it."""

import io
import json
import tarfile
from collections.abc import Mapping
from typing import Final

from shoal_agent.errors import OperationError

_MAX_BUNDLE_BYTES: Final = 60 * 1024


def pack(facts: Mapping[str, object], lines: list[str]) -> bytes:
    """A .tar.gz of the facts and as many of the newest log lines as fit into one message.

    Raises OperationError when the facts alone do not fit.
    """
    while True:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for name, value in facts.items():
                _add(archive, name, json.dumps(value, indent=1, default=str).encode())
            _add(archive, "log.jsonl", "\n".join(lines).encode())
        if buffer.tell() <= _MAX_BUNDLE_BYTES:
            return buffer.getvalue()
        if not lines:
            raise OperationError("the facts alone do not fit into one message")
        lines = lines[len(lines) // 2 + 1 :]


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))
