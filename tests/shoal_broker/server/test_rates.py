"""Too fast is answered, by the clock and no later: buckets, addresses, wrong passwords."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_broker.server import rates
from shoal_broker.server.rates import Addresses, Bucket, Guesses, Meter, neighbourhood


def test_a_bucket_gives_a_seconds_worth_at_once_and_then_so_much_a_second():
    bucket = Bucket(10, 100.0)
    assert [bucket.take(1, 100.0) for _ in range(10)] == [0.0] * 10
    assert bucket.take(1, 100.0) == pytest.approx(0.1)
    assert bucket.take(1, 100.2) == 0.0
    assert not bucket.is_full(100.3)
    assert bucket.is_full(102.0)


@settings(max_examples=200)
@given(
    per_s=st.integers(1, 1000),
    steps=st.lists(st.tuples(st.floats(0, 2), st.integers(0, 300)), max_size=50),
)
def test_who_waits_as_long_as_told_sends_no_more_than_the_limit(per_s, steps):
    bucket = Bucket(per_s, 0.0)
    now_s, taken = 0.0, 0
    for pause_s, amount in steps:
        now_s += pause_s
        taken += amount
        now_s += bucket.take(amount, now_s)
        # A second's worth ahead, and the rounding of floats.
        assert taken <= per_s * (now_s + 1) + 1e-6 * taken + 1e-6


def test_a_meter_waits_for_the_slower_of_its_limits():
    meter = Meter(messages_per_s=10, bytes_per_s=1000, now_s=0.0)
    assert meter.take(messages=1, size_bytes=100, now_s=0.0) == 0.0
    assert meter.take(messages=1, size_bytes=2900, now_s=0.0) == pytest.approx(2.0)
    only_messages = Meter(messages_per_s=1, bytes_per_s=0, now_s=0.0)
    assert only_messages.take(messages=0, size_bytes=1 << 30, now_s=0.0) == 0.0


def test_an_address_has_so_many_connections_and_no_more():
    addresses = Addresses(max_connections=2, connects_per_s=0)
    assert addresses.opened("a", 0.0) is addresses.opened("a", 0.0) is None
    refused = addresses.opened("a", 0.0)
    assert (int(refused.reason_code), refused.is_told) == (0x97, True)
    assert addresses.opened("b", 0.0) is None
    for _ in range(2):
        addresses.closed("a", 0.0)
    assert addresses.opened("a", 0.0) is None


def test_who_comes_too_fast_is_told_and_much_too_fast_is_cut():
    addresses = Addresses(max_connections=1000, connects_per_s=5)
    answers = [addresses.opened("a", 0.0) for _ in range(100)]
    assert answers[:5] == [None] * 5
    assert {int(answer.reason_code) for answer in answers[5:]} == {0x9F}
    assert [answer.is_told for answer in answers[5:]] == [True] * 5 + [False] * 90
    # However many were cut: a second later there is room again.
    assert [addresses.opened("a", 2.0) for _ in range(5)] == [None] * 5


def test_an_address_that_is_gone_is_forgotten_when_its_rate_is():
    addresses = Addresses(max_connections=10, connects_per_s=5)
    for n in range(1000):
        addresses.opened(f"{n}", 0.0)
        addresses.closed(f"{n}", 0.0)
    assert len(addresses._known) == 1000
    addresses.sweep(2.0)
    assert addresses._known == {}
    addresses = Addresses(max_connections=10, connects_per_s=0)
    addresses.opened("a", 0.0)
    addresses.closed("a", 0.0)
    assert addresses._known == {}


def test_wrong_passwords_cost_their_address_more_and_more():
    guesses = Guesses()
    for _ in range(3):
        assert guesses.wait_s("a", 0.0) == 0.0
        guesses.failed("a", 0.0)
    waits, now_s = [], 0.0
    for _ in range(7):
        wait_s = guesses.wait_s("a", now_s)
        waits.append(wait_s)
        now_s += wait_s
        guesses.failed("a", now_s)
    assert waits == [0.5, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0]
    assert guesses.wait_s("b", now_s) == 0.0
    guesses.sweep(now_s + 61)
    assert guesses.wait_s("a", now_s + 61) == 0.0


def test_many_guesses_at_once_wait_for_each_other_and_most_are_turned_away():
    guesses = Guesses()
    for _ in range(6):
        guesses.failed("a", 0.0)
    waits = [guesses.wait_s("a", 0.0) for _ in range(100)]
    assert waits[:3] == [0.5, 4.5, None]
    assert set(waits[3:]) == {None}


def test_what_is_remembered_of_strangers_is_bounded(monkeypatch):
    monkeypatch.setattr(rates, "MAX_ADDRESSES", 100)
    guesses = Guesses()
    for n in range(1000):
        guesses.failed(f"{n}", 0.0)
    assert len(guesses._failures) == 100


@pytest.mark.parametrize(
    ("host", "counts_as"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
        ("@somewhere", "@somewhere"),
    ],
)
def test_the_addresses_of_one_neighbour_count_as_one(host, counts_as):
    assert neighbourhood(host) == counts_as
