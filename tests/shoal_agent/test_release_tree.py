"""The version that a board reports: its release tree's name, when it runs from one."""

from pathlib import Path

import pytest

import shoal_agent
from shoal_agent.release_tree import running_version

BUILD = f"{shoal_agent.__version__}+rc.1"


def package_in(tree: Path) -> Path:
    package = tree / "lib/shoal_agent"
    package.mkdir(parents=True)
    return package


def test_a_package_in_a_release_tree_says_the_trees_name(tmp_path):
    package = package_in(tmp_path / BUILD)
    (tmp_path / BUILD / "release.json").write_text("{}")
    (tmp_path / "current").symlink_to(tmp_path / BUILD)
    assert running_version(package) == BUILD
    assert running_version(tmp_path / "current/lib/shoal_agent") == BUILD


def test_a_package_that_is_installed_says_its_version():
    assert running_version() == shoal_agent.__version__


def test_a_folder_without_release_json_is_no_tree(tmp_path):
    assert running_version(package_in(tmp_path / BUILD)) == shoal_agent.__version__


@pytest.mark.parametrize(
    "name", ["two words", "9.9.9", f"{BUILD}+", f"{shoal_agent.__version__}+é"]
)
def test_a_name_that_does_not_begin_with_the_version_counts_for_nothing(tmp_path, name):
    package = package_in(tmp_path / name)
    (tmp_path / name / "release.json").write_text("{}")
    assert running_version(package) == shoal_agent.__version__
