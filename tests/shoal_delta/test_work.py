import time
from pathlib import Path

import pytest
from tests.shoal_delta import hostile

import shoal_delta
from shoal_delta import LimitError, encode, work
from shoal_delta.coders import Mode
from shoal_delta.decoding import check_work, read_header, reader_of


def work_of(delta: bytes, old: bytes) -> int:
    read = reader_of(delta)
    return check_work(read_header(read, len(delta), 1 << 40), read, reader_of(old))


@pytest.mark.parametrize(
    ("make", "accepted"),
    [
        (hostile.one_lane, 0),
        (hostile.grouped, 0),
        (hostile.rows, 1),
        (hostile.mixed, 3),
        (hostile.dictionaries, 7_000),
        pytest.param(hostile.crumbs, 1, marks=[pytest.mark.slow, pytest.mark.timeout(60)]),
        (hostile.factors, 3),
    ],
)
def test_a_few_kilobytes_that_ask_for_hours_are_refused_at_once(make, accepted, tmp_path):
    names = ("old", "delta", "new")
    old, path, new = (tmp_path / name for name in names)
    old.write_bytes(hostile.OLD)
    # What is accepted of this is some half a minute; the same again is not.
    if accepted:
        delta = hostile.delta(make, accepted)
        assert 0 < work_of(delta, hostile.OLD) <= work.MAX_WORK + (64 << 12)
    path.write_bytes(hostile.delta(make, max(5, 2 * accepted)))
    started_s = time.process_time()
    with pytest.raises(LimitError, match="more work"):
        shoal_delta.apply_file(old, path, new)
    print(f"{path.stat().st_size} bytes refused in {time.process_time() - started_s:.3f} s of CPU")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["delta", "old"]


def test_such_a_delta_is_not_looked_into_either(monkeypatch):
    with pytest.raises(LimitError, match="more work"):
        shoal_delta.inspect(hostile.delta(hostile.one_lane, 5), hostile.OLD)
    monkeypatch.setattr(work, "MAX_WORK", 1 << 15)
    with pytest.raises(LimitError, match="more work"):
        shoal_delta.inspect(hostile.delta(hostile.crumbs, 1))


def test_work_grows_with_what_is_made_and_only_so_far():
    for new_size in (0, 1 << 20, 90 << 20):
        counted = work.Work(new_size)
        counted.add(work.MAX_WORK + new_size // 256)
        with pytest.raises(LimitError):
            counted.add(1)


def test_every_mode_has_its_price():
    as_quick_as_their_bytes = {Mode.RAW, Mode.RUN, Mode.ZSTD, Mode.LZMA, Mode.BZIP2}
    priced = {Mode.ZSTD_DICTIONARY, Mode.ANS, Mode.ROWS, Mode.MIXED, Mode.GROUPS}
    # A new mode belongs to one of them: `Work.add_stream`.
    assert set(Mode) == as_quick_as_their_bytes | priced


PAIRS = Path(__file__).parent / "pairs" / "cnn"


@pytest.fixture(scope="module")
def pair():
    return tuple((PAIRS / name).read_bytes() for name in ("old.onnx", "many-steps.onnx"))


def modes_in(delta: bytes) -> set[str]:
    return {s.mode for each in shoal_delta.inspect(delta).segments for s in each.streams}


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_the_encoder_leaves_the_slow_coders_out_when_they_would_take_too_long(pair, monkeypatch):
    old, new = pair
    slow = shoal_delta.diff(old, new, workers=1)
    assert "rows" in modes_in(slow)
    monkeypatch.setattr(work, "MAX_WORK", work_of(slow, old) - 1 - (len(new) >> 8))
    with pytest.raises(LimitError):
        shoal_delta.apply(old, slow)
    quick = shoal_delta.diff(old, new, workers=1)
    assert shoal_delta.apply(old, quick) == new
    assert "rows" not in modes_in(quick)


def test_a_plan_of_too_many_operations_gives_way_to_a_plain_one(pair, monkeypatch):
    old, new = pair
    monkeypatch.setattr(work, "MAX_WORK", 5)
    monkeypatch.setattr(work, "MAX_WORK_SHIFT", 30)
    delta = shoal_delta.diff(old, new, profile="fast", workers=1)
    assert shoal_delta.apply(old, delta) == new
    assert len(shoal_delta.inspect(delta).tensors) == 1


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_model_of_more_than_a_mebibyte_is_not_left_to_the_slow_coders(pair, monkeypatch):
    old, new = pair
    monkeypatch.setattr(encode, "SLOW_CODER_BYTES", 1000)
    assert not {"rows", "mixed"} & modes_in(shoal_delta.diff(old, new, workers=1))
    renamed = old.replace(b"_quantized", b"_quantised")
    assert not {"rows", "mixed"} & modes_in(shoal_delta.diff(old, renamed, workers=1))
