"""Power cuts at every write of the agent's own update, in every state they may leave of the home of the release trees."""

import hashlib
import json
import shutil

import pytest
from tests.support.crash_states import crash_states
from tests.support.power_cuts import fast_folder, sample
from tests.support.recorded_disk import recording
from tests.support.release_trees import TreeBoard, tree_archive
from tests.support.signed_repository import SignedRepository

HISTORIES = {"good": "0.2.0", "bad": "0.1.0"}


def behaves(name):
    return lambda tree: name == "good" or tree == "0.1.0"


def what_is_wrong(home):
    """Why the board would not start from here; empty: it would."""
    tree = home / "releases" / (home / "current").readlink().name
    if (tree / "etc/agent.toml").read_bytes() != b"node = 'a'\n":
        return f"{tree.name} has no configuration"
    files = json.loads((tree / "release.json").read_bytes())["files"]
    wrong = [
        name
        for name, digest in files.items()
        if hashlib.sha256((tree / name).read_bytes()).hexdigest() != digest
    ]
    return f"{tree.name}: {wrong}" if wrong else ""


async def cut_everywhere(name, count):
    findings = []
    async with fast_folder() as folder:
        repository = SignedRepository(folder / "repository", groups=("agents",))
        board = TreeBoard(folder, repository, behaves(name))
        archive = tree_archive("0.2.0")
        _, manifest = board.release(archive)
        board.ask(archive, manifest)
        with recording(board.home) as disk:
            board.switch()
        assert board.current == HISTORIES[name]
        states = crash_states(disk)
        shutil.rmtree(board.home)
        for state in sample(states, count, seed=49):
            state.write_to(board.home)
            try:
                if wrong := what_is_wrong(board.home):
                    findings.append(f"step {state.after_step}: {wrong}")
                board.switch()
                if wrong := what_is_wrong(board.home):
                    findings.append(f"step {state.after_step}, switched: {wrong}")
                if board.current != HISTORIES[name] or board.standing.trial is not None:
                    findings.append(f"step {state.after_step}: ends at {board.current}")
                if (name == "bad") != bool(board.standing.refused):
                    findings.append(f"step {state.after_step}: {board.standing.refused}")
            except Exception as exc:  # noqa: BLE001 - each is a finding, and the next state is another matter
                findings.append(f"step {state.after_step}: {exc!r}")
            shutil.rmtree(board.home)
            (board.state / "self-update/healthy").unlink(missing_ok=True)
    return len(states), findings


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", HISTORIES)
async def test_after_a_power_cut_anywhere_a_whole_tree_is_current_and_the_switch_ends(name):
    count, findings = await cut_everywhere(name, 300)
    print(f"{name}: {count} crash states, 300 of them started, {len(findings)} bad")
    assert findings == []
    assert count > 1000
