"""Every message on the bus and between peers, as CBOR arrays `[kind, fields...]`.

Rules that keep old and new versions talking: a kind's number is for ever, new fields only at the end
and with a default, extra fields at the end are ignored, an unknown kind raises UnknownKindError.
Golden bytes under tests/ pin every message. Times are Unix milliseconds.
"""

from enum import IntEnum
from typing import Annotated, Any, Final, TypeVar, get_args

import msgspec

from shoal_contract import cbor
from shoal_contract.errors import DecodeError, EncodeError, UnknownKindError

T = TypeVar("T")

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Text = Annotated[str, msgspec.Meta(max_length=1024)]
Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
CommandId = Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]
Millis = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]
Amount = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
Args = dict[Name, Any]

CHUNK_BYTES: Final = 64 * 1024
CHUNK_DIGEST_BYTES: Final = 16
"""Each chunk is checked by this much of its sha256 before it is written to the disk."""

MAX_MESSAGE_BYTES: Final = 96 * 1024
MAX_OPERATOR_BYTES: Final = 128
"""Of the name of an operator, or of the domain that it is of."""
MAX_CHUNKS: Final = 8192


class State(IntEnum):
    """Where a command stands. The last five are final."""

    ACCEPTED = 1
    RUNNING = 2
    SUCCEEDED = 3
    FAILED = 4
    REFUSED = 5
    EXPIRED = 6
    CANCELLED = 7

    @property
    def is_final(self) -> bool:
        """No further update will come."""
        return self >= State.SUCCEEDED


class CancelAnswer(IntEnum):
    """What became of a request to cancel."""

    CANCELLED = 1
    TOO_LATE = 2
    REFUSED = 3


class Phase(IntEnum):
    """Where a node stands with a model that it was asked to run."""

    FETCHING = 1
    BUILDING = 2
    VERIFYING = 3
    SERVING = 4
    FAILED = 5


class _Part(msgspec.Struct, array_like=True, frozen=True):
    """A piece of a message: an array without a kind."""


# ------------------------------------------------------------------ commands (c and r topics)
class Command(_Part, frozen=True, tag=1):
    """Do `op`. Valid until expires_ms; a higher priority runs first."""

    id: CommandId
    op: Name
    args: Args
    issued_ms: Millis
    expires_ms: Millis
    priority: Annotated[int, msgspec.Meta(ge=0, le=9)] = 4


class Cancel(_Part, frozen=True, tag=2):
    """Stop the command with this id, if it can still be stopped."""

    id: CommandId


class CommandUpdate(_Part, frozen=True, tag=3):
    """A command's new state; `result` only with SUCCEEDED, `reason` with every other final state."""

    id: CommandId
    state: State
    at_ms: Millis
    reason: Text = ""
    result: Any = None
    progress: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0


class Cancelled(_Part, frozen=True, tag=4):
    """The three-way answer to Cancel."""

    id: CommandId
    answer: CancelAnswer
    at_ms: Millis
    reason: Text = ""


# ------------------------------------------------------------------ presence and states
class Presence(_Part, frozen=True, tag=5):
    """Whether a node is connected; `boot` tells one run of the agent from the next."""

    online: bool
    boot: Annotated[bytes, msgspec.Meta(min_length=4, max_length=4)]
    since_ms: Millis


class ModelState(_Part, frozen=True):
    """What a node makes of one model. `release` is what serves now (empty: nothing)."""

    model: Name
    release: Annotated[bytes, msgspec.Meta(max_length=32)]
    version: Text
    target: Annotated[bytes, msgspec.Meta(max_length=32)]
    phase: Phase
    reason: Text = ""
    fetched_bytes: Size = 0
    model_file: Annotated[bytes, msgspec.Meta(max_length=32)] = b""
    """sha256 of the model file that serves: the base a delta can start from."""
    residence: Text = ""
    """Of what serves: "serving" (in memory), "evicted" (loaded again when it is asked) or "broken"."""
    resident_bytes: Amount = 0
    """What it took in its trial on this board when it was loaded; `peak_bytes`: at most, while it was tried."""
    peak_bytes: Amount = 0
    p95_us: Amount = 0
    """How long one input took in the trial."""


class Hardware(_Part, frozen=True):
    """What the board is and how it feels. Unknown numbers are None."""

    model: Text
    os: Text
    machine: Text
    cpus: int
    memory_bytes: int | None = None
    disk_free_bytes: int | None = None
    temperature_c: float | None = None
    throttled: bool | None = None
    cpu_flags: list[Text] = []


class PipelineState(_Part, frozen=True):
    """What a node makes of one pipeline.

    `reason`: what stands in its way; with `running` an older one runs, or the new one waits for something.
    """

    stream: Text
    from_fleet: bool
    running: bool
    reason: Text = ""


