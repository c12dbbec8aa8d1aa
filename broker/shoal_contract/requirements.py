"""What a release needs beside itself: `[requires]` of release.toml, `detector = ">=2.0.0, <3"`. Pure.

Whether a board has it is asked by who offers the release; a board itself does not look.
"""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from shoal_contract.errors import FileFormatError

MAX_REQUIREMENTS: Final = 16
MAX_BOUNDS: Final = 4

_MODEL = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_BOUND = re.compile(r"(>=|<=|==|!=|>|<)\s*((?:0|[1-9]\d{0,5})(?:\.(?:0|[1-9]\d{0,5})){0,2})")
_COMPARE: Final[Mapping[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True, slots=True)
class Requirement:
    """A model must be there in a version within all of these bounds: (comparison, version)."""

    model: str
    bounds: tuple[tuple[str, tuple[int, int, int]], ...]

    def is_met_by(self, version: str) -> bool:
        """Whether this version (three numbers) will do; one that is none will not."""
        try:
            numbers = tuple(int(part) for part in version.split("."))
        except ValueError:
            return False
        return all(_COMPARE[sign](numbers, bound) for sign, bound in self.bounds)

    def __str__(self) -> str:
        """`detector >=2.0.0, <3.0.0`."""
        bounds = ", ".join(f"{sign}{'.'.join(map(str, bound))}" for sign, bound in self.bounds)
        return f"{self.model} {bounds}"


def parse_requirements(
    table: Mapping[str, str], *, source: str = "release.toml"
) -> tuple[Requirement, ...]:
    """The requirements in `[requires]`, by model. A version may leave its last numbers out: they are 0.

    Raises:
        FileFormatError: naming the file and the key.
    """
    if len(table) > MAX_REQUIREMENTS:
        raise FileFormatError(f"{source}: [requires] has at most {MAX_REQUIREMENTS} models")
    return tuple(_requirement(model, text, source) for model, text in sorted(table.items()))


def _requirement(model: str, text: str, source: str) -> Requirement:
    if not _MODEL.fullmatch(model):
        raise FileFormatError(f"{source}: [requires] {model[:80]!r} is not a model's name")
    parts = [part.strip() for part in text[:200].split(",")]
    found = [_BOUND.fullmatch(part) for part in parts]
    bounds = []
    for match in found:
        if match is None or len(found) > MAX_BOUNDS:
            raise FileFormatError(
                f"{source}: [requires] {model} = {text[:80]!r} must be like '>=2.0.0' or '>=2, <3'"
            )
        first, second, third, *_ = (*map(int, match[2].split(".")), 0, 0)
        bounds.append((match[1], (first, second, third)))
    return Requirement(model, tuple(bounds))
