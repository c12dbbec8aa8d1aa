"""A growing piece of memory that engine and worker share: a memfd, mapped by both.

Whoever needs more grows it; nobody can shrink it (it is sealed), so that no end can take memory from under
the other. Bytes only; what lies where is agreed in messages.
"""

import contextlib
import fcntl
import mmap
import os
from typing import Final

MAX_BYTES: Final = 512 * 1024 * 1024
_STEP: Final = 64 * 1024
_MADV_REMOVE: Final = 9


class Segment:
    """Mapped memory behind a file descriptor. `close` gives both back."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._map: mmap.mmap | None = None

    @classmethod
    def create(cls) -> "Segment":
        """An empty one.

        Raises:
            OSError: the kernel gives none.
        """
        descriptor = os.memfd_create("shoal-batch", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        return cls(descriptor)

    @property
    def size_bytes(self) -> int:
        """How much of it is mapped here."""
        return 0 if self._map is None else len(self._map)

    def at_least(self, size_bytes: int) -> mmap.mmap:
        """The memory, of so many bytes or more; an earlier map stays valid for who holds a view of it.

        Raises:
            MemoryError: that is more than a batch may have, or than there is.
        """
        if self._map is not None and len(self._map) >= size_bytes:
            return self._map
        if size_bytes > MAX_BYTES:
            raise MemoryError(f"a batch of {size_bytes} bytes; at most {MAX_BYTES} are allowed")
        wanted = -(-max(size_bytes, 1) // _STEP) * _STEP
        try:
            found = os.fstat(self.descriptor).st_size
            if found < wanted:
                os.ftruncate(self.descriptor, wanted)
            self._map = mmap.mmap(self.descriptor, max(found, wanted))
        except OSError as exc:
            raise MemoryError(f"no shared memory of {wanted} bytes: {exc.strerror}") from exc
        return self._map

    def give_back(self) -> None:
        """Free the pages; what stood there is gone, the size stays."""
        if self._map is not None:
            with contextlib.suppress(OSError, ValueError):
                self._map.madvise(_MADV_REMOVE)

    def close(self) -> None:
        """Close the descriptor; the map goes with the last view of it."""
        self._map = None
        os.close(self.descriptor)
