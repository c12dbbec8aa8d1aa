import pytest

from shoal_contract.errors import DecodeError
from shoal_contract.operations import Argument, Operation, check_arguments

OPERATION = Operation(
    "lamp.set",
    "switch the lamp",
    "operate",
    (
        Argument("level", "int", "how bright", required=True, minimum=0, maximum=10),
        Argument("colour", "str", "its colour", default="white", maximum=8),
        Argument("fade_s", "float", "how long", default=0.0),
    ),
)


def test_defaults_are_filled_in():
    assert check_arguments(OPERATION, {"level": 3}) == {
        "level": 3,
        "colour": "white",
        "fade_s": 0.0,
    }


def test_an_integer_may_stand_where_a_float_belongs():
    assert check_arguments(OPERATION, {"level": 3, "fade_s": 2})["fade_s"] == 2


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "needs level: how bright"),
        ({"level": 11}, "at most 10"),
        ({"level": -1}, "at least 0"),
        ({"level": "3"}, "must be int, not str"),
        ({"level": True}, "must be int, not bool"),
        ({"level": 3, "colour": "ultramarine"}, "at most 8"),
        ({"level": 3, "size": 1}, "takes no 'size' .arguments: level, colour, fade_s"),
        ({"level": 3, "fade_s": float("nan"), "x": 1}, "takes no"),
    ],
)
def test_a_wrong_argument_is_named(given, says):
    with pytest.raises(DecodeError, match=says):
        check_arguments(OPERATION, given)
