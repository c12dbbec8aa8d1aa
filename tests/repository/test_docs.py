"""What the pages promise exists: links, files, commands with their options, and configuration keys."""

import re
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.support.command_lines import commands_in, complaint

import shoal_agent.config
import shoal_firmware_bridge.config
import shoal_fleet.config
from shoal_agent.config import AgentConfig
from shoal_agent.errors import AgentError
from shoal_broker.doctor import identities
from shoal_broker.doctor.errors import DoctorFileError
from shoal_broker.errors import BrokerError
from shoal_broker.server import config_file
from shoal_broker.server.config_file import BrokerFile
from shoal_contract import pipelines
from shoal_contract.errors import ContractError
from shoal_contract.release import ReleaseSpec, parse_spec
from shoal_contract.toml import Table
from shoal_firmware_bridge.config import BridgeConfig
from shoal_firmware_bridge.errors import BridgeError
from shoal_fleet.config import FleetConfig
from shoal_fleet.errors import FleetError

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("deploy/ansible/**/README.md"),
    ]
)
CONFIGURATIONS = {
    "docs/agent.md": AgentConfig,
    "docs/broker.md": BrokerFile,
    "docs/bridge.md": BridgeConfig,
    "docs/fleet.md": FleetConfig,
    "docs/rollouts.md": ReleaseSpec,
}
TABLES_OF_NAMES = {"requires"}
"""Tables whose keys are names that somebody gave."""

