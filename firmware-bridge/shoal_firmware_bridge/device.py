"""What the bridge does with the frames of one device: pure, frames and time in, frames out.

Commands of the agent get numbers of the link's own and are repeated until the device replies; events of
the device and the agent's replies to them pass unchanged. Nothing is stored for later: an event that no
agent is there to take is dropped unanswered, and the device sends it again.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from shoal_contract import frames
from shoal_contract.errors import EncodeError
from shoal_contract.frames import Frame, Kind, Op, Status

MAX_WAITING = 64
REMEMBERED_REPLIES = 64
LOWEST_SEQ = 1 << 16
"""Link seqs start above it: five bytes each, so a reply never grows when the agent's seq replaces it."""

HIGHEST_FIRST_SEQ = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class Timing:
    """How patient the bridge is with a device."""

    repeat_s: float = 0.25
    max_sends: int = 8

    @property
    def patience_s(self) -> float:
        """How long a command is tried; also how long it may wait for its turn."""
        return self.repeat_s * self.max_sends


@dataclass(frozen=True, slots=True)
class ToDevice:
    """Send this frame to the device."""

    frame: Frame


@dataclass(frozen=True, slots=True)
class ToAgent:
    """Send this frame to the agent."""

    frame: Frame


@dataclass(frozen=True, slots=True)
class Greeted:
    """The device has said who it is."""

    name: str
    firmware: str
    boot: int


Action = ToDevice | ToAgent | Greeted


@dataclass(slots=True)
class DeviceStats:
    """Counters since the start."""

    commands: int = 0
    repeats: int = 0
    unanswered: int = 0
    refused: int = 0
    events: int = 0
    events_without_agent: int = 0
    strays: int = 0


