"""Values of the bus as JSON for people: bytes become hex, numbers that JSON lacks become text."""

import math
from typing import Any


def plain(value: object) -> Any:
    """The same value with nothing in it that JSON cannot carry."""
    match value:
        case bytes():
            return value.hex()
        case float() if not math.isfinite(value):
            return str(value)
        case dict():
            return {
                key.hex() if isinstance(key, bytes) else str(key): plain(item)
                for key, item in value.items()
            }
        case list() | tuple():
            return [plain(item) for item in value]
        case _:
            return value
