"""What a model takes and gives, and whether a request fits. Pure: it is asked before anything waits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from shoal_agent.inference.errors import BadInputError
from shoal_agent.inference.tensors import Tensor
from shoal_contract.release import ReleaseSpec, TensorTable

FREE: Final = -1
ANSWERS: Final = ("best", "confidence")
"""What comes of encoded items: index of the label (int32, -1: not a finite number) and float64, one a row."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor of a model. `shape` has the batch dimension in front if the model has one; -1: free.

    `pad`: what rows may be filled up with to the length of others; None: they may not.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    pad: int | None = None


@dataclass(frozen=True, slots=True)
class Form:
    """What requests must share to run in one batch: the shape of each input's row, and the outputs wanted.

    The length of a row that may be filled up is the longest of its bucket.

    Without `is_batched` the shapes are whole, and every request is a batch of its own, of one row.
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[str, ...]
    is_batched: bool = True

    def shapes(self, rows: int) -> list[tuple[str, tuple[int, ...]]]:
        """Type and shape of each input of a batch."""
        if not self.is_batched:
            return [(info.dtype, info.shape) for info in self.inputs]
        return [(info.dtype, (rows, *info.shape)) for info in self.inputs]

    @property
    def is_items(self) -> bool:
        """Encoded items, uint8 [item_bytes] each, that the worker decodes; out come `ANSWERS`."""
        return self.outputs == ANSWERS and self.inputs[0].name == ""


def item_form(item_bytes: int) -> Form:
    """The form of encoded items."""
    return Form((TensorInfo("", "uint8", (item_bytes,)),), ANSWERS)


_STEP: Final = 8
_SHORT: Final = 32
_MAX_FORMS: Final = 256


@dataclass(frozen=True, slots=True)
class Signature:
    """A model's tensors.

    Attributes:
        is_batched: the first dimension of every tensor is the batch: requests may run together.
        item_bytes: length of an encoded item; 0: the release takes tensors only.
        labels: what the answers to items are; empty with item_bytes 0.
        text_bytes: the one input is texts, rows of UTF-8 that are filled up with zeros, of at most so many bytes; 0: it is not.
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    is_batched: bool = True
    item_bytes: int = 0
    labels: tuple[str, ...] = ()
    text_bytes: int = 0

    def form(self, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> tuple[Form, int]:
        """What a request may run together with, and how many rows it has.

        Raises:
            BadInputError: it does not fit the model; the message says where.
        """
        if len(inputs) != len(self.inputs):
            raise BadInputError(f"{len(inputs)} inputs; the model has {self._names()}")
        row_count = -1
        shapes = []
        for info in self.inputs:
            tensor = inputs.get(info.name)
            if tensor is None:
                raise BadInputError(f"no input {info.name!r}; the model has {self._names()}")
            shape = tensor.shape
            if tensor.dtype != info.dtype or not _fits(shape, info.shape):
                wanted = "texts" if self.text_bytes else f"{info.dtype} {list(info.shape)}"
                raise BadInputError(
                    f"input {info.name!r} is {tensor.dtype} {list(shape)}, not {wanted}"
                )
            if self.is_batched:
                if row_count not in {FREE, shape[0]}:
                    raise BadInputError(f"input {info.name!r} has {shape[0]} rows, not {row_count}")
                row_count, shape = shape[0], shape[1:]
            if self.text_bytes and shape[0] > self.text_bytes:
                raise BadInputError(
                    f"a text of {shape[0]} bytes; the model takes at most {self.text_bytes}"
                )
            if info.pad is not None:
                shape = (bucket(shape[0]), *shape[1:])
            shapes.append(TensorInfo(info.name, info.dtype, shape, info.pad))
        form = Form(tuple(shapes), self._outputs(outputs), self.is_batched)
        return form, row_count if self.is_batched else 1

    def _outputs(self, wanted: Sequence[str]) -> tuple[str, ...]:
        known = tuple(info.name for info in self.outputs)
        if not wanted:
            return known
        if unknown := [name for name in wanted if name not in known]:
            raise BadInputError(f"no output {unknown[0][:64]!r}; the model has {list(known)}")
        return tuple(name for name in known if name in wanted)

    def _names(self) -> list[str]:
        return [info.name for info in self.inputs]


def signature_of(spec: ReleaseSpec) -> Signature:
    """What a release.toml promises; whether the model keeps it is for the worker to say."""

    def whole(table: TensorTable) -> tuple[int, ...]:
        return (FREE, *table.shape) if spec.batch else tuple(table.shape)

    inputs, outputs = (
        tuple(TensorInfo(t.name, t.dtype, whole(t), getattr(t, "pad", None)) for t in tables)
        for tables in spec.served
    )
    if spec.items is None:
        text_bytes = 0 if spec.text is None else spec.text.max_bytes
        return Signature(inputs, outputs, spec.batch, text_bytes=text_bytes)
    table, output = spec.items
    return Signature(inputs, outputs, spec.batch, table.item_bytes, tuple(output.labels))


def bucket(length: int) -> int:
    """The longest row that one of this length is to run together with: at most a half longer, or 7 more."""
    if length <= _SHORT:
        return -(-length // _STEP) * _STEP
    power = 1 << (length - 1).bit_length()
    return power * 3 // 4 if length <= power * 3 // 4 else power


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    if len(shape) != len(wanted):
        return False
    return all(b in {FREE, a} and a > 0 for a, b in zip(shape, wanted, strict=True))


class Forms:
    """The forms of a model's requests, kept: the same few come again and again, and are compared by identity.

    Attributes:
        signature: of the model.
    """

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self.items = item_form(signature.item_bytes)
        self._known: dict[object, tuple[Form, int]] = {}
        self._forms: dict[Form, Form] = {}

    def of(self, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> tuple[Form, int]:
        """See `Signature.form`."""
        key = (
            *[(name, tensor.dtype, tensor.shape) for name, tensor in inputs.items()],
            *outputs,
        )
        found = self._known.get(key)
        if found is None:
            form, row_count = self.signature.form(inputs, outputs)
            if len(self._known) >= _MAX_FORMS:
                self._known.clear()
                self._forms.clear()
            found = self._known[key] = (self._forms.setdefault(form, form), row_count)
        return found
