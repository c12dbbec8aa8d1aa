import json
import subprocess
import sys

import pytest
from tests.shoal_delta.onnx_files import network

from shoal_delta import cli
from shoal_delta.onnx_wire import walk


@pytest.fixture
def pair(tmp_path):
    (tmp_path / "v1").write_bytes(network(1))
    (tmp_path / "v2").write_bytes(network(2, drift=0.003))
    return tmp_path


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return ended.value.code, out, err


def test_diff_apply_and_info_work_together(pair, capsys):
    code, out, err = run(capsys, "diff", pair / "v1", pair / "v2", "-o", pair / "d")
    assert (code, err) == (0, "")
    assert "% of the new file" in out
    assert run(capsys, "apply", pair / "v1", pair / "d", "-o", pair / "made")[0] == 0
    assert (pair / "made").read_bytes() == (pair / "v2").read_bytes()
    code, out, _ = run(capsys, "info", pair / "d", "--old", pair / "v1")
    assert code == 0
    assert "layer1.weight_quantized" in out


def test_every_command_speaks_json(pair, capsys):
    _, out, _ = run(capsys, "diff", pair / "v1", pair / "v2", "-o", pair / "d", "--json")
    assert json.loads(out)["delta_size"] == (pair / "d").stat().st_size
    _, out, _ = run(capsys, "apply", pair / "v1", pair / "d", "-o", pair / "made", "--json")
    assert json.loads(out) == {"new_size": (pair / "v2").stat().st_size}
    _, out, _ = run(capsys, "info", pair / "d", "--json")
    info = json.loads(out)
    assert info["size"] == (pair / "d").stat().st_size
    assert sum(segment["size"] for segment in info["segments"]) == info["new_size"]
    assert sum(part["size"] for part in info["tensors"]) == info["new_size"]
    shares = sum(part["coded_size"] for part in info["tensors"])
    assert shares == pytest.approx(info["size"] - info["header_size"], abs=2)


def test_info_tells_which_weights_moved_and_how_far(pair, capsys):
    old = bytearray((pair / "v1").read_bytes())
    weights = next(t for t in walk(bytes(old)).tensors if t.name == "layer1.weight_quantized")
    for at, move in ((7, 3), (1000, 1), (4000, 2)):
        old[weights.offset + at] = (old[weights.offset + at] + move) & 0xFF
    (pair / "moved").write_bytes(old)
    run(capsys, "diff", pair / "v1", pair / "moved", "-o", pair / "d")
    _, out, _ = run(capsys, "info", pair / "d", "--old", pair / "v1", "--json")
    assert json.loads(out)["changes"] == [
        {
            "name": "layer1.weight_quantized",
            "elements": weights.size,
            "moved": 3,
            "mean_move": 2.0,
            "largest_move": 3.0,
            "is_new": False,
        }
    ]
    _, out, _ = run(capsys, "info", pair / "d", "--old", pair / "v1")
    assert out.splitlines()[-1].split() == [str(weights.size), "3", "0.1%", "2", "3", weights.name]


def test_the_fast_profile_makes_segments_that_a_board_can_resume(pair, capsys):
    run(capsys, "diff", pair / "v1", pair / "v2", "-o", pair / "d", "--profile", "fast")
    _, out, _ = run(capsys, "info", pair / "d", "--json")
    assert json.loads(out)["layout"] == "segmented"
    assert run(capsys, "apply", pair / "v1", pair / "d", "-o", pair / "made")[0] == 0
    assert (pair / "made").read_bytes() == (pair / "v2").read_bytes()
    assert run(capsys, "diff", "a", "b", "-o", "c", "--profile", "huge")[0] == 2


def test_what_is_refused_is_one_line_and_exit_1(pair, capsys):
    run(capsys, "diff", pair / "v1", pair / "v2", "-o", pair / "d")
    for arguments in (
        ("apply", pair / "v2", pair / "d", "-o", pair / "x"),
        ("apply", pair / "v1", pair / "v2", "-o", pair / "x"),
        ("apply", pair / "v1", pair / "d", "-o", pair / "x", "--max-size", 10),
        ("apply", pair / "none", pair / "d", "-o", pair / "x"),
        ("info", pair / "none"),
        ("info", pair / "v1"),
        ("diff", pair / "none", pair / "v2", "-o", pair / "x"),
        ("diff", pair / "v1", pair / "v2", "-o", pair / "no folder" / "x"),
    ):
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (1, "")
        assert err.startswith("shoal-delta: ")
        assert err.count("\n") == 1
    _, out, _ = run(capsys, "info", pair / "v1", "--json")
    assert json.loads(out)["error"] == "CorruptDeltaError"
    assert sorted(path.name for path in pair.iterdir()) == ["d", "v1", "v2"]


def test_a_wrong_command_line_is_exit_2(capsys):
    for arguments in ((), ("melt",), ("apply", "a"), ("info", "d", "--max-size", "-1")):
        assert run(capsys, *arguments)[0] == 2


def test_help_shows_an_example(capsys):
    for arguments in (
        ("--help",),
        ("diff", "--help"),
        ("apply", "--help"),
        ("info", "--help"),
        ("bench", "--help"),
    ):
        code, out, _ = run(capsys, *arguments)
        assert code == 0
        assert "shoal-delta" in out.partition("example")[2]


def test_a_bar_is_drawn_at_a_terminal_only(pair, capsys, monkeypatch):
    run(capsys, "diff", pair / "v1", pair / "v2", "-o", pair / "d")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    _, _, err = run(capsys, "apply", pair / "v1", pair / "d", "-o", pair / "made")
    assert "applying [" in err


def test_an_interrupt_is_exit_130(pair, capsys, monkeypatch):
    def interrupted(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "diff", interrupted)
    assert run(capsys, "diff", pair / "v1", pair / "v2", "-o", pair / "d")[0] == 130
    assert not (pair / "d").exists()


def test_the_module_runs_and_needs_neither_onnx_nor_the_rest_of_shoal(pair):
    program = (
        "import sys, shoal_delta.cli\n"
        "foreign = [m for m in sys.modules if m.split('.')[0] in ('onnx', 'cbor2', 'msgspec')\n"
        "           or m.startswith('shoal_') and m.split('.')[0] != 'shoal_delta']\n"
        "sys.exit(repr(foreign) if foreign else 0)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    done = subprocess.run(
        [sys.executable, "-m", "shoal_delta", "info", str(pair / "v1")],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("shoal-delta: this is not a delta")


def test_bench_compares_each_file_of_a_directory_with_the_next(pair, capsys):
    (pair / "v3").write_bytes((pair / "v2").read_bytes() + b"more")
    code, out, _ = run(capsys, "bench", pair, "--json")
    found = json.loads(out)["pairs"]
    assert code == 0
    assert [(one["old"], one["new"]) for one in found] == [("v1", "v2"), ("v2", "v3")]
    assert all(0 < one["delta_size"] <= one["xz_size"] + 120 for one in found)
    code, out, _ = run(capsys, "bench", pair)
    assert code == 0
    assert out.count(" -> ") == 2


def test_bench_of_a_directory_without_two_files_is_one_clear_error(tmp_path, capsys):
    code, out, err = run(capsys, "bench", tmp_path)
    assert (code, out) == (1, "")
    assert err == "shoal-delta: there are no two files to compare in what was given\n"
    code, _, err = run(capsys, "bench", tmp_path / "none")
    assert code == 1
    assert err.count("\n") == 1
