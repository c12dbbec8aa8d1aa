"""What the bridge does with the frames of one device: pure, frames and time in, frames out.

Commands of the agent get numbers of the link's own and are repeated until the device replies; events of
the device and the agent's replies to them pass unchanged. Nothing is stored for later: an event that no
agent is there to take is dropped unanswered, and the device sends it again.
"""

from collections import deque
from dataclasses import dataclass, field

from shoal_contract import frames
from shoal_contract.frames import Frame, Kind, Op, Status

REPEAT_S = 0.25
MAX_SENDS = 8
MAX_WAITING = 64


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
class _Pending:
    """A command on its way; `agent_seq` is None for the bridge's own HELLO."""

    frame: Frame
    agent_seq: int | None
    sends: int
    next_send_s: float


@dataclass(slots=True)
class DeviceStats:
    """Counters since the start."""

    commands: int = 0
    repeats: int = 0
    unanswered: int = 0
    events: int = 0
    events_without_agent: int = 0
    strays: int = 0


@dataclass(slots=True)
class DeviceState:
    """One device's side of the bridge.

    Args:
        first_seq: where the link's own numbers begin: drawn at random, so that the first commands of a
            bridge that was restarted are not taken for repeats of the last ones.
    """

    first_seq: int
    agent_is_there: bool = False
    stats: DeviceStats = field(default_factory=DeviceStats)
    _seq: int = 0
    _in_flight: dict[int, _Pending] = field(default_factory=dict)
    _waiting: deque[tuple[Frame, int | None]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._seq = self.first_seq

    def link_up(self, now_s: float) -> list[Action]:
        """The line to the device is open: ask who is there."""
        return self._command(Frame(Kind.COMMAND, 0, Op.HELLO), None, now_s)

    def agent_came(self) -> None:
        """Another agent is there; answers to the one before would have the wrong numbers."""
        self.agent_is_there = True
        self._forget_agent()

    def agent_went(self) -> None:
        """The agent's connection is gone. What it began is still brought to its end."""
        self.agent_is_there = False
        self._forget_agent()

    def from_agent(self, frame: Frame, now_s: float) -> list[Action]:
        """A frame of the agent's."""
        match frame.kind:
            case Kind.COMMAND:
                self.stats.commands += 1
                return self._command(frame, frame.seq, now_s)
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
                return [ToAgent(frame)] if self.agent_is_there else []
            case Kind.COMMAND:
                self.stats.strays += 1
                return []

    def tick(self, now_s: float) -> list[Action]:
        """Time has passed: repeat what is not answered, give up what was repeated often enough."""
        actions: list[Action] = []
        for seq, pending in list(self._in_flight.items()):
            if pending.next_send_s > now_s:
                continue
            if pending.sends >= MAX_SENDS:
                del self._in_flight[seq]
                self.stats.unanswered += 1
                if pending.agent_seq is not None:
                    reply = Frame(
                        Kind.REPLY, pending.agent_seq, pending.frame.op, (int(Status.NO_ANSWER),)
                    )
                    actions.append(ToAgent(reply))
            else:
                pending.sends += 1
                pending.next_send_s = now_s + REPEAT_S
                self.stats.repeats += 1
                actions.append(ToDevice(pending.frame))
        return actions + self._fill(now_s)

    @property
    def next_tick_s(self) -> float | None:
        """When `tick` has something to do; None: not before the next frame."""
        return min((pending.next_send_s for pending in self._in_flight.values()), default=None)

    def _command(self, frame: Frame, agent_seq: int | None, now_s: float) -> list[Action]:
        if len(self._waiting) >= MAX_WAITING:
            if agent_seq is None:
                return []
            return [ToAgent(Frame(Kind.REPLY, agent_seq, frame.op, (int(Status.NO_ANSWER),)))]
        self._waiting.append((frame, agent_seq))
        return self._fill(now_s)

    def _fill(self, now_s: float) -> list[Action]:
        actions: list[Action] = []
        while self._waiting and self._next_is_remembered():
            frame, agent_seq = self._waiting.popleft()
            self._seq = (self._seq + 1) & frames.MAX_SEQ
            ours = Frame(Kind.COMMAND, self._seq, frame.op, frame.args)
            self._in_flight[self._seq] = _Pending(ours, agent_seq, 1, now_s + REPEAT_S)
            actions.append(ToDevice(ours))
        return actions

    def _next_is_remembered(self) -> bool:
        """Whether the oldest unanswered command stays among the last that the device remembers.

        Else a repeat of it could be done twice.
        """
        oldest = next(iter(self._in_flight), None)
        return oldest is None or (self._seq + 1 - oldest) & frames.MAX_SEQ < frames.REPEAT_MEMORY

    def _replied(self, frame: Frame, now_s: float) -> list[Action]:
        pending = self._in_flight.pop(frame.seq, None)
        if pending is None:
            self.stats.strays += 1
            return []
        actions: list[Action] = []
        if pending.agent_seq is not None:
            actions.append(ToAgent(Frame(Kind.REPLY, pending.agent_seq, frame.op, frame.args)))
        elif pending.frame.op == Op.HELLO:
            match frame.args:
                case (Status.OK, str(name), str(firmware), int(boot)):
                    actions.append(Greeted(name, firmware, boot))
        return actions + self._fill(now_s)

    def _forget_agent(self) -> None:
        """Finish what is on the line, for nobody; drop what has not left."""
        for pending in self._in_flight.values():
            pending.agent_seq = None
        self._waiting = deque(entry for entry in self._waiting if entry[1] is None)
