"""`make bench-delta`'s own arithmetic: the entropy, the goals, the picture, the quote. No corpus is needed."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench"


def test_residuals_that_the_scales_explain_have_no_entropy(bench):
    old = np.arange(-60, 60, dtype=np.int8).repeat(50).reshape(60, 100)
    gain = np.linspace(0.7, 1.3, 60)[:, None]
    new = np.rint(old * gain).astype(np.int8)
    assert bench("delta_entropy").conditional_entropy_bytes(old, new, gain) == 0


def test_a_coin_a_weight_is_a_bit_a_weight(bench):
    rng = np.random.default_rng(1)
    old = np.full((200, 400), 5, np.int8)
    new = (old + rng.integers(0, 2, old.shape)).astype(np.int8)
    bits = 8 * bench("delta_entropy").conditional_entropy_bytes(old, new, np.ones((1, 1)))
    assert bits == pytest.approx(old.size, rel=1e-3)


def test_goals_count_the_pairs_they_name(bench):
    goals = bench("delta_goals")
    ratios = {
        "cnn-few-steps-1": 0.1,
        "cnn-few-steps-2": 0.4,
        "mobilenet-pruned-2": 0.9,
        "cnn-renamed-2": 2.0,
        "minilm-lora-2": 0.8,
    }
    found = {
        goal.name: goal.figure.median
        for goal in goals.size_goals(ratios, dict.fromkeys(ratios, 1.0))
    }
    assert found["... beside tools for files only, without NNCodec"] == pytest.approx(1)
    assert found["size / best peer, plain pairs not used for tuning"] == pytest.approx(0.6)
    assert found["...... cnn alone"] == pytest.approx(0.2)
    assert found["...... mobilenet alone"] == 0.9
    assert found["... MiniLM: few, many, LoRA"] == 0.8
    assert found["worst pair"] == 2.0
    assert "... GRU nets, all cases" not in found


def test_the_growth_of_the_peak_needs_both_large_pairs(bench):
    goals = bench("delta_goals")
    small = {"peak_mib": 10.0, "new_mb": 20.0, "apply_s": 1.0, "encode_s": 50.0, "size_bytes": 2e6}
    large = small | {"peak_mib": 11.0, "new_mb": 80.0}
    names = [goal.name for goal in goals.speed_goals({"large-23": small})]
    assert "... growth" not in names
    both = goals.speed_goals({"large-23": small, "large-90": large})
    growth = next(goal for goal in both if goal.name == "... growth")
    assert growth.figure.median == pytest.approx(10)
    assert not growth.is_met
    share = next(goal for goal in both if goal.name == "... delta's size")
    assert share.figure.median == pytest.approx(10)


def test_the_slowest_pairs_are_named_and_small_models_do_not_count(bench):
    goals = bench("delta_goals")
    pairs = {
        "cnn-few-steps-1": {"new_mb": 0.2, "apply_s": 1.0, "encode_s": 9.0},
        "mobilenet-pruned-1": {"new_mb": 1.2, "apply_s": 0.2, "encode_s": 4.8},
        "large-23": {"new_mb": 25.0, "apply_s": 2.0, "encode_s": 25.0},
    }
    apply, diff, slowest = goals.pair_speed_goals(pairs)
    assert "2 pairs" in apply.name
    assert "mobilenet-pruned-1" in apply.name
    assert apply.figure.median == pytest.approx(6)
    assert not apply.is_met
    assert diff.figure.median == pytest.approx(0.5)
    assert slowest.name == "... slowest, mobilenet-pruned-1"
    assert slowest.figure.median == pytest.approx(0.25)
    assert goals.pair_speed_goals({"cnn-few-steps-1": pairs["cnn-few-steps-1"]}) == []


def test_speed_is_of_pairs_of_a_megabyte_and_more_one_by_one(bench, tmp_path, monkeypatch):
    pairs = bench("delta_pairs")
    sizes = {"cnn-pruned-1": 10, "mobilenet-pruned-1": 1_000_000, "large-23": 2_000_000}
    for name, size in sizes.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "new.onnx").write_bytes(bytes(size))
    figures = {"size_bytes": 50_000.0, "new_mb": 1.0, "apply_s": 0.1, "encode_s": 2.0}
    monkeypatch.setattr(pairs, "CORPUS", tmp_path)
    monkeypatch.setattr(pairs, "_ours", lambda *_asked: figures | {"peak_mib": 9.0})
    options = bench("measure").Options(1, 1, is_quick=False, folder=tmp_path)
    folders = [tmp_path / name for name in sizes if name != "large-23"]
    found = pairs._speed(folders, options, lambda _said: None)
    assert list(found) == ["mobilenet-pruned-1", "large-23"]
    row = pairs._speed_row("large-23", found["large-23"])
    assert row.figures["apply_mb_s"].median == pytest.approx(10)
    assert row.figures["diff_mb_s"].median == pytest.approx(0.5)
    assert {column.name for column in pairs.SPEED_COLUMNS} == row.figures.keys()


def test_what_must_cost_nothing_costs_next_to_nothing(bench):
    faults = bench("delta_faults")
    old = faults.firmware()
    new = faults.one_byte_changed(old)
    assert sum(a != b for a, b in zip(old, new, strict=True)) == 1
    assert faults.bomb_ms() > 0


def test_the_picture_has_every_pair_and_says_who_won(bench):
    plot = bench("delta_plot")
    bars = [
        plot.Bar("a-few-1", 50, 100, 1000, "bsdiff"),
        plot.Bar("a<b", 300, 200, 1000, "xz & co"),
    ]
    picture = ET.fromstring(plot.drawn([("nets", bars)], "Title"))  # noqa: S314 - our own
    text = [element.text for element in picture.iter() if element.text and element.text.strip()]
    assert {"a-few-1", "a<b", "nets", "0.50", "1.50"} <= set(text)
    rectangles = [element for element in picture.iter() if element.tag.endswith("rect")]
    assert [one.get("class") for one in rectangles[3:]] == ["ours", "peer", "lost", "peer"]
    widths = [float(one.get("width", "0")) for one in rectangles[3:]]
    assert widths[0] < widths[1] < widths[3] < widths[2] < plot.WIDTH


def test_a_run_is_quoted_between_the_markers(tmp_path):
    page, printed = tmp_path / "page.md", tmp_path / "printed.txt"
    begin, end = (f"<!-- printed by the bench: {word} -->" for word in ("begin", "end"))
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    printed.write_text(
        "making\ndate: 2026-01-02 03:04 UTC\ndisk: /dev/x, ext4\ncpu: some\ntook 1 s\n"
    )
    script = [sys.executable, ROOT / "tools" / "quote_bench.py"]
    subprocess.run([*script, page, printed], check=True, timeout=20)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert (
        "Printed on 2026-01-02:\n\n```\ndate: 2026-01-02 03:04 UTC\ncpu: some\ntook 1 s\n```"
        in text
    )
    assert "old" not in text
    page.write_text("no place")
    assert subprocess.run([*script, page, printed], check=False, timeout=20).returncode == 1
