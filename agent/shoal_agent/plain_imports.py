"""Loads structlog and msgspec without what they use merely because it happens to be installed.

The first thing that cli.py imports. Beside the controller, or in a developer's environment, structlog
would load rich and pygments for tracebacks that nobody prints (4 MiB), and greenlet; msgspec the
typing_extensions, of which Python itself has what we use.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_UNWANTED: Final = ("rich", "better_exceptions", "greenlet", "typing_extensions")


@contextmanager
def _hidden(names: tuple[str, ...]) -> Iterator[None]:
    """In this block they cannot be imported. What is loaded already stays as it is."""
    hidden = [name for name in names if name not in sys.modules]
    # The documented way to make an import fail.
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


with _hidden(_UNWANTED):
    import msgspec  # noqa: F401
    import structlog  # noqa: F401
