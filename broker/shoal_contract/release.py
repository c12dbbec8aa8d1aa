"""A model release: `release.toml` (what the model is) and its manifest (what the files are).

A release says either what one item is and how the output is read ([input], [output]: what devices send), or which
tensors go in and come out ([[inputs]], [[outputs]]). A release directory holds release.toml, the model file and the golden file. The manifest lists them
by sha256; its own sha256 is the release's id.
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Literal

import msgspec

from shoal_contract import messages, toml
from shoal_contract.errors import DecodeError, FileFormatError
from shoal_contract.images import ELEMENTS, ImageTable, PreparationError, preparation
from shoal_contract.messages import OperatorSet
from shoal_contract.requirements import parse_requirements
from shoal_contract.texts import TextTable, misfit

SPEC_FILE: Final = "release.toml"
ONNX_DTYPES: Final = {
    "tensor(bool)": "bool",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(uint16)": "uint16",
    "tensor(int16)": "int16",
    "tensor(float16)": "float16",
    "tensor(uint32)": "uint32",
    "tensor(int32)": "int32",
    "tensor(float)": "float32",
    "tensor(uint64)": "uint64",
    "tensor(int64)": "int64",
    "tensor(double)": "float64",
}
"""ONNX Runtime's names of types -> numpy's; others (text, sequences) are not served."""
MAX_FILE_BYTES: Final = 512 * 1024 * 1024
MAX_TENSORS: Final = 64

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_VERSION = re.compile(r"(0|[1-9]\d{0,5})\.(0|[1-9]\d{0,5})\.(0|[1-9]\d{0,5})")

Shape = Annotated[
    list[Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]], msgspec.Meta(min_length=1, max_length=6)
]
Encoding = Literal["u5", "u8", "f32"]
FREE: Final = -1
"""A dimension that differs from request to request, such as the length of a text."""

Dtype = Literal[
    "bool", "uint8", "int8", "uint16", "int16", "float16",
    "uint32", "int32", "float32", "uint64", "int64", "float64",
]  # fmt: skip
FreeShape = Annotated[
    list[Annotated[int, msgspec.Meta(ge=-1, le=1 << 20)]], msgspec.Meta(max_length=7)
]


class ModelTable(toml.Table, frozen=True, kw_only=True):
    """[model]: the ONNX file."""

    file: str


class InputTable(toml.Table, frozen=True, kw_only=True):
    """[input]: one item as the device sends it and as the model takes it.

    `shape` is without the batch dimension. `encoding`: "u5" (5 bits a value, most significant bit
    first), "u8", or "f32" (little-endian). The model gets value * scale + offset. `units`: one for all values, or
    one each with commas between. `image`: how pictures become items.
    """

    name: str
    dtype: Literal["float32"]
    shape: Shape
    encoding: Encoding
    scale: float = 1.0
    offset: float = 0.0
    units: str
    image: ImageTable | None = None

    @property
    def values(self) -> int:
        """How many values one item has."""
        return math.prod(self.shape)

    @property
    def item_bytes(self) -> int:
        """The length of one encoded item."""
        match self.encoding:
            case "u5":
                return (self.values * 5 + 7) // 8
            case "u8":
                return self.values
            case "f32":
                return self.values * 4


class OutputTable(toml.Table, frozen=True, kw_only=True):
    """[output]: what the model gives and how it is read."""

    name: str
    dtype: Literal["float32"]
    shape: Shape
    decode: Literal["softmax-argmax", "argmax"]
    labels: list[str]
    units: str


class TensorTable(toml.Table, frozen=True, kw_only=True):
    """[[outputs]]: a tensor. `shape` is without the batch dimension; -1: a free one."""

    name: str
    dtype: Dtype
    shape: FreeShape
    units: str = ""


class InputTensorTable(TensorTable, frozen=True, kw_only=True):
    """[[inputs]]: a tensor. With `pad` its rows, [-1, ...], may be filled up to the length of others.

    The outputs must not change by it, and have no free dimension. `image`: how pictures become this tensor.
    """

    pad: int | None = None
    image: ImageTable | None = None


class GoldenTable(toml.Table, frozen=True, kw_only=True):
    """[golden]: inputs with expected outputs, and how far a value may be off.

    With [input]: arrays `inputs` (uint8 [n, item_bytes]) and `outputs` (float32 [n, *shape]). With [[inputs]]: one
    array a tensor, `inputs.NAME` and `outputs.NAME`. With [text]: `inputs.NAME` are texts (numpy's str), `outputs.NAME` what is
    served.
    """

    file: str
    tolerance: Annotated[float, msgspec.Meta(ge=0)]


class QualityTable(toml.Table, frozen=True, kw_only=True):
    """[quality]: the figure that was measured before the release, and on what."""

    metric: str
    value: float
    evaluated_on: str


class ShadowTable(toml.Table, frozen=True, kw_only=True):
    """[gate.shadow]: copies of live requests that the release runs, unseen, before it serves.

    It ends after `requests` of them, or `within_s`. At least `agreement` of their rows must come out as with the release
    that serves: by `measure`, the same label or largest value ("top-1"), or outputs whose cosine is `cosine` or more.
    Without `measure`: "top-1" for a release of items, "cosine" for one of tensors. `without`: whether it passes where fewer than
    `least` requests came in time, or no room is left for a shadow.
    """

    requests: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 200
    within_s: Annotated[float, msgspec.Meta(gt=0, le=86400)] = 300.0
    least: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 20
    agreement: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.95
    measure: Literal["", "top-1", "cosine"] = ""
    cosine: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.99
    without: Literal["pass", "refuse"] = "pass"


class GateTable(toml.Table, frozen=True, kw_only=True):
    """[gate]: what a board asks of the release beside its golden outputs; without the table these values.

    `latency_factor`: p95 of one golden input is at most so many times that of the release that serves; 0: any.
    `probation_s`: so long it is watched after the switch, and must not fail more than `error_share` of its requests.
    `shadow`: what it is held against in between; None: nothing.
    """

    latency_factor: Annotated[float, msgspec.Meta(ge=0, le=1000)] = 2.0
    probation_s: Annotated[float, msgspec.Meta(ge=0, le=86400)] = 60.0
    error_share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.2
    shadow: ShadowTable | None = None


class ReleaseSpec(toml.Table, frozen=True, kw_only=True):
    """The whole of release.toml: [input] and [output], or [[inputs]] and [[outputs]].

    `batch`: every tensor of the model has a batch dimension in front. Without it each request runs alone.
    `requires`: other models that a board must serve before it is offered this, by name: ">=2.0.0, <3".
    """

    name: str
    version: str
    description: str = ""
    batch: bool = True
    requires: dict[str, str] = msgspec.field(default_factory=dict)
    model: ModelTable
    input: InputTable | None = None
    output: OutputTable | None = None
    inputs: tuple[InputTensorTable, ...] = ()
    outputs: tuple[TensorTable, ...] = ()
    text: TextTable | None = None
    golden: GoldenTable
    quality: QualityTable
    gate: GateTable = GateTable()

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the release's files."""
        tokenizer = () if self.text is None else (self.text.tokenizer,)
        return (SPEC_FILE, self.model.file, self.golden.file, *tokenizer)

    @property
    def items(self) -> tuple[InputTable, OutputTable] | None:
        """How items are encoded and outputs read; None for a release of plain tensors."""
        return (self.input, self.output) if self.input and self.output else None

    @property
    def tensors(self) -> tuple[tuple[TensorTable, ...], tuple[TensorTable, ...]]:
        """What the model takes and gives, of a release of items too."""
        if self.items is None:
            return self.inputs, self.outputs
        one, other = (
            TensorTable(name=table.name, dtype=table.dtype, shape=table.shape, units=table.units)
            for table in self.items
        )
        return (one,), (other,)

    @property
    def served(self) -> tuple[tuple[TensorTable, ...], tuple[TensorTable, ...]]:
        """What requests give and get: `tensors`, or texts, as rows of UTF-8 filled up with zeros, and what is pooled."""
        if self.text is None:
            return self.tensors
        text = InputTensorTable(name=self.text.name, dtype="uint8", shape=[FREE], pad=0)
        if self.text.pooling == "none":
            return (text,), self.outputs
        return (text,), tuple(msgspec.structs.replace(t, shape=t.shape[1:]) for t in self.outputs)


def parse_spec(data: bytes, *, source: str = SPEC_FILE) -> ReleaseSpec:
    """The specification in a release.toml.

    Raises:
        FileFormatError: naming the file and the key.
    """
    spec = toml.decode(data, ReleaseSpec, source=source)
    if not _NAME.fullmatch(spec.name):
        raise FileFormatError(f"{source}: name {spec.name!r} must be a-z, 0-9, '.', '_', '-'")
    if not _VERSION.fullmatch(spec.version):
        raise FileFormatError(f"{source}: version {spec.version!r} must be like 1.2.3")
    for name in spec.files[1:]:
        if not _NAME.fullmatch(name) or name == SPEC_FILE:
            raise FileFormatError(f"{source}: {name!r} is not a plain file name")
    if spec.model.file == spec.golden.file:
        raise FileFormatError(f"{source}: model and golden file are the same")
    if len(set(spec.files)) != len(spec.files):
        raise FileFormatError(f"{source}: [text] tokenizer is a file of its own")
    parse_requirements(spec.requires, source=source)
    _check_tensors(spec, source)
    _check_text(spec, source)
    _check_images(spec, source)
    _check_shadow(spec, source)
    return spec


def _check_tensors(spec: ReleaseSpec, source: str) -> None:
    if spec.items is None:
        if spec.input or spec.output or not (spec.inputs and spec.outputs):
            raise FileFormatError(
                f"{source}: [input] and [output] are needed, or [[inputs]] and [[outputs]]"
            )
    elif spec.inputs or spec.outputs or not spec.batch:
        raise FileFormatError(
            f"{source}: [input] and [output] go without [[inputs]], [[outputs]] and batch = false"
        )
    for tables in (spec.inputs, spec.outputs):
        names = [table.name for table in tables]
        if len(set(names)) != len(names) or len(names) > MAX_TENSORS or not all(names):
            raise FileFormatError(
                f"{source}: names of tensors must be distinct, at most {MAX_TENSORS}"
            )
        if any(0 in table.shape for table in tables):
            raise FileFormatError(f"{source}: a dimension is 1 or more, or -1: any")
    padded = [table for table in spec.inputs if table.pad is not None]
    if any(
        not table.shape or table.shape[0] != FREE or FREE in table.shape[1:] for table in padded
    ):
        raise FileFormatError(f"{source}: an input with pad has shape [-1, ...], the rest fixed")
    if padded and (not spec.batch or any(FREE in table.shape for table in spec.outputs)):
        raise FileFormatError(f"{source}: pad needs a batch, and outputs without a free dimension")
    output = spec.output
    if output is not None and len(output.labels) != math.prod(output.shape):
        raise FileFormatError(
            f"{source}: [output] has {len(output.labels)} labels for shape {output.shape}"
        )


def _check_text(spec: ReleaseSpec, source: str) -> None:
    if spec.text is None:
        return
    if not spec.batch or any(table.pad is not None for table in spec.inputs):
        raise FileFormatError(f"{source}: [text] goes without batch = false and without pad")
    inputs, outputs = (
        {table.name: (table.dtype, table.shape) for table in tables}
        for tables in (spec.inputs, spec.outputs)
    )
    if reason := misfit(spec.text, inputs, outputs):
        raise FileFormatError(f"{source}: [text]: {reason}")


def _check_images(spec: ReleaseSpec, source: str) -> None:
    """What is said of pictures must be possible, as far as the shape is known."""
    tables = spec.inputs if spec.input is None else (spec.input,)
    for table in tables:
        if table.image is None or FREE in table.shape:
            continue
        kind = table.encoding if isinstance(table, InputTable) else table.dtype
        element = ELEMENTS.get(kind)
        if element is None:
            raise FileFormatError(
                f"{source}: image of {table.name!r}: pictures do not become {kind}"
            )
        try:
            preparation(table.shape, element, table.image)
        except PreparationError as exc:
            raise FileFormatError(f"{source}: image of {table.name!r}: {exc}") from exc


def _check_shadow(spec: ReleaseSpec, source: str) -> None:
    shadow = spec.gate.shadow
    if shadow is None:
        return
    if shadow.least > shadow.requests:
        raise FileFormatError(
            f"{source}: [gate.shadow] least {shadow.least} is more than requests {shadow.requests}"
        )
    if spec.items is not None and shadow.measure == "cosine":
        raise FileFormatError(
            f"{source}: [gate.shadow] items have labels: their measure is top-1, not cosine"
        )


def version_key(version: str) -> tuple[int, ...]:
    """Orders versions: "1.10.0" after "1.9.0"."""
    return tuple(int(part) for part in version.split("."))


def build_manifest(
    spec: ReleaseSpec, files: Mapping[str, bytes], operator_sets: Sequence[OperatorSet] = ()
) -> bytes:
    """The encoded manifest of a release with these files, whose model uses these operators."""
    return messages.encode(
        messages.Manifest(
            name=spec.name,
            version=spec.version,
            files=[
                messages.FileEntry(name, len(files[name]), hashlib.sha256(files[name]).digest())
                for name in spec.files
            ],
            operator_sets=list(operator_sets),
        )
    )


def parse_manifest(data: bytes, *, release: bytes) -> messages.Manifest:
    """The manifest in these bytes, checked against the release id that was asked for.

    Raises:
        DecodeError: other bytes than the id names, or file names that could leave a directory.
    """
    if hashlib.sha256(data).digest() != release:
        raise DecodeError("the manifest is not the one that the release id names")
    manifest = messages.decode_as(data, messages.Manifest)
    names = [entry.name for entry in manifest.files]
    if len(set(names)) != len(names) or not all(_NAME.fullmatch(name) for name in names):
        raise DecodeError("the manifest's file names are not plain and distinct")
    if SPEC_FILE not in names:
        raise DecodeError(f"the manifest lists no {SPEC_FILE}")
    return manifest
