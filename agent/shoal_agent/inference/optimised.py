"""Models as ONNX Runtime has rewritten them for this board: made once a release, used again after a restart.

The weights lie in a file beside the graph, which ONNX Runtime maps: they cost no memory of their own and no time to
optimise again. A form is used only as it was written (sha256), by the runtime and on the processor it was written for.
"""

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

MODEL: Final = "model.onnx"
WEIGHTS: Final = "weights.bin"
MIN_MODEL_BYTES: Final = 1 << 20
"""Smaller models load at once anyway."""
MAX_FORMS: Final = 8
_DIGESTS: Final = "digests.json"


class OptimisedForms:
    """Forms by release, in a directory of their own; the oldest go when there are too many.

    Args:
        directory: made when the first form is.
        made_for: names runtime and processor; forms of others are not used.
    """

    def __init__(self, directory: Path, *, made_for: str) -> None:
        self._directory = directory
        self._made_for = made_for

    def find(self, release: bytes) -> Path | None:
        """The graph file of a release, weights beside it; None: there is none that can be used."""
        folder = self._directory / release.hex()
        try:
            digests = json.loads((folder / _DIGESTS).read_bytes())
            if digests == self._describe(folder):
                return folder / MODEL
        except (OSError, ValueError):
            return None
        shutil.rmtree(folder, ignore_errors=True)
        return None

    @contextlib.contextmanager
    def making(self, release: bytes, *, max_bytes: int = 1 << 30) -> Iterator[Path]:
        """Where to write the graph file; it is kept when the block ends well. A full disk costs only the form.

        Args:
            release: its id.
            max_bytes: a larger form is not kept: a model may hold a rule for making gigabytes of nothing.

        Raises:
            OSError: there is no place to write it.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="new-", dir=self._directory))
        try:
            yield folder / MODEL
            if sum(path.stat().st_size for path in folder.iterdir()) > max_bytes:
                return
            with contextlib.suppress(OSError):
                (folder / _DIGESTS).write_text(json.dumps(self._describe(folder)), encoding="ascii")
                target = self._directory / release.hex()
                shutil.rmtree(target, ignore_errors=True)
                # Not synced: what a power cut takes does not have its digest, and is made again.
                folder.rename(target)
                self._drop_oldest()
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _describe(self, folder: Path) -> dict[str, str]:
        found = {"made_for": self._made_for}
        for name in (MODEL, WEIGHTS):
            with contextlib.suppress(FileNotFoundError), (folder / name).open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
        return found

    def _drop_oldest(self) -> None:
        folders = sorted(self._directory.iterdir(), key=lambda path: path.stat().st_mtime)
        for folder in folders[:-MAX_FORMS]:
            shutil.rmtree(folder, ignore_errors=True)
