"""The process that reads a pipeline's picture files: finds, decodes and prepares them, with limits of its own.

python -m shoal_agent.pipelines.images_child <agent's pid>
"""

import io
import sys
import time
import warnings
from pathlib import Path
from typing import Any, Final

from shoal_agent.pipelines import child_main
from shoal_agent.pipelines import picture_pipe as pipe
from shoal_agent.pipelines.folder import Folder
from shoal_contract.images import Preparation

_DRAFT: Final = 2
"""A JPEG is decoded at least so many times as large as it is needed, and then made smaller well."""


class Reader:
    """Answers questions about one folder."""

    def __init__(self, opening: pipe.OpenFolder) -> None:
        # Slow to import, and only within the limits.
        from PIL import Image, ImageOps  # noqa: PLC0415

        from shoal_agent.pipelines import preparing  # noqa: PLC0415

        self._image, self._turned, self._prepared = (
            Image,
            ImageOps.exif_transpose,
            preparing.prepared,
        )
        # Larger ones are refused by their header, before a pixel is decoded.
        Image.MAX_IMAGE_PIXELS = opening.max_pixels
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        self._formats = tuple(name.upper() for name in opening.formats)
        self._opening = opening
        self._folder = Folder(Path(opening.path), opening.formats, dict(opening.known))
        self.gone = self._folder.forget_gone()

    def __call__(self, question: pipe.Question) -> pipe.Answer:
        """One answer."""
        match question:
            case pipe.Look(wait_s):
                return self._look(wait_s)
            case pipe.Decode(name, stamp, preparation):
                return self._decode(name, stamp, preparation)
            case pipe.Done(name, stamp, delete):
                try:
                    self._folder.done(name, stamp, delete=delete)
                except OSError as exc:
                    return pipe.Unusable(f"cannot be deleted: {exc.strerror}")
                return pipe.Nothing()
        return pipe.Failed(f"a folder knows no {type(question).__name__}")

    def _look(self, wait_s: float) -> pipe.Answer:
        until = time.monotonic() + wait_s
        while True:
            try:
                found = self._folder.look()
            except OSError as exc:
                return pipe.Failed(f"{self._opening.path}: {exc.strerror}")
            if found is not None:
                return pipe.Found(*found)
            left_s = until - time.monotonic()
            if left_s <= 0:
                return pipe.Nothing()
            time.sleep(min(left_s, self._opening.poll_s))

    def _decode(self, name: str, stamp: str, preparation: Preparation) -> pipe.Answer:
        started = time.perf_counter_ns()
        try:
            data = self._folder.read(name, stamp, max_bytes=self._opening.max_file_bytes)
            taken_ms = int(stamp.partition("-")[0]) // 1_000_000
            prepared = self._prepared(self._opened(data, preparation), preparation)
        except MemoryError:
            return pipe.Unusable("it takes more memory than it may")
        except Exception as exc:  # noqa: BLE001 - Pillow's decoders raise whatever a broken file leads to
            return pipe.Unusable(" ".join(str(exc).split())[:300] or type(exc).__name__)
        return pipe.Picture(prepared, taken_ms, (time.perf_counter_ns() - started) // 1000)

    def _opened(self, data: bytes, preparation: Preparation) -> Any:
        image = self._image.open(io.BytesIO(data), formats=self._formats)
        if image.width * image.height > self._opening.max_pixels:
            raise ValueError(
                f"{image.width} x {image.height} pixels; at most {self._opening.max_pixels} are read"
            )
        if preparation.crop == (0.0, 0.0, 1.0, 1.0):
            side = _DRAFT * max(preparation.width, preparation.height)
            image.draft("L" if preparation.colour == "grey" else "RGB", (side, side))
        return self._turned(image)


if __name__ == "__main__":
    sys.exit(child_main.serve(sys.argv[1:], Reader))
