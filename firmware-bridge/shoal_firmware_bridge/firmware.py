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
MAX_PAYLOAD_BYTES = 42
MAX_NAME_BYTES = 24
MAX_VALUE_BYTES = 32
"""What leaves room for the rest of a frame at its longest."""

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
        name: at most MAX_NAME_BYTES.
        samples: payloads of at most MAX_PAYLOAD_BYTES, taken in rotation: sample k carries number k modulo
            their count.
        limit: how many samples to take at all; None: no end.
        backlog: how many unanswered samples there is memory for.

    Attributes:
        missed: samples that were due while the memory was full; they have no seq.
        repeated_commands: commands answered from memory.
    """

    name: str
    samples: Sequence[bytes]
    rate_hz: float
    boot: int
    now_s: float
    limit: int | None = None
    backlog: int = BACKLOG
    repeat_s: float = REPEAT_S
    silence_s: float = frames.SILENCE_S
    display: Scalar = None
    safe: bool = False
    missed: int = 0
    repeated_commands: int = 0
    _due: int = 0
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
            times.append(self._heard_s + self.silence_s)
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
            self._due += 1
            self._next_sample_s = self._started_s + self._due / self.rate_hz
            actions += self._sample()
        for seq, due_s in self._in_flight.items():
            if due_s <= now_s:
                self._in_flight[seq] = now_s + self.repeat_s
                actions.append(self._event(seq))
        actions += self._fill(now_s)
        if self._next_beat_s <= now_s:
            self._next_beat_s = now_s + frames.BEAT_INTERVAL_S
            uptime_s = int(now_s - self._started_s)
            actions.append(
                Frame(Kind.BEAT, 0, Op.ALIVE, (uptime_s, self.safe, min(self.unanswered, 0xFFFF)))
            )
        if not self.safe and now_s - self._heard_s >= self.silence_s:
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
        actions: list[Action] = []
        if self.unanswered >= self.backlog:
            self.missed += 1
            if not self._full:
                self._full = True
                actions.append(Wrote("full", {"unanswered": self.unanswered}))
            return actions
        if self._full:
            self._full = False
            actions.append(Wrote("room", {"missed": self.missed}))
        seq = self._next_seq
        self._next_seq += 1
        self._backlog.append(seq)
        actions.append(Wrote("sample", {"seq": seq, "row": seq % len(self.samples)}))
        return actions

    def _fill(self, now_s: float) -> list[Action]:
        actions: list[Action] = []
        while self._backlog and self._next_is_remembered():
            seq = self._backlog.popleft()
            self._in_flight[seq] = now_s + self.repeat_s
            actions.append(self._event(seq))
        return actions

    def _next_is_remembered(self) -> bool:
        """Whether the oldest unanswered sample stays among the last that the agent remembers."""
        oldest = next(iter(self._in_flight), None)
        return oldest is None or self._backlog[0] - oldest < frames.MAX_EVENT_SPAN

    def _event(self, seq: int) -> Frame:
        payload = self.samples[seq % len(self.samples)]
        return Frame(Kind.EVENT, seq, Op.SAMPLE, (SAMPLE_CHANNEL, self.boot, payload))

    def _answered(self, frame: Frame, now_s: float) -> list[Action]:
        if len(frame.args) > 1 and frame.args[1] != self.boot:
            # An answer that was on its way while we restarted: to another sample of that number.
            return []
        if self._in_flight.pop(frame.seq, None) is None:
            return []
        status = frame.args[0] if frame.args else None
        wrote = Wrote("answered", {"seq": frame.seq, "status": status})
        return [wrote, *self._fill(now_s)]

    def _command(self, frame: Frame) -> list[Action]:
        if (earlier := self._seen.get(frame.seq)) is not None:
            self.repeated_commands += 1
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
                if _size_bytes(value) > MAX_VALUE_BYTES:
                    return Status.BAD_ARGS, (), []
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


def _size_bytes(value: Scalar) -> int:
    match value:
        case str():
            return len(value.encode())
        case bytes():
            return len(value)
    return 0  # a number always fits


def _readable(value: Scalar) -> object:
    return value.hex() if isinstance(value, bytes) else value
