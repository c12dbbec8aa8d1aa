"""One new file and many old ones: what it costs in advance, and which deltas are made."""

import numpy as np
import pytest
from tests.shoal_delta.onnx_files import network

import shoal_delta
from shoal_delta import Way, bases, estimate, plan_updates

NEW = network(1)
NEAR = network(1, drift=0.0005)
FAR = network(2, drift=0.02)


def noise(size, seed=7):
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8).tobytes()


@pytest.mark.parametrize("old", [NEAR, FAR, noise(5000), b"", NEW])
def test_an_estimate_is_near_what_the_delta_costs(old):
    real = len(shoal_delta.diff(old, NEW))
    guess = estimate(old, NEW)
    assert guess.full_bytes == len(NEW)
    assert 0.9 * real - 40 <= guess.delta_bytes <= 1.3 * real + 40
    assert guess.make_s > 0


def test_files_that_are_no_models_have_an_estimate_too():
    text = b"".join(b"line %d of a configuration\n" % n for n in range(400))
    changed = text.replace(b"line 77 ", b"entry 77 ")
    assert estimate(text, changed).delta_bytes < 0.1 * len(text)
    assert estimate(noise(9000), noise(9000, seed=8)).delta_bytes >= 9000


@pytest.mark.slow
def test_every_base_gets_its_cheapest_way_and_the_deltas_make_the_new_file():
    old = {b"near": NEAR, b"far": FAR, b"noise": noise(len(NEW)), b"new": NEW}
    plan = plan_updates(NEW, old, {b"near": 10, b"far": 300, b"noise": 5, b"new": 2})
    ways = {update.base: update for update in plan.updates}
    assert [ways[name].way for name in (b"near", b"far", b"new")] == [
        Way.DELTA,
        Way.DELTA,
        Way.NOTHING,
    ]
    for name in (b"near", b"far"):
        update = ways[name]
        assert shoal_delta.apply(old[name], update.delta) == NEW
        assert update.board_bytes == update.delta_bytes == len(update.delta)
        assert update.total_bytes == update.boards * len(update.delta)
    assert ways[b"new"].board_bytes == 0
    assert plan.boards == 317
    assert plan.total_bytes == sum(update.total_bytes for update in plan.updates)
    assert plan.full_total_bytes == 315 * len(NEW)
    # 300 boards save more than 10, though each of the 10 saves more.
    assert [update.base for update in plan.updates][:2] == [b"far", b"near"]
    assert plan_updates(NEW, old, {}).total_bytes == 0


def test_a_delta_that_cannot_pay_is_not_made(monkeypatch):
    new = noise(20_000)

    def never(*_args, **_options):
        raise AssertionError("made")

    monkeypatch.setattr(bases, "diff", never)
    (update,) = plan_updates(new, {b"old": noise(20_000, seed=8)}, {b"old": 3}).updates
    assert (update.way, update.board_bytes, update.delta) == (Way.FULL, 20_000, None)
    assert "worth" in update.reason


def test_a_delta_that_turns_out_too_large_is_not_sent():
    new, old = noise(20_000), noise(20_000, seed=8)
    old = old[:2000] + new[2000:3000] + old[3000:]
    (update,) = plan_updates(new, {b"old": old}, {b"old": 3}).updates
    assert (update.way, update.board_bytes, update.delta) == (Way.FULL, 20_000, None)
    assert 20_000 > update.delta_bytes > 0.9 * 20_000


def test_with_room_for_one_delta_it_is_the_one_that_saves_most():
    old = {b"near": NEAR, b"far": FAR}
    plan = plan_updates(NEW, old, {b"near": 10, b"far": 300}, most_deltas=1)
    assert [(u.base, u.way) for u in plan.updates] == [(b"far", Way.DELTA), (b"near", Way.FULL)]
    plan = plan_updates(NEW, old, {b"near": 300, b"far": 10}, most_deltas=1)
    assert [(u.base, u.way) for u in plan.updates] == [(b"near", Way.DELTA), (b"far", Way.FULL)]


def test_a_dry_plan_makes_nothing_and_says_the_same_ways(tmp_path):
    paths = {}
    for name, content in {"near": NEAR, "far": FAR, "new": NEW}.items():
        paths[name.encode()] = tmp_path / name
        paths[name.encode()].write_bytes(content)
    counts = dict.fromkeys(paths, 7)
    dry = plan_updates(paths[b"new"], paths, counts, is_dry=True)
    real = plan_updates(NEW, paths, counts)
    assert all(update.delta is None for update in dry.updates)
    assert {u.base: u.way for u in dry.updates} == {u.base: u.way for u in real.updates}
    assert dry.total_bytes == pytest.approx(real.total_bytes, rel=0.15)
    assert dry.make_s > 0


def test_a_base_that_the_encoder_fails_on_is_sent_in_full_and_the_others_are_not_harmed(
    monkeypatch,
):
    real = bases.diff

    def failing(old, new, **options):
        if old == NEAR:
            raise shoal_delta.EncodeError("cannot")
        return real(old, new, **options)

    monkeypatch.setattr(bases, "diff", failing)
    told = []
    plan = plan_updates(NEW, {b"near": NEAR, b"far": FAR}, {b"near": 1}, settled=told.append)
    assert [(u.base, u.way, u.reason) for u in plan.updates] == [
        (b"near", Way.FULL, "cannot"),
        (b"far", Way.DELTA, ""),
    ]
    assert told == list(plan.updates)


def test_the_order_in_which_bases_are_named_changes_nothing():
    old = {b"a": NEAR, b"b": NEAR, b"c": FAR}
    one = plan_updates(NEW, old, {b"a": 1, b"b": 1, b"c": 1}, is_dry=True)
    other = plan_updates(NEW, dict(reversed(old.items())), {b"a": 1, b"b": 1, b"c": 1}, is_dry=True)
    assert [u.base for u in one.updates] == [u.base for u in other.updates]


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="absent"):
        plan_updates(NEW, {b"old": tmp_path / "absent"}, {})
