"""How good firmware behaves, as the simulated microcontroller runs it: pure, frames and time in, frames out.

Samples are numbered without a gap and repeated until they are answered; when the memory for unanswered
ones is full, sampling waits. Commands that were seen are answered from memory and not done again. Without
a beat from the agent for three seconds the display goes blank and commands are refused: the safe state.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from shoal_contract import frames
from shoal_contract.frames import Frame, Kind, Op, Scalar, Status

SAMPLE_CHANNEL = 1
DISPLAY_CHANNEL = 2
REPEAT_S = 0.5
BACKLOG = 4096
VERSION = "simulated 1.0"


@dataclass(frozen=True, slots=True)
class Wrote:
    """Something that happened on the device, for its log."""

    kind: str
    facts: dict[str, object]


Action = Frame | Wrote


@dataclass(slots=True)
class Firmware:
    """The state of one device.

    Args:
        samples: payloads, taken in rotation: sample k carries number k modulo their count.
        limit: how many samples to take at all; None: no end.
    """

    name: str
    samples: Sequence[bytes]
    rate_hz: float
    boot: int
    now_s: float
    limit: int | None = None
    display: Scalar = None
    safe: bool = False
    _next_seq: int = 0
    _sampling: bool = True
    _full: bool = False
    _backlog: deque[int] = field(default_factory=deque)
    _in_flight: OrderedDict[int, float] = field(default_factory=OrderedDict)
    _seen: OrderedDict[int, Frame] = field(default_factory=OrderedDict)
    _started_s: float = 0.0
    _next_sample_s: float = 0.0
    _next_beat_s: float = 0.0
    _heard_s: float = 0.0

    def __post_init__(self) -> None:
        self._started_s = self._heard_s = self.now_s
        self._next_sample_s = self._next_beat_s = self.now_s

    @property
    def unanswered(self) -> int:
        """How many samples wait for an answer."""
        return len(self._backlog) + len(self._in_flight)

    @property
    def next_tick_s(self) -> float:
        """When `tick` has something to do."""
        times = [self._next_beat_s]
        if not self.safe:
            times.append(self._heard_s + frames.SILENCE_S)
        if self._sampling:
            times.append(self._next_sample_s)
        times.extend(self._in_flight.values())
        return min(times)

    def stop_sampling(self) -> None:
        """Take no new samples."""
        self._sampling = False

    def tick(self, now_s: float) -> list[Action]:
        """Time has passed: sample, repeat, beat, and look whether the agent is still there."""
        actions: list[Action] = []
        while self._sampling and self._next_sample_s <= now_s:
            self._next_sample_s += 1 / self.rate_hz
            actions += self._sample()
        for seq, due_s in self._in_flight.items():
            if due_s <= now_s:
                self._in_flight[seq] = now_s + REPEAT_S
                actions.append(self._event(seq))
        actions += self._fill(now_s)
        if self._next_beat_s <= now_s:
            self._next_beat_s = now_s + frames.BEAT_INTERVAL_S
            uptime_s = int(now_s - self._started_s)
            actions.append(
                Frame(Kind.BEAT, 0, Op.ALIVE, (uptime_s, self.safe, min(self.unanswered, 0xFFFF)))
            )
        if not self.safe and now_s - self._heard_s >= frames.SILENCE_S:
            self.safe, self.display = True, None
            actions.append(Wrote("safe", {}))
        return actions

    def receive(self, frame: Frame, now_s: float) -> list[Action]:
        """A frame came."""
        match frame.kind:
            case Kind.BEAT:
                self._heard_s = now_s
                if not self.safe:
                    return []
                self.safe = False
                return [Wrote("unsafe", {})]
            case Kind.REPLY:
                return self._answered(frame, now_s)
            case Kind.COMMAND:
                return self._command(frame)
            case Kind.EVENT:
                return []

    def _sample(self) -> list[Action]:
        if self.limit is not None and self._next_seq >= self.limit:
            self._sampling = False
            return []
        if self.unanswered >= BACKLOG:
            if self._full:
                return []
            self._full = True
            return [Wrote("full", {"unanswered": self.unanswered})]
        self._full = False
        seq = self._next_seq
        self._next_seq += 1
        self._backlog.append(seq)
        return [Wrote("sample", {"seq": seq, "row": seq % len(self.samples)})]

    def _fill(self, now_s: float) -> list[Action]:
        actions: list[Action] = []
        while self._backlog and len(self._in_flight) < frames.REPEAT_MEMORY:
            seq = self._backlog.popleft()
            self._in_flight[seq] = now_s + REPEAT_S
            actions.append(self._event(seq))
        return actions

    def _event(self, seq: int) -> Frame:
        payload = self.samples[seq % len(self.samples)]
        return Frame(Kind.EVENT, seq, Op.SAMPLE, (SAMPLE_CHANNEL, self.boot, payload))

    def _answered(self, frame: Frame, now_s: float) -> list[Action]:
        if self._in_flight.pop(frame.seq, None) is None:
            return []
        status = frame.args[0] if frame.args else None
        wrote = Wrote("answered", {"seq": frame.seq, "status": status})
        return [wrote, *self._fill(now_s)]

    def _command(self, frame: Frame) -> list[Action]:
        if (earlier := self._seen.get(frame.seq)) is not None:
            return [earlier]
        status, values, wrote = self._do(frame)
        reply = Frame(Kind.REPLY, frame.seq, frame.op, (int(status), *values))
        self._seen[frame.seq] = reply
        if len(self._seen) > frames.REPEAT_MEMORY:
            self._seen.popitem(last=False)
        return [*wrote, reply]

    def _do(self, frame: Frame) -> tuple[Status, tuple[Scalar, ...], list[Action]]:
        match frame.op, frame.args:
            case Op.HELLO, ():
                return Status.OK, (self.name, VERSION, self.boot), []
            case Op.GET, (int(channel),) if channel == DISPLAY_CHANNEL:
                return Status.OK, (self.display,), []
            case Op.SET, (int(channel), value, *context) if channel == DISPLAY_CHANNEL:
                if self.safe:
                    return Status.REFUSED, (), []
                self.display = value
                facts = {
                    "channel": channel,
                    "value": _readable(value),
                    "context": [_readable(item) for item in context],
                }
                return Status.OK, (), [Wrote("set", facts)]
            case ((Op.HELLO | Op.GET | Op.SET), _):
                return Status.BAD_ARGS, (), []
        return Status.UNKNOWN_OP, (), []


def _readable(value: Scalar) -> object:
    return value.hex() if isinstance(value, bytes) else value
