"""What a delta saves: the delta against the whole file and the best that compression makes of it."""

import lzma
from dataclasses import dataclass

import zstandard


@dataclass(frozen=True, slots=True)
class Compressed:
    """Sizes in bytes of one file, whole and compressed as well as common tools can."""

    full_bytes: int
    xz_bytes: int
    zstd_bytes: int

    @property
    def best_bytes(self) -> int:
        """The smaller of the two."""
        return min(self.xz_bytes, self.zstd_bytes)


def compress(data: bytes) -> Compressed:
    """Xz -9e and zstd -19 of the whole file."""
    return Compressed(
        full_bytes=len(data),
        xz_bytes=len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
        zstd_bytes=len(zstandard.ZstdCompressor(level=19).compress(data)),
    )
