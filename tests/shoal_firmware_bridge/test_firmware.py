import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_contract import frames
from shoal_contract.frames import Frame, Kind, Op, Status
from shoal_firmware_bridge.firmware import Firmware, Wrote

ROWS = [b"a" * 40, b"b" * 40, b"c" * 40]
BEAT = Frame(Kind.BEAT, 0, Op.ALIVE)


def firmware(**changes):
    settings = {"samples": ROWS, "rate_hz": 10.0, "boot": 5, "now_s": 0.0}
    return Firmware("meter", **{**settings, **changes})


def events(actions):
    return [a for a in actions if isinstance(a, Frame) and a.kind is Kind.EVENT]


def notes(actions, kind):
    return [a.facts for a in actions if isinstance(a, Wrote) and a.kind == kind]


def ok(seq):
    return Frame(Kind.REPLY, seq, Op.SAMPLE, (0,))


def command(seq, op, *args):
    return Frame(Kind.COMMAND, seq, op, args)


def only_reply(actions):
    [reply] = [a for a in actions if isinstance(a, Frame)]
    return reply.args


def test_samples_are_numbered_without_a_gap_and_taken_in_rotation():
    device = firmware()
    told = device.tick(0.35)
    assert notes(told, "sample") == [{"seq": k, "row": k % 3} for k in range(4)]
    assert [e.args for e in events(told)] == [(1, 5, ROWS[k % 3]) for k in range(4)]


def test_a_sample_is_repeated_until_it_is_answered():
    device = firmware(limit=1)
    [event] = events(device.tick(0.0))
    assert events(device.tick(0.4)) == []
    assert events(device.tick(0.5)) == [event]
    assert notes(device.receive(ok(0), 0.6), "answered") == [{"seq": 0, "status": 0}]
    assert device.receive(ok(0), 0.7) == []
    assert events(device.tick(2.0)) == []


def test_no_more_samples_are_open_than_the_agent_remembers():
    device = firmware()
    assert len(events(device.tick(2.0))) == frames.MAX_EVENT_SPAN
    # All but the oldest: a ninth would push the oldest out of the agent's memory.
    for seq in range(1, 8):
        assert events(device.receive(ok(seq), 2.0)) == []
    assert len(events(device.receive(ok(0), 2.0))) == frames.MAX_EVENT_SPAN


def test_a_full_memory_stops_the_sampling_and_skips_no_number():
    device = firmware(backlog=10)
    told = device.tick(2.0)
    assert [one["seq"] for one in notes(told, "sample")] == list(range(10))
    assert notes(told, "full") == [{"unanswered": 10}]
    assert device.missed == 11
    for seq in range(3):
        device.receive(ok(seq), 2.0)
    told = device.tick(2.15)
    assert [one["seq"] for one in notes(told, "sample")] == [10]
    assert notes(told, "room") == [{"missed": 11}]


def test_a_limit_or_a_signal_ends_the_sampling_but_not_the_answering():
    device = firmware(limit=2)
    assert len(notes(device.tick(5.0), "sample")) == 2
    assert only_reply(device.receive(command(1, Op.GET, 2), 5.0)) == (0, None)
    other = firmware()
    other.stop_sampling()
    assert notes(other.tick(5.0), "sample") == []


def test_a_set_is_done_once_and_a_repeat_is_answered_from_memory():
    device = firmware(limit=0)
    first = device.receive(command(9, Op.SET, 2, 7, 42, b"\xab"), 0.0)
    assert notes(first, "set") == [{"channel": 2, "value": 7, "context": [42, "ab"]}]
    assert only_reply(first) == (Status.OK,)
    again = device.receive(command(9, Op.SET, 2, 7, 42, b"\xab"), 0.1)
    assert notes(again, "set") == []
    assert only_reply(again) == (Status.OK,)
    assert device.repeated_commands == 1
    assert only_reply(device.receive(command(10, Op.GET, 2), 0.2)) == (Status.OK, 7)


def test_it_remembers_the_last_eight_commands():
    device = firmware(limit=0)
    for seq in range(9):
        device.receive(command(seq, Op.SET, 2, seq), 0.0)
    assert notes(device.receive(command(1, Op.SET, 2, 1), 0.0), "set") == []
    assert len(notes(device.receive(command(0, Op.SET, 2, 0), 0.0), "set")) == 1


