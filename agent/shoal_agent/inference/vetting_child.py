"""`python -m shoal_agent.inference.vetting_child DIRECTORY RELEASE STORE`: one verdict on a release's files, as JSON.

Short-lived and confined: what it reads may hurt it and nothing else. STORE: the content store that holds the manifest
and from which the files are linked.
"""

import contextlib
import sys
import time
from pathlib import Path
from typing import Final

import msgspec

from shoal_agent.inference import confinement
from shoal_agent.inference.model_errors import ModelError
from shoal_agent.inference.verdict import Verdict
from shoal_agent.inference.vetting import ForeignLinkError, names_in, vet
from shoal_contract.errors import ContractError
from shoal_contract.messages import MAX_MESSAGE_BYTES, Manifest
from shoal_contract.release import parse_manifest

CPU_S: Final = 120
MEMORY_BYTES: Final = 192 << 20
_COUNTS: Final = 3
_RECOUNT_S: Final = 0.1


def main(argv: list[str]) -> int:
    """Print the reason why not, or an empty one."""
    _, directory, release, store = argv
    confinement.limit(cpu_s=CPU_S, file_bytes=0, memory_bytes=MEMORY_BYTES)
    confinement.forbid_network_and_programs()
    reason = _reason(Path(directory), bytes.fromhex(release), Path(store))
    sys.stdout.write(msgspec.json.encode(Verdict(reason)).decode() + "\n")
    return 0


def _reason(directory: Path, release: bytes, store: Path) -> str:
    try:
        with (store / "blobs" / release.hex()).open("rb") as file:
            manifest = parse_manifest(file.read(MAX_MESSAGE_BYTES + 1), release=release)
        _vet(directory, manifest, store)
    except (ModelError, ContractError) as exc:
        return str(exc)[:1000]
    except OSError as exc:
        return f"its files cannot be read: {exc.strerror}"
    except MemoryError:
        return "reading it takes more memory than it may"
    return ""


def _vet(directory: Path, manifest: Manifest, store: Path) -> None:
    """Links are counted anew when there are too many: a release of another model may just be assembled."""
    for _ in range(_COUNTS - 1):
        with contextlib.suppress(ForeignLinkError):
            vet(directory, manifest, names=names_in(store / "blobs", store / "releases"))
            return
        time.sleep(_RECOUNT_S)
    vet(directory, manifest, names=names_in(store / "blobs", store / "releases"))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