class Reported(_Part, frozen=True, tag=6):
    """What a node is and runs: its retained state. `pipelines_version`: the newest that it followed."""

    version: Text
    boot: bytes
    at_ms: Millis
    hardware: Hardware
    models: list[ModelState]
    devices: list[Text]
    wanted_revision: int = 0
    role: Text = "node"
    peers: list[Text] = []
    pipelines: list[PipelineState] = []
    pipelines_version: Millis = 0


class BlobRef(_Part, frozen=True):
    """A content-addressed blob on the broker, cut into chunks of `chunk_bytes` (the last shorter).

    `chunk_digests`: the first 16 bytes of each chunk's sha256, joined.
    """

    digest: Digest
    size_bytes: Size
    chunk_bytes: Annotated[int, msgspec.Meta(ge=1024, le=96 * 1024)]
    chunk_digests: bytes


class DeltaOffer(_Part, frozen=True):
    """The delta `blob` makes the file `target` from the file `base` (both by sha256)."""

    base: Digest
    target: Digest
    blob: BlobRef


class ModelWanted(_Part, frozen=True):
    """The release of one model that a node is to run. `manifest` is the release's own blob."""

    model: Name
    release: Digest
    manifest: BlobRef
    files: list[BlobRef]
    deltas: list[DeltaOffer] = []


class Wanted(_Part, frozen=True, tag=7):
    """Everything a node is to run: a model that is not listed is to be removed.

    `revision` grows: what is older than the one that holds is refused where signatures are asked for.
    """

    revision: Annotated[int, msgspec.Meta(ge=0)]
    issued_ms: Millis
    models: list[ModelWanted]
    groups: list[Name] = []
    """The groups whose commands are for this node, beside `topics.EVERYBODY`."""
    fleet_nodes: Annotated[int, msgspec.Meta(ge=0)] = 0
    """How many nodes the fleet had: so many come back at once when the broker does."""
    pipelines: bytes = b""
    """A `Pipelines`; empty: there are none. Controllers before decision 0039 signed it by itself."""


class PipelineWanted(_Part, frozen=True):
    """A pipeline that a node is to run: the plain values of its `shoal_contract.pipelines.PipelineTable`."""

    stream: Name
    table: Args


class Pipelines(_Part, frozen=True, tag=17):
    """All pipelines that the fleet wants on a node, beside the board's own. The newest version holds."""

    version: Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]
    issued_ms: Millis
    pipelines: Annotated[list[PipelineWanted], msgspec.Meta(max_length=64)]


class ChunksMissing(_Part, frozen=True, tag=8):
    """These chunks did not come or were damaged: please publish them again."""

    blob: Digest
    indexes: list[int]


# ------------------------------------------------------------------ telemetry
class Reading(_Part, frozen=True, tag=9):
    """One inference result that a pipeline drew from a device sample.

    (device, boot, seq) names the sample for ever; `by` is the node that ran the model.
    """

    device: Name
    boot: int
    seq: int
    label: Text
    confidence: float
    release: Annotated[bytes, msgspec.Meta(max_length=32)]
    by: Name
    at_ms: Millis
    latency_us: int = 0


# ------------------------------------------------------------------ inference requests
class TensorPart(_Part, frozen=True):
    """A tensor by name: elements in C order, little-endian, as many as type and shape say.

    In requests `dtype` may be "text", with shape [n]: UTF-8, each text behind its length in four bytes.
    """

    name: Name
    dtype: Name
    shape: Annotated[
        list[Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]], msgspec.Meta(max_length=8)
    ]
    data: bytes


class InferRequest(_Part, frozen=True, tag=10):
    """Run `model` on `items`, each encoded as the release's input says, or on `tensors`. `hops` stops loops.

    `outputs`: those wanted of a model that is given tensors; none: all.
    """

    id: CommandId
    model: Name
    items: list[bytes]
    deadline_ms: Annotated[int, msgspec.Meta(ge=1, le=60_000)] = 1000
    hops: Annotated[int, msgspec.Meta(ge=0, le=4)] = 0
    tensors: Annotated[list[TensorPart], msgspec.Meta(max_length=64)] = []
    outputs: Annotated[list[Name], msgspec.Meta(max_length=64)] = []


class Answer(_Part, frozen=True):
    """The decoded output for one item."""

    label: Text
    confidence: float


class InferReply(_Part, frozen=True, tag=11):
    """Either answers (one an item, in order), or output tensors, or a reason why there are none."""

    id: CommandId
    by: Name
    release: Annotated[bytes, msgspec.Meta(max_length=32)]
    answers: list[Answer]
    reason: Text = ""
    tensors: list[TensorPart] = []


class ChunkRequest(_Part, frozen=True, tag=18):
    """Between neighbours: so many bytes of a blob, beginning at an offset."""

    id: CommandId
    blob: Digest
    offset_bytes: Size
    size_bytes: Annotated[int, msgspec.Meta(ge=1, le=96 * 1024)]


