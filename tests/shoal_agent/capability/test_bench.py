"""`shoal-agent bench` as a person meets it."""

import json
import stat

import pytest
from tests.shoal_agent.inference import tiny_release as tiny
from tests.support.board import Board, short_folder
from tests.support.programs import output_of

from shoal_agent.capability import document
from shoal_contract.messages import Hardware

QUICK = ("--seconds", "0.01", "--max-batch", "4")


@pytest.fixture
def board():
    with short_folder() as folder:
        yield Board(folder)


async def bench(*arguments: object) -> tuple[int, str, str]:
    code, out, err = await output_of("shoal_agent", "bench", *arguments)
    assert "Traceback" not in out + err
    return code, out, err


async def test_a_release_directory_is_measured_by_batch_size(tmp_path):
    tiny.write(tmp_path)
    code, out, _ = await bench(tmp_path, *QUICK)
    assert code == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["1", "2", "4"]
    assert "1.0.0, float" in lines[5]
    assert "CPUExecutionProvider, 1 threads" in lines[5]


async def test_every_release_of_a_model_on_the_board_is_measured_and_the_document_kept(board):
    path = board.agent_toml(1883)
    for number in range(2):
        tiny.write(board.state / "releases" / f"{number:064x}", seed=number)
    tiny.write_tensors(board.state / "releases" / f"{9:064x}")
    code, out, err = await bench("--config", path, "--json", *QUICK, "tiny")
    assert code == 0, err
    printed = json.loads(out)
    assert [release["version"] for release in printed["releases"]] == ["1.0.0", "1.0.1"]
    kept = document.read(board.state)
    assert kept["models"] == {"tiny": printed["releases"]}
    assert kept["hardware"]["cpus"] >= 1
    (first, _) = printed["releases"]
    assert first["release"] == f"{0:064x}"
    assert first["providers"] == ["CPUExecutionProvider"]
    assert [timing["rows"] for timing in first["timings"]] == [1, 2, 4]
    assert all(timing["p50_us"] <= timing["p95_us"] for timing in first["timings"])
    file = board.state / document.FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    code, _, _ = await bench("--config", path, "--json", *QUICK, "pair")
    assert code == 0
    assert set(document.read(board.state)["models"]) == {"tiny", "pair"}


async def test_int8_is_compared_with_floats_where_both_are_there(tmp_path):
    tiny.write(tmp_path / "a")
    spec = {"tolerance = 0.001": "tolerance = 1.0"}
    tiny.write(tmp_path / "b", model=tiny.quantised(), spec=spec)
    code, out, err = await bench(tmp_path / "a", tmp_path / "b", *QUICK)
    assert code == 0, err
    assert out.splitlines()[-1].startswith("int8 1.0.0 / float 1.0.0: size ")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 2, "model"),
        (("nothing",), 1, "a model's name needs --config"),
        (("--config", "/no/such.toml", "tiny"), 2, "No such file"),
        (("--max-batch", "0", "tiny"), 2, "--max-batch"),
        (("--help",), 0, ""),
    ],
)
async def test_what_is_wrong_is_one_line(arguments, code, says):
    found, _, err = await bench(*arguments)
    assert found == code
    assert says in err


async def test_releases_that_are_no_good_are_refused_with_the_reason(tmp_path, board):
    tiny.write(tmp_path / "bad", model=b"MZ")
    code, _, err = await bench(tmp_path / "bad")
    assert (code, err.count("\n")) == (1, 1)
    assert "does not load" in err
    tiny.write(tmp_path / "a")
    tiny.write_tensors(tmp_path / "b")
    code, _, err = await bench(tmp_path / "a", tmp_path / "b")
    assert code == 1
    assert "releases of several models: pair, tiny" in err
    code, _, err = await bench("--config", board.agent_toml(1883), "tiny")
    assert code == 1
    assert "no release of 'tiny' is on this board" in err


def hardware(cpus: int) -> Hardware:
    return Hardware("Board", "Linux", "aarch64", cpus, 1 << 29, 1 << 30, None, None, ["asimd"])


def test_figures_of_other_hardware_are_not_kept():
    kept = document.with_model({}, hardware(2), "a", [{"rows": 1}])
    kept = document.with_model(kept, hardware(2), "b", [])
    assert list(kept["models"]) == ["a", "b"]
    assert list(document.with_model(kept, hardware(4), "b", [])["models"]) == ["b"]


@pytest.mark.parametrize("content", [b"", b"[]", b"{" * 9000, b'{"models": 1}'])
def test_a_document_that_is_damaged_is_as_good_as_none(tmp_path, content):
    (tmp_path / document.FILE).write_bytes(content)
    kept = document.with_model(document.read(tmp_path), hardware(2), "a", [])
    assert kept["models"] == {"a": []}
