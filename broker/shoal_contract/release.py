"""A model release: `release.toml` (what the model is) and its manifest (what the files are).

A release directory holds release.toml, the model file and the golden file. The manifest lists them
by sha256; its own sha256 is the release's id.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec

from shoal_contract import messages, toml
from shoal_contract.errors import DecodeError, FileFormatError

SPEC_FILE: Final = "release.toml"
MAX_FILE_BYTES: Final = 512 * 1024 * 1024

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_VERSION = re.compile(r"(0|[1-9]\d{0,5})\.(0|[1-9]\d{0,5})\.(0|[1-9]\d{0,5})")

Shape = Annotated[
    list[Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]], msgspec.Meta(min_length=1, max_length=6)
]
Encoding = Literal["u5", "u8", "f32"]


class ModelTable(toml.Table, frozen=True, kw_only=True):
    """[model]: the ONNX file."""

    file: str


class InputTable(toml.Table, frozen=True, kw_only=True):
    """[input]: one item as the device sends it and as the model takes it.

    `shape` is without the batch dimension. `encoding`: "u5" (5 bits a value, most significant bit
    first), "u8", or "f32" (little-endian). The model gets value * scale + offset.
    """

    name: str
    dtype: Literal["float32"]
    shape: Shape
    encoding: Encoding
    scale: float = 1.0
    offset: float = 0.0
    units: str

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


class GoldenTable(toml.Table, frozen=True, kw_only=True):
    """[golden]: inputs (uint8 [n, item_bytes]) with expected outputs (float32 [n, *shape])."""

    file: str
    tolerance: Annotated[float, msgspec.Meta(ge=0)]


class QualityTable(toml.Table, frozen=True, kw_only=True):
    """[quality]: the figure that was measured before the release, and on what."""

    metric: str
    value: float
    evaluated_on: str


class ReleaseSpec(toml.Table, frozen=True, kw_only=True):
    """The whole of release.toml."""

    name: str
    version: str
    description: str = ""
    model: ModelTable
    input: InputTable
    output: OutputTable
    golden: GoldenTable
    quality: QualityTable

    @property
    def files(self) -> tuple[str, str, str]:
        """The names of the release's files."""
        return (SPEC_FILE, self.model.file, self.golden.file)


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
    for name in (spec.model.file, spec.golden.file):
        if not _NAME.fullmatch(name) or name == SPEC_FILE:
            raise FileFormatError(f"{source}: {name!r} is not a plain file name")
    if spec.model.file == spec.golden.file:
        raise FileFormatError(f"{source}: model and golden file are the same")
    if len(spec.output.labels) != math.prod(spec.output.shape):
        raise FileFormatError(
            f"{source}: [output] has {len(spec.output.labels)} labels for shape {spec.output.shape}"
        )
    return spec


def version_key(version: str) -> tuple[int, ...]:
    """Orders versions: "1.10.0" after "1.9.0"."""
    return tuple(int(part) for part in version.split("."))


def build_manifest(spec: ReleaseSpec, files: Mapping[str, bytes]) -> bytes:
    """The encoded manifest of a release with these files."""
    return messages.encode(
        messages.Manifest(
            name=spec.name,
            version=spec.version,
            files=[
                messages.FileEntry(name, len(files[name]), hashlib.sha256(files[name]).digest())
                for name in spec.files
            ],
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