LOADERS = (
    shoal_agent.config.load,
    shoal_firmware_bridge.config.load,
    shoal_fleet.config.load,
    config_file.load,
    identities.load,
    lambda path: parse_spec(path.read_bytes()),
    lambda path: pipelines.read_file(path.read_bytes(), source=str(path)),
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
SPAN = re.compile(r"`([^`\n]+)`")
OUR_PATH = re.compile(
    r"(?:agent|bench|broker|deploy|docs|firmware-bridge|fleet|requirements|tests|tools|\.ci)/[\w./-]*"
)
ROW_OF_KEYS = re.compile(r"^\| (`[^|]+) \|", re.MULTILINE)
KEY = re.compile(r"(?:(\[+[\w.]+\]+) ?)?(\w+)?")

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", page.read_text())


def headings(page: Path) -> set[str]:
    """What may stand behind the # of a link, as GitHub makes it."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def shell_lines(page: Path) -> Iterator[str]:
    """Lines of fenced blocks that are no program text, and code in the prose that begins with a command."""
    for language, block in FENCE.findall(page.read_text()):
        if language in {"", "sh", "console"}:
            for line in block.replace("\\\n", " ").splitlines():
                command = re.split(r"\s#|\s{3,}(?!-)", line.strip())[0]
                if re.match(
                    r"(\$ )?([\w./-]*/)?(shoal(-\w+)?|python3?|make|sudo|printf) ",
                    line.strip() + " ",
                ):
                    yield command
    yield from (
        span for span in SPAN.findall(prose(page)) if re.match(r"(shoal(-\w+)?|make) ", span)
    )


@every_page
def test_every_relative_link_leads_somewhere(page):
    for link in LINK.findall(prose(page)):
        if link.startswith(("http:", "https:", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link} does not exist"
        if anchor:
            assert anchor in headings(target), f"{link}: there is no such heading"


@every_page
def test_every_file_that_is_named_exists(page):
    for span in SPAN.findall(prose(page)):
        if OUR_PATH.fullmatch(span):
            assert (ROOT / span).exists(), f"{span} does not exist"


@every_page
def test_every_command_line_is_one_that_help_knows(page):
    complaints = [
        f"{line}: {wrong}"
        for line in shell_lines(page)
        for call in commands_in(line)
        if (wrong := complaint(call)) is not None
    ]
    assert not complaints


@every_page
def test_every_make_target_exists(page):
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in shell_lines(page):
        named = re.findall(r"(?:^|&& )make ([a-z-]+)", line)
        assert set(named) <= known, line


def test_the_command_check_sees_commands_and_refuses_wrong_ones():
    lines = [line for page in PAGES for line in shell_lines(page)]
    assert sum(len(commands_in(line)) for line in lines) > 50
    for wrong in (
        "shoal frobnicate",
        "shoal nodes frobnicate",
        "shoal rollout start x --gruop y",
        "shoal-broker frobnicate",
        "shoal-broker --no-such-option",
        "shoal-agent --config a.toml --chekc",
        "printf x | shoal-delta difff a b",
    ):
        assert [complaint(call) for call in commands_in(wrong)] != [None], wrong


def test_the_index_leads_to_every_page():
    index = ROOT / "docs/README.md"
    linked = {
        (index.parent / link.partition("#")[0]).resolve()
        for link in LINK.findall(index.read_text())
    }
    missing = {page for page in (ROOT / "docs").rglob("*.md") if page != index} - linked
    assert not missing


def test_decisions_are_numbered_without_gaps_and_dated():
    pages = sorted((ROOT / "docs/decisions").glob("*.md"))
    for number, page in enumerate(pages, start=1):
        assert page.name.startswith(f"{number:04}-")
        assert re.match(rf"# {number:04}: .+ \(\d{{4}}-\d\d-\d\d\)\n", page.read_text()), page.name


@pytest.mark.parametrize("page", CONFIGURATIONS)
def test_the_page_has_every_configuration_key_and_no_other(page):
    assert documented_keys(ROOT / page) == keys_of(CONFIGURATIONS[page])


@every_page
def test_every_example_file_on_the_page_is_accepted(page, tmp_path):
    path = tmp_path / "example.toml"
    for language, example in FENCE.findall(page.read_text()):
        if language == "toml":
            path.write_text(example)
            assert any(accepts(load, path) for load in LOADERS), example


@pytest.mark.parametrize("page", ["docs/agent.md", "docs/broker.md"])
def test_the_defaults_in_the_table_are_those_of_the_code(page):
    text = (ROOT / page).read_text()
    rows = re.findall(r"^\| (`[^|]+) \| `([^|`]+)` \|", text, re.MULTILINE)
    shown = {
        key: tomllib.loads(f"x = {value}")["x"]
        for cell, value in rows
        for key in keys_in_cell(cell)
    }
    assert shown == defaults_of(CONFIGURATIONS[page])


def accepts(load, path: Path) -> bool:
    try:
        load(path)
    except (AgentError, BridgeError, FleetError, BrokerError, ContractError, DoctorFileError):
        return False
    return True


def keys_of(kind: type[Table], prefix: str = "") -> set[str]:
    """`table.key` of every key that a configuration file may have."""
    return {key for key, _ in _fields(kind, prefix)}


def defaults_of(kind: type[Table]) -> dict[str, object]:
    """The defaults that are values, by `table.key`."""
    return {
        key: list(default) if isinstance(default, tuple) else default
        for key, default in _fields(kind, "")
        if default is not msgspec.NODEFAULT and default not in (None, ())
    }


def documented_keys(page: Path) -> set[str]:
    """`table.key` of every row of the page's first table of keys, and of its examples."""
    text = page.read_text()
    _, head, rest = text.partition("| key |")
    table = rest.split("\n\n")[0] if head else ""
    found = {key for cell in ROW_OF_KEYS.findall(table) for key in keys_in_cell(cell)}
    for language, block in FENCE.findall(text):
        if language == "toml":
            found |= set(_keys_in(tomllib.loads(block)))
    return found


def keys_in_cell(cell: str) -> Iterator[str]:
    """`[broker] host`, `port` -> broker.host, broker.port."""
    table = ""
    for span in SPAN.findall(cell):
        match = KEY.fullmatch(span)
        if match is None:
            continue
        if match[1]:
            table = match[1].strip("[]") + "."
        if match[2]:
            yield table + match[2]


def _keys_in(table: dict[str, typing.Any], prefix: str = "") -> Iterator[str]:
    for key, value in table.items():
        if key in TABLES_OF_NAMES:
            yield prefix + key
            continue
        inner = value[0] if isinstance(value, list) and value else value
        if isinstance(inner, dict):
            for one in value if isinstance(value, list) else [value]:
                yield from _keys_in(one, f"{prefix}{key}.")
        else:
            yield prefix + key


def _fields(kind: type[Table], prefix: str) -> Iterator[tuple[str, object]]:
    for field in msgspec.structs.fields(kind):
        inner = _table_in(field.type)
        if inner is None:
            yield prefix + field.name, field.default
        else:
            yield from _fields(inner, f"{prefix}{field.name}.")


def _table_in(annotation: object) -> type[Table] | None:
    """The Table in `Table`, `Table | None` or `tuple[Table, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, Table):
        return annotation
    found = [_table_in(part) for part in typing.get_args(annotation)]
    return next((table for table in found if table is not None), None)
