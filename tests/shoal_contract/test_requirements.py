import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_contract.errors import FileFormatError
from shoal_contract.requirements import parse_requirements


@pytest.mark.parametrize(
    ("bounds", "version", "is_met"),
    [
        (">=2", "2.0.0", True),
        (">=2", "1.99.9", False),
        (">=2, <3", "2.10.0", True),
        (">=2, <3", "3.0.0", False),
        ("==1.2", "1.2.0", True),
        ("!=1.2.3", "1.2.3", False),
        (">1.9", "1.10.0", True),
        ("<=1.0.0", "1.0.1", False),
        (">=0", "", False),
        (">=0", "two", False),
    ],
)
def test_a_requirement_is_met_within_all_of_its_bounds(bounds, version, is_met):
    (requirement,) = parse_requirements({"detector": bounds})
    assert requirement.is_met_by(version) is is_met


def test_a_requirement_says_what_it_needs():
    (requirement,) = parse_requirements({"detector": ">=2,<3"})
    assert str(requirement) == "detector >=2.0.0, <3.0.0"


@pytest.mark.parametrize(
    "table",
    [
        {"detector": "2"},
        {"detector": ""},
        {"detector": ">=2 <3"},
        {"detector": ">=2.0.0.0"},
        {"detector": ">=01"},
        {"detector": ",".join([">=1"] * 5)},
        {"Detector": ">=2"},
        {f"m{index}": ">=1" for index in range(17)},
    ],
)
def test_what_is_no_requirement_is_refused_with_the_file(table):
    with pytest.raises(FileFormatError, match=r"release.toml: \[requires\]"):
        parse_requirements(table)


@given(st.text(max_size=30))
def test_any_text_is_a_requirement_or_refused(text):
    try:
        (requirement,) = parse_requirements({"m": text})
    except FileFormatError:
        return
    assert parse_requirements({"m": str(requirement).removeprefix("m ")}) == (requirement,)
