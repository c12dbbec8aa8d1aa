import structlog

from shoal_fleet.refusals import AGAIN_AFTER_S, LOSSES, Refusals

A, B = b"a" * 32, b"b" * 32


def test_the_first_refusal_is_an_alarm_and_the_next_is_told():
    refusals = Refusals()
    with structlog.testing.capture_logs() as heard:
        refusals.refuse(A, "quota exceeded", 0.0)
        refusals.refuse(B, "quota exceeded", 1.0)
    assert [entry["log_level"] for entry in heard] == ["error", "info"]
    assert refusals.of([A, B], 2.0) == {A, B}
    assert refusals.of([A, B], AGAIN_AFTER_S) == {B}


def test_a_broker_without_retained_messages_is_told_once_and_refuses_everything():
    refusals = Refusals()
    with structlog.testing.capture_logs() as heard:
        for _ in range(3):
            refusals.greeted(retain_available=False)
    assert [entry["log_level"] for entry in heard] == ["error"]
    assert refusals.of([A], 0.0) == {A}
    assert not refusals.may_clear(A, 0.0)
    refusals.greeted(retain_available=True)
    assert refusals.of([A], 0.0) == frozenset()


def test_a_broker_that_ends_the_connection_at_the_same_chunks_refuses_them():
    refusals = Refusals()
    for _ in range(LOSSES - 1):
        refusals.lost(A, "gone", 0.0)
    refusals.progressed(A)
    for _ in range(LOSSES - 1):
        refusals.lost(A, "gone", 0.0)
    assert refusals.of([A], 0.0) == frozenset()
    refusals.lost(A, "gone", 0.0)
    assert refusals.of([A], 0.0) == {A}


def test_what_cannot_be_cleared_is_asked_again_later_or_of_another_broker():
    refusals = Refusals()
    refusals.refuse_clearing(A, "not authorised", 0.0)
    assert not refusals.may_clear(A, 1.0)
    assert refusals.may_clear(B, 1.0)
    assert refusals.may_clear(A, AGAIN_AFTER_S)
    refusals.forget()
    assert refusals.may_clear(A, 1.0)
