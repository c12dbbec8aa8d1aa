from collections import Counter, deque
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shoal_contract import frames
from shoal_contract.frames import Frame, Kind, Op, Status
from shoal_firmware_bridge import device
from shoal_firmware_bridge.device import DeviceState, Greeted, ToAgent, ToDevice
from shoal_firmware_bridge.firmware import Firmware, Wrote

FIRST = device.LOWEST_SEQ + 100


def linked() -> DeviceState:
    """A device that was greeted and has an agent."""
    state = DeviceState(FIRST)
    [hello] = state.link_up(0.0)
    state.from_device(reply_to(hello, 0, "meter", "1.0", 3), 0.0)
    state.agent_came()
    return state


def command(seq, *args, op=Op.SET):
    return Frame(Kind.COMMAND, seq, op, args or (2, seq))


def reply_to(action, *args):
    return Frame(Kind.REPLY, action.frame.seq, action.frame.op, args or (0,))


def statuses(actions):
    return [(a.frame.seq, Status(a.frame.args[0])) for a in actions if isinstance(a, ToAgent)]


def to_device(actions):
    return [a for a in actions if isinstance(a, ToDevice)]


def test_a_new_line_is_greeted_and_the_answer_says_who_is_there():
    state = DeviceState(FIRST)
    [hello] = state.link_up(0.0)
    assert hello == ToDevice(Frame(Kind.COMMAND, FIRST, Op.HELLO, ()))
    assert state.from_device(reply_to(hello, 0, "meter", "1.0", 3), 0.1) == [
        Greeted("meter", "1.0", 3)
    ]


def test_a_command_travels_under_a_number_of_the_links_and_its_answer_under_the_agents():
    state = linked()
    [sent] = state.from_agent(command(7, 2, 5), 1.0)
    assert sent == ToDevice(Frame(Kind.COMMAND, FIRST + 1, Op.SET, (2, 5)))
    [answer] = state.from_device(reply_to(sent, 0, "x"), 1.1)
    assert answer == ToAgent(Frame(Kind.REPLY, 7, Op.SET, (0, "x")))


def test_a_command_is_repeated_and_then_answered_in_the_devices_place():
    state = linked()
    [sent] = state.from_agent(command(7), 0.0)
    for n in range(1, 8):
        assert state.next_tick_s == pytest.approx(n * 0.25)
        assert state.tick(n * 0.25 - 0.01) == []
        assert state.tick(n * 0.25) == [sent]
    assert statuses(state.tick(2.0)) == [(7, Status.NO_ANSWER)]
    assert state.next_tick_s is None
    assert state.from_device(reply_to(sent), 2.1) == []
    assert state.stats.strays == 1


def test_what_the_agent_repeats_is_answered_from_memory_and_sent_once():
    state = linked()
    [sent] = state.from_agent(command(7), 0.0)
    assert state.from_agent(command(7), 0.1) == []
    [answer] = state.from_device(reply_to(sent), 0.2)
    assert state.from_agent(command(7), 0.3) == [answer]


def test_a_new_connection_of_the_agent_starts_with_an_empty_memory():
    state = linked()
    [sent] = state.from_agent(command(7), 0.0)
    state.agent_went()
    assert state.from_device(reply_to(sent), 0.1) == []
    state.agent_came()
    assert len(to_device(state.from_agent(command(7), 0.2))) == 1


def test_never_more_commands_are_open_than_the_device_can_remember():
    state = linked()
    sent = [a for seq in range(9) for a in state.from_agent(command(seq), 0.0)]
    assert len(sent) == frames.MAX_COMMAND_SPAN
    # All but the oldest are answered: further ones would push the oldest out of the device's memory.
    for one in sent[1:]:
        assert to_device(state.from_device(reply_to(one), 0.1)) == []
    assert len(to_device(state.from_device(reply_to(sent[0]), 0.2))) == frames.MAX_COMMAND_SPAN


def test_commands_that_wait_too_long_for_their_turn_are_never_sent():
    state = linked()
    for seq in range(20):
        state.from_agent(command(seq), 0.0)
    told = []
    for n in range(1, 9):
        told += state.tick(n * 0.25)
    assert statuses(told) == [(seq, Status.NO_ANSWER) for seq in range(20)]
    assert {a.frame.args[1] for a in to_device(told)} == set(range(frames.MAX_COMMAND_SPAN))


