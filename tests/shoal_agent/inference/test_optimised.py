"""Forms of models that ONNX Runtime has optimised: kept, used again, and never trusted further than their digest."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from tests.shoal_agent.inference import tiny_release as tiny

from shoal_agent.inference import optimised
from shoal_agent.inference.optimised import OptimisedForms
from shoal_agent.inference.runner import Runner
from shoal_agent.inference.settings import WorkerSettings
from shoal_agent.inference.signature import item_form

RELEASE = bytes(range(32))


def large() -> bytes:
    """The tiny model, by way of 1.2 MB of identity."""
    eye = np.eye(tiny.VALUES, 80_000, dtype=np.float32)
    back = np.eye(80_000, tiny.VALUES, dtype=np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "eye"], ["wide"]),
        helper.make_node("MatMul", ["wide", "back"], ["narrow"]),
        helper.make_node("MatMul", ["narrow", "w"], ["y"]),
    ]
    weights = {"eye": eye, "back": back, "w": tiny.weights()}
    return tiny.model_of(
        nodes, [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    )


@pytest.fixture
def board(tmp_path) -> tuple[Path, WorkerSettings]:
    tiny.write(tmp_path / "release", model=large())
    return tmp_path / "release", WorkerSettings(optimised_dir=str(tmp_path / "optimised"))


def load(board: tuple[Path, WorkerSettings]) -> bool:
    """Whether the optimised form was used; the answers are right either way."""
    directory, settings = board
    runner = Runner(settings)
    loaded = runner.load(RELEASE, directory)
    item = tiny.item(9, 1, 8, 2)
    (best, _), _ = runner.run(RELEASE, item_form(4), 1, [item])
    assert tiny.LABELS[best[0]] == tiny.expected_label(item)
    return loaded.is_optimised


def test_a_large_model_is_optimised_once_and_used_so_after_a_restart(board):
    assert [load(board) for _ in range(3)] == [False, True, True]
    folder = Path(board[1].optimised_dir) / RELEASE.hex()
    assert (folder / optimised.WEIGHTS).stat().st_size > 1 << 20
    assert (folder / optimised.MODEL).stat().st_size < 100_000
    assert sorted(path.name for path in folder.parent.iterdir()) == [RELEASE.hex()]


@pytest.mark.parametrize("name", [optimised.WEIGHTS, optimised.MODEL, "digests.json"])
def test_a_form_that_is_not_as_it_was_written_is_made_anew(board, name):
    load(board)
    path = Path(board[1].optimised_dir) / RELEASE.hex() / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert [load(board) for _ in range(2)] == [False, True]


def test_a_form_made_for_another_processor_or_runtime_is_not_used(board):
    load(board)
    folder = Path(board[1].optimised_dir)
    assert OptimisedForms(folder, made_for="another").find(RELEASE) is None


def test_a_small_model_is_not_worth_it(board, tmp_path):
    tiny.write(tmp_path / "release")
    assert [load(board) for _ in range(2)] == [False, False]
    assert not Path(board[1].optimised_dir).exists()


def test_a_place_that_cannot_be_written_costs_only_the_form(board, tmp_path):
    (tmp_path / "optimised").write_text("a file")
    assert [load(board) for _ in range(2)] == [False, False]


def test_a_model_that_does_not_load_leaves_nothing(board, tmp_path):
    forms = OptimisedForms(tmp_path / "optimised", made_for="x")

    def fail() -> None:
        with forms.making(RELEASE) as path:
            path.write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list((tmp_path / "optimised").iterdir()) == []


def test_the_oldest_forms_go(tmp_path):
    forms = OptimisedForms(tmp_path, made_for="x")
    for number in range(optimised.MAX_FORMS + 2):
        with forms.making(bytes([number]) * 32) as path:
            path.write_bytes(b"graph")
    assert len(list(tmp_path.iterdir())) == optimised.MAX_FORMS
    assert forms.find(bytes([0]) * 32) is None
    assert forms.find(bytes([optimised.MAX_FORMS]) * 32) is not None


def test_a_form_that_grew_far_beyond_its_model_is_not_kept(tmp_path):
    forms = OptimisedForms(tmp_path, made_for="x")
    with forms.making(RELEASE, max_bytes=100) as path:
        path.write_bytes(bytes(60))
        path.with_name(optimised.WEIGHTS).write_bytes(bytes(60))
    assert list(tmp_path.iterdir()) == []
