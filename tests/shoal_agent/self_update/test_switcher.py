"""The switcher with a signed repository, real trees in a folder, and an agent that is well or not."""

import os

import msgspec
import pytest
from tests.support.release_trees import TreeBoard, tree_archive
from tests.support.signed_repository import SignedRepository

from shoal_agent.self_update.request import FOLDER
from shoal_agent.self_update.standing import Trial, save
from shoal_agent.self_update.steps import MAX_STARTS


@pytest.fixture
def repository(tmp_path):
    return SignedRepository(tmp_path / "repository", groups=("agents", "oslo"))


@pytest.fixture
def board(tmp_path, repository):
    return TreeBoard(tmp_path, repository)


def asked(board, version="0.2.0", **values):
    archive = tree_archive(version)
    release, manifest = board.release(archive, **values)
    board.ask(archive, manifest)
    return release


def test_a_signed_release_becomes_current_with_the_configuration_of_the_one_before(board):
    release = asked(board)
    standing = board.switch()
    assert (board.current, board.previous, board.restarts) == ("0.2.0", "0.1.0", ["0.2.0"])
    assert standing.reason == ""
    assert standing.trial is None
    assert standing.trees == {"0.2.0": release.hex()}
    config = board.home / "releases/0.2.0/etc/agent.toml"
    assert config.read_text() == "node = 'a'\n"
    assert config.stat().st_mode & 0o777 == 0o640
    assert board.trees == ["0.1.0", "0.2.0"]
    assert os.readlink(board.home / "current") == str(board.home / "releases/0.2.0")  # noqa: PTH115


def test_what_was_answered_is_not_done_again_when_somebody_else_moved_the_link(board):
    asked(board)
    board.switch()
    (board.home / "current").unlink()
    (board.home / "current").symlink_to(board.home / "releases/0.1.0")
    board.switch()
    assert board.current == "0.1.0"


def test_a_release_that_does_not_get_healthy_gives_way_and_is_never_tried_again(board):
    board.behaves = lambda tree: tree == "0.1.0"
    release = asked(board)
    standing = board.switch()
    assert (board.current, board.previous) == ("0.1.0", "")
    assert board.restarts == ["0.2.0", "0.1.0"]
    assert standing.refused == {release.hex(): "0.2.0 was not healthy within 10 s"}
    board.behaves = lambda _: True
    asked(board)
    assert board.switch().reason == "0.2.0 was not healthy within 10 s"
    assert board.current == "0.1.0"


def test_after_too_many_power_cuts_within_a_trial_the_release_before_is_back(board):
    asked(board)
    board.switch()
    trial = Trial(
        tree="0.2.0", previous="0.1.0", release="ab", token="ff", starts=MAX_STARTS
    )  # as a power cut leaves it
    save(board.home, msgspec.structs.replace(board.standing, trial=trial))
    assert "after 3 starts" in board.switch().reason
    assert board.current == "0.1.0"


def test_a_new_configuration_comes_as_a_release_and_stays_private(board):
    archive = tree_archive("0.2.0", {"bin/a": b"x", "etc/agent.toml": b"node = 'b'\n"})
    _, manifest = board.release(archive)
    board.ask(archive, manifest)
    board.switch()
    config = board.home / "current/etc/agent.toml"
    assert config.read_text() == "node = 'b'\n"
    assert config.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("group", [None, "oslo"])
def test_a_release_that_the_agents_keys_have_not_signed_is_not_even_unpacked(board, group):
    asked(board, group=group)
    assert "nobody has signed" in board.switch().reason
    assert board.trees == ["0.1.0"]
    assert board.restarts == []


def test_metadata_of_another_root_counts_for_nothing(board, tmp_path):
    stranger = SignedRepository(tmp_path / "stranger", groups=("agents",))
    board.repository = stranger
    asked(board)
    assert "not switched" in board.switch().reason
    assert board.current == "0.1.0"


def test_an_archive_that_is_not_the_signed_one_is_not_unpacked(board):
    _, manifest = board.release(tree_archive("0.2.0"))
    board.ask(tree_archive("0.3.0"), manifest)
    assert "not the one" in board.switch().reason
    assert board.trees == ["0.1.0"]


def test_another_build_under_a_name_that_is_there_is_refused_for_good(board):
    archive = tree_archive("0.1.0", {"bin/a": b"x"})
    release, manifest = board.release(archive)
    board.ask(archive, manifest)
    assert "another build" in board.switch().refused[release.hex()]
    assert board.current == "0.1.0"


def test_only_the_newest_trees_stay_beside_those_that_the_links_lead_to(board):
    for number in range(2, 7):
        asked(board, f"0.{number}.0")
        board.switch()
    assert (board.current, board.previous) == ("0.6.0", "0.5.0")
    assert len(board.trees) == 3


def hostile_link(folder, target):
    (folder / "tree.tar.gz").unlink()
    (folder / "tree.tar.gz").symlink_to(target)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: hostile_link(folder, "/etc/shadow"),
        lambda folder: ((folder / "manifest").unlink(), os.mkfifo(folder / "manifest")),
        lambda folder: (folder / "manifest").write_bytes(b"x" * 300_000),
        lambda folder: (folder / "asked").write_bytes(b"{"),
        lambda folder: (folder / "asked").write_bytes(b"x" * 100_000),
        lambda folder: (folder / "metadata/timestamp.json").write_bytes(b"x" * 300_000),
        lambda folder: ((folder / "asked").unlink(), (folder / "asked").mkdir()),
        lambda folder: (folder.rename(folder.with_name("b")), folder.symlink_to("b")),
        lambda folder: [(folder / f"metadata/{n}.json").touch() for n in range(300)],
    ],
)
def test_whatever_a_stolen_agent_puts_into_the_folder_moves_nothing(board, spoil):
    asked(board)
    spoil(board.state / FOLDER)
    board.switch()
    assert (board.current, board.trees, board.restarts) == ("0.1.0", ["0.1.0"], [])