def test_more_commands_than_there_is_room_for_are_refused_at_once():
    state = linked()
    room = device.MAX_WAITING + frames.MAX_COMMAND_SPAN
    told = [a for seq in range(room + 1) for a in state.from_agent(command(seq), 0.0)]
    assert statuses(told) == [(room, Status.REFUSED)]


def test_a_command_that_the_links_number_makes_too_long_is_refused_as_bad():
    state = linked()
    frame = Frame(Kind.COMMAND, 1, Op.SET, (b"\xff" * 50,))
    frames.encode(frame)
    assert statuses(state.from_agent(frame, 0.0)) == [(1, Status.BAD_ARGS)]


def test_events_pass_to_the_agent_unchanged_and_its_replies_back():
    state = linked()
    event = Frame(Kind.EVENT, 5, Op.SAMPLE, (1, 3, b"x"))
    assert state.from_device(event, 0.0) == [ToAgent(event)]
    answer = Frame(Kind.REPLY, 5, Op.SAMPLE, (0,))
    assert state.from_agent(answer, 0.1) == [ToDevice(answer)]


def test_events_without_an_agent_are_dropped_and_counted():
    state = linked()
    state.agent_went()
    assert state.from_device(Frame(Kind.EVENT, 5, Op.SAMPLE, (1, 3, b"x")), 0.0) == []
    assert state.stats.events_without_agent == 1


def test_beats_pass_in_both_directions_and_are_never_made_here():
    state = linked()
    theirs = Frame(Kind.BEAT, 0, Op.ALIVE, (9, False, 0))
    ours = Frame(Kind.BEAT, 0, Op.ALIVE)
    assert state.from_device(theirs, 0.0) == [ToAgent(theirs)]
    assert state.from_agent(ours, 0.0) == [ToDevice(ours)]
    assert state.tick(60.0) == []


def test_a_device_that_started_again_is_greeted_again():
    state = linked()
    state.agent_went()
    assert state.from_device(Frame(Kind.BEAT, 0, Op.ALIVE, (9, False, 0)), 0.0) == []
    [hello] = state.from_device(Frame(Kind.BEAT, 0, Op.ALIVE, (0, False, 0)), 1.0)
    assert hello.frame.op == Op.HELLO
    assert state.from_device(Frame(Kind.BEAT, 0, Op.ALIVE, (1, False, 0)), 2.0) == []


def test_a_hello_nobody_heard_is_sent_again_when_the_device_beats():
    state = DeviceState(FIRST)
    state.link_up(0.0)
    for n in range(1, 9):
        state.tick(n * 0.25)
    assert state.next_tick_s is None
    [hello] = state.from_device(Frame(Kind.BEAT, 0, Op.ALIVE, (1, False, 0)), 60.0)
    assert hello.frame.op == Op.HELLO


def test_an_answer_to_another_operation_is_a_stray():
    state = linked()
    [sent] = state.from_agent(command(7), 0.0)
    assert state.from_device(Frame(Kind.REPLY, sent.frame.seq, Op.GET, (0,)), 0.1) == []
    assert state.stats.strays == 1


def test_what_comes_from_the_wrong_side_is_counted_and_dropped():
    state = linked()
    assert state.from_agent(Frame(Kind.EVENT, 1, Op.SAMPLE, (1, 1, b"")), 0.0) == []
    assert state.from_device(command(1), 0.0) == []
    assert state.stats.strays == 2


def test_link_numbers_go_round_without_becoming_short():
    state = DeviceState(frames.MAX_SEQ)
    [hello] = state.link_up(0.0)
    state.from_device(reply_to(hello), 0.0)
    state.agent_came()
    [sent] = state.from_agent(command(1), 0.0)
    assert (hello.frame.seq, sent.frame.seq) == (frames.MAX_SEQ, device.LOWEST_SEQ)


