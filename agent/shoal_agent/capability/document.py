"""What this board can do with its models: `capability.json` in the state directory, written by `shoal-agent bench`.

Plain JSON: facts of the hardware, and by model what each release did. A file that is no such document is as good as none.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from shoal_broker.durable import write_durably
from shoal_contract.messages import Hardware

FILE: Final = "capability.json"
MAX_BYTES: Final = 1 << 20
_MAX_MODELS: Final = 64
_Document = dict[str, Any]


def read(state_dir: Path) -> _Document:
    """The document; empty: there is none."""
    path = state_dir / FILE
    try:
        if path.stat().st_size > MAX_BYTES:
            return {}
        return msgspec.json.decode(path.read_bytes(), type=_Document)
    except (OSError, msgspec.MsgspecError, RecursionError):
        return {}


def with_model(
    document: _Document, hardware: Hardware, model: str, releases: list[Mapping[str, Any]]
) -> _Document:
    """The document with what was measured of a model; figures of other hardware are not kept."""
    facts = {
        "model": hardware.model,
        "machine": hardware.machine,
        "cpus": hardware.cpus,
        "cpu_flags": list(hardware.cpu_flags),
        "memory_bytes": hardware.memory_bytes,
    }
    known = document.get("models") if document.get("hardware") == facts else None
    models = dict(known) if isinstance(known, dict) else {}
    models.pop(model, None)
    models[model] = releases
    while len(models) > _MAX_MODELS:
        del models[next(iter(models))]
    return {"hardware": facts, "models": models}


def write(state_dir: Path, document: _Document) -> Path:
    """Where it was written.

    Raises:
        OSError: the disk does not take it.
    """
    path = state_dir / FILE
    write_durably(path, msgspec.json.format(msgspec.json.encode(document)))
    return path
