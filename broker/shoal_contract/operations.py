"""How an operation of a node is declared: its arguments, limits and scope; and checking against it.

A declaration is what `shoal ops NODE` lists and what the agent checks a command's arguments with.
"""

from typing import Any, Literal

import msgspec

from shoal_contract.errors import DecodeError

ArgType = Literal["str", "int", "float", "bool", "any"]
Scope = Literal["read", "operate", "admin"]


class Argument(msgspec.Struct, frozen=True, omit_defaults=True):
    """One argument. `minimum`/`maximum` bound a number, or a text's length."""

    name: str
    type: ArgType
    about: str
    required: bool = False
    default: Any = None
    minimum: float | None = None
    maximum: float | None = None


class Operation(msgspec.Struct, frozen=True):
    """One operation. `repeatable`: doing it again after a power cut does no harm."""

    name: str
    about: str
    scope: Scope
    arguments: tuple[Argument, ...] = ()
    timeout_s: float = 30.0
    repeatable: bool = True


def check_arguments(operation: Operation, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments to run with, defaults filled in.

    Raises:
        DecodeError: one line that says which argument is wrong and what it should be.
    """
    known = {argument.name: argument for argument in operation.arguments}
    if unknown := sorted(set(given) - set(known)):
        takes = ", ".join(known) or "none"
        raise DecodeError(f"{operation.name} takes no {unknown[0]!r} (arguments: {takes})")
    checked: dict[str, Any] = {}
    for argument in operation.arguments:
        if argument.name in given:
            checked[argument.name] = _check(operation, argument, given[argument.name])
        elif argument.required:
            raise DecodeError(f"{operation.name} needs {argument.name}: {argument.about}")
        else:
            checked[argument.name] = argument.default
    return checked


_PYTHON_TYPES: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "int": int,
    "float": (int, float),
    "bool": bool,
}


def _check(operation: Operation, argument: Argument, value: object) -> object:
    where = f"{operation.name}: {argument.name}"
    expected = _PYTHON_TYPES.get(argument.type)
    if expected is not None and (
        not isinstance(value, expected) or (argument.type != "bool" and isinstance(value, bool))
    ):
        raise DecodeError(f"{where} must be {argument.type}, not {type(value).__name__}")
    measure: float | None = None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        measure = value
    elif isinstance(value, (str, bytes, list, dict)):
        measure = len(value)
    if measure is not None:
        if argument.minimum is not None and not measure >= argument.minimum:
            raise DecodeError(f"{where} must be at least {argument.minimum:g}")
        if argument.maximum is not None and not measure <= argument.maximum:
            raise DecodeError(f"{where} must be at most {argument.maximum:g}")
    return value
