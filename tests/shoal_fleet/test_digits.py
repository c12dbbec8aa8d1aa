"""The committed digits: table, packing, and the two INT8 releases as ONNX Runtime runs them."""

import subprocess
import sys
import tomllib
from collections import Counter

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_fleet import digits


def session(version, *, optimised=True):
    options = onnxruntime.SessionOptions()
    if not optimised:
        level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.graph_optimization_level = level
    return onnxruntime.InferenceSession(
        digits.release_dir(version) / "model.onnx", options, providers=["CPUExecutionProvider"]
    )


def logits(version, scans, **options):
    levels = np.array([scan.levels for scan in scans], dtype=np.float32)
    pictures = levels.reshape(-1, 1, 8, 8) * np.float32(spec(version)["input"]["scale"])
    return session(version, **options).run(["logits"], {"image": pictures})[0]


def accuracy(version, scans):
    shown = np.array([scan.label for scan in scans])
    return float((logits(version, scans).argmax(axis=1) == shown).mean())


def spec(version):
    return tomllib.loads((digits.release_dir(version) / "release.toml").read_text())


@pytest.fixture(scope="module")
def held_out():
    return digits.held_out()


def test_the_table_has_1797_scans_and_every_digit():
    scans = digits.scans()
    assert [scan.row for scan in scans] == list(range(1797))
    assert sorted(Counter(scan.label for scan in scans).values()) == sorted(
        [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    )
    assert {len(scan.levels) for scan in scans} == {64}
    assert {level for scan in scans for level in scan.levels} == set(range(17))


def test_reading_the_digits_takes_the_standard_library_only():
    """An operator's machine lists the releases without numpy."""
    code = (
        "import sys; from shoal_fleet import digits; digits.held_out(); "
        "sys.exit(' '.join({'numpy', 'onnx', 'onnxruntime'} & set(sys.modules)) or None)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=15)


def test_the_held_out_scans_are_the_last_597(held_out):
    assert [scan.row for scan in held_out] == list(range(1200, 1797))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("1,2,x", "not numbers"),
        (",".join(["0"] * 64), "not 64 grey levels"),
        (",".join(["17"] * 64 + ["1"]), "not 64 grey levels"),
        (",".join(["0"] * 64 + ["10"]), "not 64 grey levels"),
    ],
)
def test_a_damaged_row_is_named(tmp_path, monkeypatch, line, words):
    rows = (digits.DIGITS_DIR / "optdigits.csv").read_text().splitlines()
    rows[7] = line
    (tmp_path / "optdigits.csv").write_text("\n".join(rows))
    monkeypatch.setattr(digits, "DIGITS_DIR", tmp_path)
    with pytest.raises(digits.DigitsError, match=f"row 7 is {words}"):
        digits.scans()


def test_a_shortened_table_is_refused(tmp_path, monkeypatch):
    (tmp_path / "optdigits.csv").write_text("0," * 64 + "1\n")
    monkeypatch.setattr(digits, "DIGITS_DIR", tmp_path)
    with pytest.raises(digits.DigitsError, match="has 1 rows"):
        digits.scans()


def test_packing_is_big_endian_five_bits_a_value():
    assert digits.pack_u5([16, 1]) == bytes([0b10000_000, 0b01_000000])
    assert digits.pack_u5([0, 1, 2, 3, 4, 5, 6, 7]) == bytes.fromhex("00443214c7")
    assert digits.pack_u5([]) == b""


def test_a_scan_is_forty_bytes(held_out):
    packed = digits.pack_u5(held_out[0].levels)
    assert len(packed) == 40
    assert tuple(digits.unpack_u5(packed, 64)) == held_out[0].levels


@given(st.lists(st.integers(0, 31), max_size=80))
def test_unpacking_gives_back_what_was_packed(values):
    assert digits.unpack_u5(digits.pack_u5(values), len(values)) == values


@pytest.mark.parametrize("level", [-1, 32])
def test_a_value_that_does_not_fit_is_refused(level):
    with pytest.raises(digits.DigitsError, match="value 1 is"):
        digits.pack_u5([0, level])


@pytest.mark.parametrize("data", [b"", b"\0" * 39, b"\0" * 41])
def test_a_packed_scan_of_another_length_is_refused(data):
    with pytest.raises(digits.DigitsError, match="64 packed values"):
        digits.unpack_u5(data, 64)


def test_padding_that_is_not_zero_is_refused():
    with pytest.raises(digits.DigitsError, match="padding"):
        digits.unpack_u5(bytes([0b00000_001]), 1)


def test_there_is_no_third_release():
    with pytest.raises(digits.DigitsError, match="no version 3"):
        digits.release_dir(3)


def test_v2_is_better_than_v1_and_v1_is_good(held_out):
    first, second = accuracy(1, held_out), accuracy(2, held_out)
    assert second > first >= 0.9


@pytest.mark.parametrize("version", [1, 2])
def test_the_quality_figure_is_the_measured_one(version, held_out):
    # Two scans of leeway: another CPU may round an activation to the other side.
    assert spec(version)["quality"]["value"] == pytest.approx(
        accuracy(version, held_out), abs=2.1 / len(held_out)
    )


@pytest.mark.parametrize("version", [1, 2])
def test_the_golden_inputs_give_the_golden_outputs(version):
    with np.load(digits.release_dir(version) / "golden.npz", allow_pickle=False) as golden:
        inputs, outputs = golden["inputs"], golden["outputs"]
    assert inputs.shape == (16, 40)
    assert (inputs.dtype, outputs.dtype, outputs.shape) == (np.uint8, np.float32, (16, 10))
    levels = np.array([digits.unpack_u5(row.tobytes(), 64) for row in inputs], dtype=np.float32)
    given_pictures = levels.reshape(-1, 1, 8, 8) * np.float32(0.0625)
    answered = session(version).run(["logits"], {"image": given_pictures})[0]
    assert np.abs(answered - outputs).max() <= spec(version)["golden"]["tolerance"]
    assert (answered.argmax(axis=1) == outputs.argmax(axis=1)).all()
    assert set(outputs.argmax(axis=1)) == set(range(10))


@pytest.mark.parametrize("version", [1, 2])
def test_golden_inputs_are_not_held_out_scans(version, held_out):
    with np.load(digits.release_dir(version) / "golden.npz", allow_pickle=False) as golden:
        inputs = {row.tobytes() for row in golden["inputs"]}
    assert inputs.isdisjoint(digits.pack_u5(scan.levels) for scan in held_out)


@pytest.mark.parametrize("version", [1, 2])
def test_integer_kernels_and_plain_arithmetic_name_the_same_digits(version, held_out):
    """Unoptimised, ONNX Runtime computes the same graph in float: the answer is no kernel's own."""
    fast, plain = logits(version, held_out), logits(version, held_out, optimised=False)
    assert np.abs(fast - plain).max() <= spec(version)["golden"]["tolerance"]
    assert (fast.argmax(axis=1) == plain.argmax(axis=1)).all()


def test_both_releases_have_one_signature():
    for key in ("name", "model", "input", "output", "golden"):
        assert spec(1)[key] == spec(2)[key]
    assert (spec(1)["version"], spec(2)["version"]) == ("1.0.0", "1.1.0")
    signatures = [
        [(v.name, v.type, v.shape) for v in (*s.get_inputs(), *s.get_outputs())]
        for s in (session(1), session(2))
    ]
    assert signatures[0] == signatures[1]
    assert signatures[0] == [
        ("image", "tensor(float)", ["batch", 1, 8, 8]),
        ("logits", "tensor(float)", ["batch", 10]),
    ]