def test_it_says_who_it_is():
    reply = only_reply(firmware().receive(command(1, Op.HELLO), 0.0))
    assert reply == (Status.OK, "meter", "simulated 1.0", 5)


@pytest.mark.parametrize(
    ("op", "args", "status"),
    [
        (77, (), Status.UNKNOWN_OP),
        (Op.SAMPLE, (), Status.UNKNOWN_OP),
        (Op.SET, (), Status.BAD_ARGS),
        (Op.SET, (2,), Status.BAD_ARGS),
        (Op.SET, (3, 1), Status.BAD_ARGS),
        (Op.SET, ("2", 1), Status.BAD_ARGS),
        (Op.SET, (2, b"x" * 33), Status.BAD_ARGS),
        (Op.GET, (), Status.BAD_ARGS),
        (Op.GET, (2, 2), Status.BAD_ARGS),
        (Op.HELLO, (1,), Status.BAD_ARGS),
    ],
)
def test_a_wrong_command_is_answered_with_what_is_wrong(op, args, status):
    told = firmware().receive(command(1, op, *args), 0.0)
    assert only_reply(told) == (status,)
    assert notes(told, "set") == []


def test_without_a_beat_it_goes_blank_and_refuses_until_one_comes():
    device = firmware(limit=0)
    device.receive(BEAT, 0.0)
    device.receive(command(1, Op.SET, 2, 7), 1.0)
    assert notes(device.tick(2.9), "safe") == []
    assert notes(device.tick(3.0), "safe") == [{}]
    assert notes(device.tick(9.0), "safe") == []
    assert only_reply(device.receive(command(2, Op.GET, 2), 9.0)) == (Status.OK, None)
    assert only_reply(device.receive(command(3, Op.SET, 2, 8), 9.0)) == (Status.REFUSED,)
    assert device.safe
    assert notes(device.receive(BEAT, 9.1), "unsafe") == [{}]
    assert only_reply(device.receive(command(4, Op.SET, 2, 8), 9.2)) == (Status.OK,)


def test_it_beats_every_second_with_its_state():
    device = firmware()
    beats = [a for s in (0.0, 0.5, 1.0, 4.0) for a in device.tick(s) if isinstance(a, Frame)]
    beats = [beat.args for beat in beats if beat.kind is Kind.BEAT]
    assert [beat[:2] for beat in beats] == [(0, False), (1, False), (4, False)]
    assert beats[-1][2] == device.unanswered == 41


def test_the_next_tick_is_never_later_than_what_is_due():
    device = firmware(limit=1)
    assert device.next_tick_s == 0.0
    device.tick(0.0)
    assert device.next_tick_s == pytest.approx(0.1)
    device.tick(0.1)
    assert device.next_tick_s == pytest.approx(0.5)


any_frame = st.builds(
    Frame,
    st.sampled_from(Kind),
    st.integers(0, 20) | st.just(frames.MAX_SEQ),
    st.integers(0, 6),
    st.lists(st.integers(0, 3) | st.binary(max_size=45) | st.none(), max_size=4).map(tuple),
)


@given(st.lists(any_frame, max_size=40))
def test_no_frames_break_it_and_all_it_says_fits(received):
    device, now_s = firmware(rate_hz=30.0, boot=frames.MAX_SEQ), 0.0
    device.samples = [bytes(42)]
    for frame in received:
        now_s += 0.2
        for said in (*device.receive(frame, now_s), *device.tick(now_s)):
            if isinstance(said, Frame):
                assert len(frames.encode(said)) <= frames.MAX_WIRE_BYTES
        assert device.next_tick_s > now_s


def test_an_answer_that_was_meant_for_the_last_boot_answers_nothing():
    device = firmware(limit=1)
    device.tick(0.0)
    late = Frame(Kind.REPLY, 0, Op.SAMPLE, (0, 4))
    assert device.receive(late, 0.1) == []
    mine = Frame(Kind.REPLY, 0, Op.SAMPLE, (0, 5))
    assert notes(device.receive(mine, 0.2), "answered") == [{"seq": 0, "status": 0}]