any_frame = st.builds(
    Frame,
    st.sampled_from(Kind),
    st.integers(0, 12) | st.integers(FIRST, FIRST + 12) | st.integers(0, frames.MAX_SEQ),
    st.sampled_from(Op) | st.integers(0, 255),
    st.lists(st.integers(0, 9) | st.text("ab", max_size=4) | st.none(), max_size=4).map(tuple),
)
steps = st.one_of(
    st.tuples(st.just("agent"), any_frame),
    st.tuples(st.just("device"), any_frame),
    st.tuples(st.sampled_from(["came", "went", "up", "tick"]), st.none()),
)


@given(st.lists(steps, max_size=60))
def test_no_frames_in_any_order_break_the_bridge_or_its_bounds(script):
    state, now_s = DeviceState(FIRST), 0.0
    for what, frame in script:
        now_s += 0.1
        match what:
            case "agent":
                actions = state.from_agent(frame, now_s)
            case "device":
                actions = state.from_device(frame, now_s)
            case "came":
                actions = state.agent_came() or []
            case "went":
                actions = state.agent_went() or []
            case "up":
                actions = state.link_up(now_s)
            case _:
                actions = state.tick(now_s)
        for action in actions:
            if not isinstance(action, Greeted):
                assert len(frames.encode(action.frame)) <= frames.MAX_WIRE_BYTES
        numbers = [pending.number for pending in state._in_flight.values()]
        assert not numbers or max(numbers) - min(numbers) < frames.MAX_COMMAND_SPAN
        assert len(state._waiting) <= device.MAX_WAITING + 1
        assert len(state._answered) <= device.REMEMBERED_REPLIES


class BadLine:
    """A bridge, an agent and a device on a line that loses frames, is slow, and keeps the order."""

    def __init__(self, seed: int, loss: float) -> None:
        self.random = Random(seed)  # noqa: S311 - a simulation that can be repeated
        self.loss = loss
        self.state = DeviceState(FIRST)
        self.firmware = Firmware("meter", [b"x"], 1.0, boot=1, now_s=0.0, limit=0)
        self.answers: list[Frame] = []
        self.effects: Counter[int] = Counter()
        self.down: deque[Frame] = deque()
        self.up: deque[Frame] = deque()
        self.now_s = 0.0
        self.state.agent_came()
        self.act(self.state.link_up(0.0))

    def act(self, actions) -> None:
        for action in actions:
            match action:
                case ToDevice(frame) if self.random.random() >= self.loss:
                    self.down.append(frame)
                case ToAgent(frame) if frame.kind is Kind.REPLY:
                    self.answers.append(frame)
                case Frame() if self.random.random() >= self.loss:
                    self.up.append(action)
                case Wrote("set", facts):
                    self.effects[facts["value"]] += 1

    def command(self, seq: int) -> None:
        self.act(self.state.from_agent(command(seq, 2, seq), self.now_s))

    def move(self) -> None:
        self.now_s += 0.05
        self.down.append(Frame(Kind.BEAT, 0, Op.ALIVE))
        while self.down and self.random.random() < 0.8:
            self.act(self.firmware.receive(self.down.popleft(), self.now_s))
        while self.up and self.random.random() < 0.8:
            self.act(self.state.from_device(self.up.popleft(), self.now_s))
        self.act(self.state.tick(self.now_s))
        self.act(self.firmware.tick(self.now_s))


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.floats(0, 0.5), st.integers(1, 40))
@example(seed=1, loss=0.3125, count=10)  # eight open ones were too many
def test_over_a_bad_line_no_command_is_done_twice_and_each_has_one_answer(seed, loss, count):
    line, sent = BadLine(seed, loss), 0
    while sent < count or line.state.next_tick_s is not None or line.down:
        if sent < count and line.random.random() < 0.7:
            line.command(sent)
            sent += 1
        line.move()
        if sent == count and line.state.next_tick_s is None:
            line.down = deque(frame for frame in line.down if frame.kind is not Kind.BEAT)
    assert sorted(answer.seq for answer in line.answers) == list(range(count))
    assert all(times == 1 for times in line.effects.values())
    done = {answer.seq for answer in line.answers if answer.args[0] == Status.OK}
    assert done <= set(line.effects)
