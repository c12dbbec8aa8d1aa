"""The version that a board reports: its release tree's id, when it runs from one."""

import json
from pathlib import Path

import pytest

import shoal_agent
from shoal_agent.release_tree import MAX_BYTES, running_version

ID = "0.2.0+2a98a831becc"


def package_in(tree: Path) -> Path:
    package = tree / "lib/shoal_agent"
    package.mkdir(parents=True)
    return package


@pytest.mark.parametrize("key", ["id", "version"])
def test_a_package_in_a_release_tree_says_the_trees_id(tmp_path, key):
    package = package_in(tmp_path / ID)
    (tmp_path / ID / "release.json").write_text(json.dumps({key: ID, "arch": "aarch64"}))
    (tmp_path / "current").symlink_to(tmp_path / ID)
    assert running_version(package) == ID
    assert running_version(tmp_path / "current/lib/shoal_agent") == ID


def test_a_package_that_is_installed_says_its_version():
    assert running_version() == shoal_agent.__version__


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"id": 5}',
        '{"id": "another"}',
        "[" * 100_000,
        '{"id": "' + ID + '"}' + " " * MAX_BYTES,
        "\udcff",
    ],
)
def test_a_tree_that_does_not_say_who_it_is_counts_as_none(tmp_path, text):
    package = package_in(tmp_path / ID)
    (tmp_path / ID / "release.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert running_version(package) == shoal_agent.__version__


def test_a_tree_whose_name_is_none_for_a_message_counts_as_none(tmp_path):
    name = "two words"
    package = package_in(tmp_path / name)
    (tmp_path / name / "release.json").write_text(json.dumps({"id": name}))
    assert running_version(package) == shoal_agent.__version__
