import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_fleet.errors import ExpressionError
from shoal_fleet.label_expression import (
    EVERYONE,
    MAX_CHARS,
    AllOf,
    AnyOf,
    Expression,
    Has,
    Not,
    OneOf,
    holds,
    parse,
)

OSLO = {"site": "oslo", "hw": "rpi4", "line": "3"}
KIEL = {"site": "kiel", "hw": "Raspberry Pi 5"}


@pytest.mark.parametrize(
    ("text", "oslo", "kiel"),
    [
        ("", True, True),
        ("site=oslo", True, False),
        ("site=oslo and hw=rpi4", True, False),
        ("site=oslo or site=kiel", True, True),
        ("site!=oslo", False, True),
        ("line!=3", False, True),
        ("line", True, False),
        ("not line", False, True),
        ("site in (oslo, kiel)", True, True),
        ("site in (kiel)", False, True),
        ("not (site=oslo or line)", False, True),
        ('hw="Raspberry Pi 5"', False, True),
        ("site=oslo AND NOT line=4", True, False),
    ],
)
def test_an_expression_names_the_nodes_that_it_holds_for(text, oslo, kiel):
    expression = parse(text)
    assert (holds(expression, OSLO), holds(expression, KIEL)) == (oslo, kiel)


def test_and_binds_closer_than_or_and_not_closest():
    assert parse("a or b and not c or d") == AnyOf(
        (Has("a"), AllOf((Has("b"), Not(Has("c")))), Has("d"))
    )


@pytest.mark.parametrize(
    ("text", "column", "says"),
    [
        ("site=", 6, "expected a value, found the end"),
        ("site=oslo and", 14, "expected a label's key, found the end"),
        ("site=oslo hw=rpi4", 11, "expected 'and', 'or' or the end, found 'hw'"),
        ("(site=oslo", 11, "expected ')', found the end"),
        ("site in oslo", 9, "expected '(', found 'oslo'"),
        ("site in (oslo kiel)", 15, "expected ')', found 'kiel'"),
        ("site & hw", 6, "'&' cannot stand here"),
        ('site="os', 6, "a quote that does not end"),
        ("Site=oslo", 1, "expected a label's key (1 to 32"),
        ("site=and", 6, "expected a value, found 'and'"),
        ("and", 1, "expected a label's key, found 'and'"),
    ],
)
def test_what_is_no_expression_is_refused_with_the_column(text, column, says):
    with pytest.raises(ExpressionError) as refusal:
        parse(text)
    assert refusal.value.column == column
    assert f"column {column}: {says}" in str(refusal.value)


def test_an_expression_that_is_too_long_or_too_deep_is_refused():
    with pytest.raises(ExpressionError, match="2000 characters; 1024 may be"):
        parse("a" * 2000)
    with pytest.raises(ExpressionError, match="nests deeper than 32"):
        parse("(" * 400 + "a" + ")" * 400)
    with pytest.raises(ExpressionError, match="nests deeper than 32"):
        parse("not " * 200 + "a")


@given(st.text(max_size=MAX_CHARS))
def test_any_text_is_an_expression_or_refused(text):
    column = 1
    try:
        holds(parse(text), OSLO)
    except ExpressionError as exc:
        column = exc.column
    assert 1 <= column <= MAX_CHARS + 1


KEYS = st.sampled_from(["site", "hw", "line", "a.b"])
VALUES = st.text(st.sampled_from("abcXYZ019_.:/- "), min_size=1, max_size=8)
CLAIMS = st.builds(Has, KEYS) | st.builds(
    OneOf, KEYS, st.frozensets(VALUES, min_size=1, max_size=3)
)
EXPRESSIONS = st.recursive(
    CLAIMS,
    lambda part: st.one_of(
        st.builds(Not, part),
        st.builds(AllOf, st.lists(part, min_size=2, max_size=3).map(tuple)),
        st.builds(AnyOf, st.lists(part, min_size=2, max_size=3).map(tuple)),
    ),
    max_leaves=8,
)


def written(expression: Expression) -> str:
    match expression:
        case Has(key):
            return key
        case OneOf(key, values):
            quoted = ", ".join(f'"{value}"' for value in sorted(values))
            return f"{key} in ({quoted})"
        case Not(part):
            return f"not ({written(part)})"
        case AllOf(parts):
            return " and ".join(f"({written(part)})" for part in parts)
        case AnyOf(parts):
            return " or ".join(f"({written(part)})" for part in parts)


@given(EXPRESSIONS)
def test_what_is_written_is_read_back(expression):
    assert parse(written(expression)) == expression


def test_nothing_names_everyone():
    assert parse("   ") == EVERYONE