@dataclass(slots=True)
class DeviceState:
    """One device's side of the bridge.

    Args:
        first_seq: where the link's own numbers begin, LOWEST_SEQ to HIGHEST_FIRST_SEQ: drawn at random, so
            that the first commands of a bridge that was restarted are not taken for repeats of its last.
        timing: when to repeat, when to give up.
    """

    first_seq: int
    timing: Timing = field(default_factory=Timing)
    agent_is_there: bool = False
    stats: DeviceStats = field(default_factory=DeviceStats)
    _sent: int = 0
    _in_flight: dict[int, "_Pending"] = field(default_factory=dict)
    _waiting: deque["_Waiting"] = field(default_factory=deque)
    _answered: OrderedDict[int, Frame] = field(default_factory=OrderedDict)
    _asking: bool = False
    _greeted: bool = False
    _uptime_s: int = 0

    def link_up(self, now_s: float) -> list[Action]:
        """The line to the device is open: ask who is there."""
        self._greeted = False
        return self._ask(now_s)

    def agent_came(self) -> None:
        """Another agent is there; answers to the one before would have the wrong numbers."""
        self._forget_agent()
        self.agent_is_there = True

    def agent_went(self) -> None:
        """The agent's connection is gone. What is on the line is still brought to its end."""
        self._forget_agent()
        self.agent_is_there = False

    def from_agent(self, frame: Frame, now_s: float) -> list[Action]:
        """A frame of the agent's."""
        match frame.kind:
            case Kind.COMMAND:
                return self._commanded(frame, now_s)
            case Kind.REPLY | Kind.BEAT:
                return [ToDevice(frame)]
            case Kind.EVENT:
                self.stats.strays += 1
                return []

    def from_device(self, frame: Frame, now_s: float) -> list[Action]:
        """A frame of the device's."""
        match frame.kind:
            case Kind.REPLY:
                return self._replied(frame, now_s)
            case Kind.EVENT:
                self.stats.events += 1
                if not self.agent_is_there:
                    self.stats.events_without_agent += 1
                    return []
                return [ToAgent(frame)]
            case Kind.BEAT:
                passed: list[Action] = [ToAgent(frame)] if self.agent_is_there else []
                return passed + self._alive(frame, now_s)
            case Kind.COMMAND:
                self.stats.strays += 1
                return []

    def tick(self, now_s: float) -> list[Action]:
        """Time has passed: repeat what is not answered, give up what was tried or waited too long."""
        actions: list[Action] = []
        for seq, pending in list(self._in_flight.items()):
            if pending.next_send_s > now_s:
                continue
            if pending.sends >= self.timing.max_sends:
                del self._in_flight[seq]
                actions += self._give_up(pending.frame, pending.agent_seq)
            else:
                pending.sends += 1
                pending.next_send_s = now_s + self.timing.repeat_s
                self.stats.repeats += 1
                actions.append(ToDevice(pending.frame))
        while self._waiting and self._waiting[0].give_up_s <= now_s:
            waiting = self._waiting.popleft()
            actions += self._give_up(waiting.frame, waiting.agent_seq)
        return actions + self._fill(now_s)

    @property
    def next_tick_s(self) -> float | None:
        """When `tick` has something to do; None: not before the next frame."""
        times = [pending.next_send_s for pending in self._in_flight.values()]
        if self._waiting:
            times.append(self._waiting[0].give_up_s)
        return min(times, default=None)

    # ------------------------------------------------------------- commands
    def _commanded(self, frame: Frame, now_s: float) -> list[Action]:
        if (reply := self._answered.get(frame.seq)) is not None:
            return [ToAgent(reply)]
        if self._is_under_way(frame.seq):
            return []
        self.stats.commands += 1
        if not _fits_the_link(frame):
            return self._answer(frame.seq, frame.op, Status.BAD_ARGS)
        if len(self._waiting) >= MAX_WAITING:
            # Not remembered: when the agent repeats it there may be room.
            self.stats.refused += 1
            return [ToAgent(_status_reply(frame.seq, frame.op, Status.REFUSED))]
        return self._send(frame, frame.seq, now_s)

    def _is_under_way(self, agent_seq: int) -> bool:
        return any(one.agent_seq == agent_seq for one in self._in_flight.values()) or any(
            one.agent_seq == agent_seq for one in self._waiting
        )

    def _send(self, frame: Frame, agent_seq: int | None, now_s: float) -> list[Action]:
        self._waiting.append(_Waiting(frame, agent_seq, now_s + self.timing.patience_s))
        return self._fill(now_s)

    def _fill(self, now_s: float) -> list[Action]:
        actions: list[Action] = []
        while self._waiting and self._next_is_remembered():
            waiting = self._waiting.popleft()
            seq = LOWEST_SEQ + (self.first_seq - LOWEST_SEQ + self._sent) % _SEQS
            frame = Frame(Kind.COMMAND, seq, waiting.frame.op, waiting.frame.args)
            self._in_flight[seq] = _Pending(
                frame, waiting.agent_seq, self._sent, 1, now_s + self.timing.repeat_s
            )
            self._sent += 1
            actions.append(ToDevice(frame))
        return actions

    def _next_is_remembered(self) -> bool:
        """Whether every unanswered command stays in the device's memory; else a repeat might be done twice."""
        oldest = next(iter(self._in_flight.values()), None)
        return oldest is None or self._sent - oldest.number < frames.MAX_COMMAND_SPAN

    def _replied(self, frame: Frame, now_s: float) -> list[Action]:
        pending = self._in_flight.get(frame.seq)
        if pending is None or pending.frame.op != frame.op:
            self.stats.strays += 1
            return []
        del self._in_flight[frame.seq]
        actions: list[Action] = []
        if pending.agent_seq is not None:
            actions += self._remember(Frame(Kind.REPLY, pending.agent_seq, frame.op, frame.args))
        if pending.frame.op == Op.HELLO:
            self._asking, self._greeted = False, True
            match frame.args:
                case (Status.OK, str(name), str(firmware), int(boot)):
                    actions.append(Greeted(name, firmware, boot))
        return actions + self._fill(now_s)

    def _give_up(self, frame: Frame, agent_seq: int | None) -> list[Action]:
        self.stats.unanswered += 1
        if frame.op == Op.HELLO:
            self._asking = False
        return [] if agent_seq is None else self._answer(agent_seq, frame.op, Status.NO_ANSWER)

    def _answer(self, agent_seq: int, op: int, status: Status) -> list[Action]:
        return self._remember(_status_reply(agent_seq, op, status))

    def _remember(self, reply: Frame) -> list[Action]:
        self._answered[reply.seq] = reply
        if len(self._answered) > REMEMBERED_REPLIES:
            self._answered.popitem(last=False)
        return [ToAgent(reply)]

    def _forget_agent(self) -> None:
        """Finish what is on the line, for nobody; drop what has not left."""
        for pending in self._in_flight.values():
            pending.agent_seq = None
        self._waiting = deque(waiting for waiting in self._waiting if waiting.agent_seq is None)
        self._answered.clear()

    # ------------------------------------------------------------- who is there
    def _alive(self, beat: Frame, now_s: float) -> list[Action]:
        """Ask again after a start of the device that the line did not show, or an unheard HELLO."""
        match beat.args:
            case (int(uptime_s), *_):
                if uptime_s < self._uptime_s:
                    self._greeted = False
                self._uptime_s = uptime_s
        return [] if self._greeted else self._ask(now_s)

    def _ask(self, now_s: float) -> list[Action]:
        if self._asking:
            return []
        self._asking = True
        return self._send(Frame(Kind.COMMAND, 0, Op.HELLO), None, now_s)


_SEQS = frames.MAX_SEQ + 1 - LOWEST_SEQ


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A command that has not left; `agent_seq` is None for the bridge's own HELLO."""

    frame: Frame
    agent_seq: int | None
    give_up_s: float


@dataclass(slots=True)
class _Pending:
    """A command on the line; `agent_seq` is None when nobody waits for the answer."""

    frame: Frame
    agent_seq: int | None
    number: int
    sends: int
    next_send_s: float


def _status_reply(seq: int, op: int, status: Status) -> Frame:
    return Frame(Kind.REPLY, seq, op, (int(status),))


def _fits_the_link(command: Frame) -> bool:
    """Whether it still fits in a frame with a seq of the link's, which is up to four bytes longer."""
    try:
        frames.encode(Frame(Kind.COMMAND, frames.MAX_SEQ, command.op, command.args))
    except EncodeError:
        return False
    return True