class ChunkReply(_Part, frozen=True, tag=19):
    """Either the bytes that were asked for, or a reason why there are none."""

    id: CommandId
    data: bytes
    reason: Text = ""


class FileEntry(_Part, frozen=True):
    """One file of a release."""

    name: Name
    size_bytes: Size
    digest: Digest


class OperatorSet(_Part, frozen=True):
    """Operators of one domain ("": ONNX's own) in one version of its set."""

    domain: Annotated[str, msgspec.Meta(max_length=MAX_OPERATOR_BYTES)]
    version: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
    operators: list[Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_OPERATOR_BYTES)]]


class Manifest(_Part, frozen=True, tag=12):
    """What a release is made of. The sha256 of these encoded bytes is the release's id.

    `operator_sets`: all that its model uses; empty: it does not say (releases made before there was this list).
    """

    name: Name
    version: Text
    files: list[FileEntry]
    operator_sets: Annotated[list[OperatorSet], msgspec.Meta(max_length=64)] = []


class Receipt(_Part, frozen=True, tag=13):
    """These messages of yours are committed here: you need not keep them, nor send them again.

    `names`: what `receipts.name` makes of each one, joined.
    """

    names: bytes


class Mandate(_Part, frozen=True):
    """What the holder of an Ed25519 key may have nodes do: the meaning is `mandates`' business.

    `ops`, `groups`: names, "*" for all, "device.*" for all that begin so. `until_ms` 0: for good.
    """

    key: Digest
    name: Name
    ops: Annotated[list[Name], msgspec.Meta(max_length=64)]
    groups: Annotated[list[Name], msgspec.Meta(max_length=64)]
    may_delegate: bool = False
    until_ms: Millis = 0


class Policy(_Part, frozen=True, tag=14):
    """Whom one signer lets command a node, whom no longer, and what may run there at all.

    The newest `version` of a signer replaces its earlier ones as a whole. `approved` and `denied` are
    operations, as in `Mandate.ops`.
    """

    version: Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]
    issued_ms: Millis
    mandates: Annotated[list[Mandate], msgspec.Meta(max_length=64)] = []
    revoked: Annotated[list[Digest], msgspec.Meta(max_length=256)] = []
    approved: Annotated[list[Name], msgspec.Meta(max_length=64)] = msgspec.field(
        default_factory=lambda: ["*"]
    )
    denied: Annotated[list[Name], msgspec.Meta(max_length=64)] = []


Message = (
    Command
    | Cancel
    | CommandUpdate
    | Cancelled
    | Presence
    | Reported
    | Wanted
    | ChunksMissing
    | Reading
    | InferRequest
    | InferReply
    | Manifest
    | Receipt
    | Policy
    | Pipelines
    | ChunkRequest
    | ChunkReply
)

_BY_KIND: Final[dict[int, type[Message]]] = {
    int(str(kind.__struct_config__.tag)): kind for kind in get_args(Message)
}
KINDS: Final[frozenset[int]] = frozenset(_BY_KIND)


def encode(message: Message) -> bytes:
    """The message's bytes.

    Raises:
        EncodeError: a value that CBOR's plain types cannot carry, or more than 96 KiB.
    """
    try:
        data = cbor.encode(msgspec.to_builtins(message, builtin_types=(bytes,)))
    except (TypeError, ValueError) as exc:
        raise EncodeError(f"{type(message).__name__}: {exc}") from exc
    if len(data) > MAX_MESSAGE_BYTES:
        raise EncodeError(
            f"{type(message).__name__} of {len(data)} bytes; at most {MAX_MESSAGE_BYTES} may travel"
        )
    return data


def decode(data: bytes, *, max_bytes: int = MAX_MESSAGE_BYTES) -> Message:
    """The message in these bytes.

    Raises:
        UnknownKindError: well formed, of a kind that a newer version sends.
        DecodeError: anything else.
    """
    items = cbor.decode(data, max_bytes=max_bytes)
    if not isinstance(items, list) or not items or type(items[0]) is not int:
        raise DecodeError("not an array that starts with a kind")
    kind = _BY_KIND.get(items[0])
    if kind is None:
        raise UnknownKindError(items[0])
    try:
        # Not the union: msgspec works out anew at every call what that is, a struct only once.
        return msgspec.convert(items, kind, builtin_types=(bytes,))
    except msgspec.ValidationError as exc:
        raise DecodeError(f"kind {items[0]}: {exc}") from exc


def decode_as(data: bytes, kind: type[T], *, max_bytes: int = MAX_MESSAGE_BYTES) -> T:
    """The same where only one kind may come.

    Raises:
        DecodeError: also when it is a message of another kind.
    """
    message = decode(data, max_bytes=max_bytes)
    if not isinstance(message, kind):
        raise DecodeError(f"a {type(message).__name__} where a {kind.__name__} belongs")
    return message
