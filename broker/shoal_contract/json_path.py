"""Where in a message of any program a value stands: paths as in RFC 9535, names and indices only. Pure.

`$.axes[0]`, `$['battery voltage']`, `$`.
"""

import re
from dataclasses import dataclass
from typing import Any, Final

from shoal_contract.errors import PathError

MAX_PATH_LENGTH: Final = 256

_STEP = re.compile(r"\.([A-Za-z_][A-Za-z0-9_-]*)|\['([^']+)'\]|\[(\d{1,6})\]")

Step = str | int


@dataclass(frozen=True, slots=True)
class Path:
    """Names of members and indices of lists."""

    text: str
    steps: tuple[Step, ...]

    def find(self, value: Any) -> Any:
        """What stands there.

        Raises:
            LookupError: nothing does.
        """
        for step in self.steps:
            match value:
                case dict() if isinstance(step, str):
                    value = value[step]
                case list() if isinstance(step, int):
                    value = value[step]
                case _:
                    raise LookupError(self.text)
        return value


def parse_path(text: str) -> Path:
    """The path that is written like this.

    Raises:
        PathError: none is.
    """
    position = 1
    steps: list[Step] = []
    if not text.startswith("$") or len(text) > MAX_PATH_LENGTH:
        raise PathError(f"{text[:MAX_PATH_LENGTH]!r} is no path: it begins with $, as in $.axes[0]")
    while position < len(text):
        step = _STEP.match(text, position)
        if step is None:
            raise PathError(
                f"{text!r} is no path: nothing is known that begins {text[position:]!r}"
            )
        plain, quoted, index = step.groups()
        steps.append(int(index) if index is not None else plain or quoted)
        position = step.end()
    return Path(text, tuple(steps))
