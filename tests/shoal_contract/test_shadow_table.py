"""[gate.shadow] in release.toml: what is taken, and what is refused by its key."""

import pytest

from shoal_contract.errors import FileFormatError
from shoal_contract.release import parse_spec
from shoal_fleet import digits


def spec_with(text: str) -> bytes:
    return (
        (digits.release_dir(1) / "release.toml").read_bytes() + b"\n[gate.shadow]\n" + text.encode()
    )


def test_the_table_alone_asks_for_a_shadow_run_as_it_stands_in_the_documentation():
    shadow = parse_spec(spec_with("")).gate.shadow
    assert shadow is not None
    assert (shadow.requests, shadow.within_s, shadow.least) == (200, 300.0, 20)
    assert (shadow.agreement, shadow.cosine, shadow.without) == (0.95, 0.99, "pass")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("requests = 0", "requests"),
        ("agreement = 1.5", "agreement"),
        ('without = "perhaps"', "without"),
        ("request = 3", "request"),
        ("requests = 3\nleast = 4", "least 4"),
        ('measure = "cosine"', "top-1"),
    ],
)
def test_what_cannot_be_is_refused_and_named(text, named):
    with pytest.raises(FileFormatError, match=named):
        parse_spec(spec_with(text))
