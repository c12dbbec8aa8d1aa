"""Which nodes a label expression names: `site=oslo and hw in (rpi4, rpi5)`. Parsing it and asking it; pure.

    expression = term { "or" term }
    term       = factor { "and" factor }
    factor     = "not" factor | "(" expression ")" | claim
    claim      = key | key "=" value | key "!=" value | key "in" "(" value { "," value } ")"

A key by itself asks whether there is such a label. A value with other characters than labels have stands in
double quotes. What the labels of a node are is `placement`'s business.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NoReturn, assert_never

from shoal_fleet.errors import ExpressionError

MAX_CHARS: Final = 1024
MAX_DEPTH: Final = 32
"""How deep parentheses and `not` may nest."""

_TOKEN = re.compile(r'(?P<word>[A-Za-z0-9_.:/-]+)|"(?P<quoted>[^"]*)"|(?P<sign>!=|[=(),])')
_KEY = re.compile(r"[a-z0-9][a-z0-9_.-]{0,31}")
_KEYWORDS: Final = frozenset({"and", "or", "not", "in"})


@dataclass(frozen=True, slots=True)
class Has:
    """There is such a label."""

    key: str


@dataclass(frozen=True, slots=True)
class OneOf:
    """The label has one of these values."""

    key: str
    values: frozenset[str]


@dataclass(frozen=True, slots=True)
class Not:
    """It does not hold."""

    part: "Expression"


@dataclass(frozen=True, slots=True)
class AllOf:
    """Each of them holds; none: it always does."""

    parts: tuple["Expression", ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """One of them holds, or more."""

    parts: tuple["Expression", ...]


Expression = Has | OneOf | Not | AllOf | AnyOf

EVERYONE: Final = AllOf(())


def parse(text: str) -> Expression:
    """The expression in a text; one of spaces only names everybody.

    Raises:
        ExpressionError: it is none. The message points at the column, which counts from 1.
    """
    if len(text) > MAX_CHARS:
        raise ExpressionError(
            f"the expression has {len(text)} characters; {MAX_CHARS} may be", column=MAX_CHARS + 1
        )
    parser = _Parser(text)
    if parser.is_at_end():
        return EVERYONE
    found = parser.expression(0)
    if not parser.is_at_end():
        parser.complain("expected 'and', 'or' or the end")
    return found


def holds(expression: Expression, labels: Mapping[str, str]) -> bool:
    """Whether a node with these labels is named."""
    match expression:
        case Has(key):
            return key in labels
        case OneOf(key, values):
            return labels.get(key) in values
        case Not(part):
            return not holds(part, labels)
        case AllOf(parts):
            return all(holds(part, labels) for part in parts)
        case AnyOf(parts):
            return any(holds(part, labels) for part in parts)
        case _:
            assert_never(expression)


@dataclass(frozen=True, slots=True)
class _Token:
    column: int
    text: str
    is_sign: bool = False
    is_quoted: bool = False

    @property
    def keyword(self) -> str:
        """The keyword that it is, or nothing."""
        word = self.text.lower()
        return "" if self.is_sign or self.is_quoted or word not in _KEYWORDS else word


class _Parser:
    """Recursive descent over the tokens of one text."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._end = _Token(len(text) + 1, "")
        self._next = 0

    def is_at_end(self) -> bool:
        return self._next == len(self._tokens)

    def expression(self, depth: int) -> Expression:
        parts = [self._term(depth)]
        while self._peek().keyword == "or":
            self._take()
            parts.append(self._term(depth))
        return parts[0] if len(parts) == 1 else AnyOf(tuple(parts))

    def complain(self, what: str) -> NoReturn:
        token = self._peek()
        found = repr(token.text) if token is not self._end else "the end"
        raise ExpressionError(f"column {token.column}: {what}, found {found}", column=token.column)

    def _term(self, depth: int) -> Expression:
        parts = [self._factor(depth)]
        while self._peek().keyword == "and":
            self._take()
            parts.append(self._factor(depth))
        return parts[0] if len(parts) == 1 else AllOf(tuple(parts))

    def _factor(self, depth: int) -> Expression:
        token = self._peek()
        if depth > MAX_DEPTH:
            raise ExpressionError(
                f"column {token.column}: nests deeper than {MAX_DEPTH}", column=token.column
            )
        if token.keyword == "not":
            self._take()
            return Not(self._factor(depth + 1))
        if self._takes("("):
            found = self.expression(depth + 1)
            self._need(")")
            return found
        return self._claim()

    def _claim(self) -> Expression:
        token = self._peek()
        if token.is_sign or token.is_quoted or token.keyword or token is self._end:
            self.complain("expected a label's key")
        if not _KEY.fullmatch(token.text):
            self.complain("expected a label's key (1 to 32 of a-z, 0-9, '.', '_' and '-')")
        key = self._take().text
        if self._takes("="):
            return OneOf(key, frozenset({self._value()}))
        if self._takes("!="):
            return Not(OneOf(key, frozenset({self._value()})))
        if self._peek().keyword != "in":
            return Has(key)
        self._take()
        self._need("(")
        values = {self._value()}
        while self._takes(","):
            values.add(self._value())
        self._need(")")
        return OneOf(key, frozenset(values))

    def _value(self) -> str:
        token = self._peek()
        if token.is_sign or token.keyword or token is self._end:
            self.complain("expected a value")
        return self._take().text

    def _need(self, sign: str) -> None:
        if not self._takes(sign):
            self.complain(f"expected {sign!r}")

    def _takes(self, sign: str) -> bool:
        token = self._peek()
        if token.is_sign and token.text == sign:
            self._take()
            return True
        return False

    def _peek(self) -> _Token:
        return self._end if self.is_at_end() else self._tokens[self._next]

    def _take(self) -> _Token:
        token = self._peek()
        self._next += 1
        return token


def _tokens(text: str) -> list[_Token]:
    found: list[_Token] = []
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        match = _TOKEN.match(text, at)
        if match is None:
            what = "a quote that does not end" if text[at] == '"' else repr(text[at])
            raise ExpressionError(f"column {at + 1}: {what} cannot stand here", column=at + 1)
        if match["quoted"] is not None:
            found.append(_Token(at + 1, match["quoted"], is_quoted=True))
        else:
            found.append(_Token(at + 1, match.group(), is_sign=match["sign"] is not None))
        at = match.end()
    return found
