"""One release in ONNX Runtime: load, check against its release.toml, run batches. Only the worker imports this."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from shoal_agent.inference import measuring
from shoal_agent.inference.encodings import to_tensor
from shoal_agent.inference.model_errors import InputError, ModelError, one_line
from shoal_agent.inference.optimised import MIN_MODEL_BYTES, OptimisedForms
from shoal_agent.inference.pace import Point
from shoal_agent.inference.release_files import (
    Array,
    read_golden,
    read_model,
    read_spec,
    read_tokenizer,
)
from shoal_agent.inference.session import open_optimised, open_session
from shoal_agent.inference.settings import CPU, WorkerSettings
from shoal_agent.inference.signature import Form, signature_of
from shoal_agent.inference.tokenising import TextReader
from shoal_contract.release import FREE, ONNX_DTYPES, ReleaseSpec, TensorTable

_GOLDEN_ROWS: Final = 16
_PADDING: Final = 3
_DEFAULTS: Final = WorkerSettings()


class Model:
    """A release that is loaded and kept its promises.

    Args:
        directory: holds release.toml, the model file and the golden file.
        settings: threads and providers.
        forms: where the optimised form of a large model is looked for, and left.
        release: its id, by which the form is known.

    Attributes:
        is_optimised: it came from its optimised form.
        spec: its release.toml.
        signature: what requests are held against.
        golden_count: how many golden inputs came out right.

    Raises:
        ModelError: with the reason.
    """

    def __init__(
        self,
        directory: Path,
        settings: WorkerSettings = _DEFAULTS,
        *,
        forms: OptimisedForms | None = None,
        release: bytes = b"",
    ) -> None:
        self.spec = read_spec(directory)
        form = forms.find(release) if forms is not None else None
        self.is_optimised = form is not None
        if form is not None:
            self._session = open_optimised(form, settings)
        else:
            model = read_model(directory, self.spec)
            self._session = _open_and_keep(model, settings, forms, release)
        self._is_one_thread = settings.threads == 1 and self.providers == [CPU]
        self._one_by_one = _check_signature(self._session, self.spec)
        self.signature = signature_of(self.spec)
        self._reader = _reader(directory, self.spec)
        self._golden_inputs, expected = read_golden(directory, self.spec)
        self.golden_count = len(next(iter(self._golden_inputs.values())))
        self._check_golden(expected)
        self._check_padding(expected)

    @property
    def providers(self) -> list[str]:
        """The execution providers that ONNX Runtime really took, the first one first asked."""
        return list(self._session.get_providers())

    def run(
        self, form: Form, arrays: Sequence[Array], options: ort.RunOptions | None = None
    ) -> list[Array]:
        """The outputs of a batch, in the order of `form.outputs`.

        Args:
            form: of the batch.
            arrays: one an input of the form, [n, ...].
            options: of ONNX Runtime, for this run.

        Raises:
            InputError: the batch, or something in it, does not fit the model.
            ModelError: the model or the runtime failed.
        """
        if not form.is_items:
            names = [info.name for info in form.inputs]
            return self._outputs(form.outputs, dict(zip(names, arrays, strict=True)), options)
        assert self.spec.items is not None  # noqa: S101 - the engine asks only who takes items
        table, output = self.spec.items
        feed = {table.name: to_tensor(arrays[0], table)}
        (scores,) = self._outputs([output.name], feed, options)
        return list(_best(scores, is_softmax=output.decode == "softmax-argmax"))

    def is_well(self) -> bool:
        """Whether a golden input still runs: what failed just before was then not the model's fault."""
        try:
            self._outputs(self._output_names, self._golden_feed(0, 1))
        except ModelError:
            return False
        return True

    def measure_us(self) -> tuple[int, int]:
        """p50 and p95 of running one golden input, in microseconds."""
        return measuring.latency_us(self._golden_run(1))

    def calibrate(self, limit: int) -> tuple[Point, ...]:
        """Microseconds by rows of a batch, up to `limit`, of golden inputs; empty: it takes no batches."""
        if not self.spec.batch:
            return ()
        return measuring.calibrate(self._golden_run, limit, is_one_thread=self._is_one_thread)

    def timings(self, limit: int, *, seconds_each: float) -> Iterator[measuring.Timing]:
        """How long batches of golden inputs take, by their rows; one row alone where it takes no batches."""
        limit = limit if self.spec.batch else 1
        return measuring.by_rows(self._golden_run, limit, seconds_each=seconds_each)

    def _golden_run(self, row_count: int) -> Callable[[], object]:
        """Runs so many golden inputs, some of them more than once if there are fewer."""
        feed = self._golden_feed(0, row_count)
        if self.spec.batch:
            feed = {name: np.resize(x, (row_count, *x.shape[1:])) for name, x in feed.items()}
        return lambda: self._outputs(self._output_names, feed)

    # ------------------------------------------------------------------ running
    @property
    def _output_names(self) -> list[str]:
        return [table.name for table in self.spec.tensors[1]]

    def _outputs(
        self,
        names: Sequence[str],
        feed: Mapping[str, Array],
        options: ort.RunOptions | None = None,
        *,
        filling: int = 0,
    ) -> list[Array]:
        """What is served: of texts (with so many tokens of filling at least), or just what the model gives."""
        if self._reader is None:
            return self._raw_outputs(names, feed, options)
        tokens, mask = self._reader.tokens(feed[self._reader.name], filling=filling)
        return self._reader.pooled(self._raw_outputs(names, tokens, options), mask)

    def _raw_outputs(
        self,
        names: Sequence[str],
        feed: Mapping[str, Array],
        options: ort.RunOptions | None = None,
    ) -> list[Array]:
        rows = len(next(iter(feed.values()))) if self.spec.batch else 1
        if self._one_by_one and rows > 1:
            each = [
                self._raw_outputs(
                    names, {name: array[n : n + 1] for name, array in feed.items()}, options
                )
                for n in range(rows)
            ]
            return [np.concatenate(parts) for parts in zip(*each, strict=True)]
        try:
            outputs: list[Array] = self._session.run(names, feed, options)
        except ort.capi.onnxruntime_pybind11_state.InvalidArgument as exc:
            raise InputError(f"ONNX Runtime: {one_line(exc)}") from exc
        except Exception as exc:
            raise ModelError(f"ONNX Runtime: {one_line(exc)}") from exc
        for name, output in zip(names, outputs, strict=True):
            self._check_output(name, output, rows)
        return outputs

    def _check_output(self, name: str, output: Any, rows: int) -> None:
        info = next(table for table in self.spec.tensors[1] if table.name == name)
        wanted = (rows, *info.shape) if self.spec.batch else tuple(info.shape)
        found = output.shape
        if (
            output.dtype != info.dtype
            or len(found) != len(wanted)
            or any(b not in {FREE, a} for a, b in zip(found, wanted, strict=True))
        ):
            raise ModelError(
                f"the output {name!r} is {output.dtype} {found}, not {info.dtype} {wanted}"
            )

    # ------------------------------------------------------------------ golden inputs
    def _golden_feed(self, start: int, stop: int) -> dict[str, Array]:
        if self.spec.items is not None:
            table, _ = self.spec.items
            return {table.name: to_tensor(self._golden_inputs[""][start:stop], table)}
        if not self.spec.batch:
            return {name: array[start] for name, array in self._golden_inputs.items()}
        return {name: array[start:stop] for name, array in self._golden_inputs.items()}

    def _check_golden(self, expected: Mapping[str, Array]) -> None:
        names = self._output_names
        step = _GOLDEN_ROWS if self.spec.batch else 1
        for start in range(0, self.golden_count, step):
            outputs = self._outputs(names, self._golden_feed(start, start + step))
            for name, output in zip(names, outputs, strict=True):
                got = output if self.spec.batch else output[None]
                self._compare(name, got, expected[name][start : start + step], start)

    def _check_padding(self, expected: Mapping[str, Array]) -> None:
        """What is filled up must not change what comes out, or answers would depend on the neighbours in a batch."""
        pads = {table.name: table.pad for table in self.spec.inputs if table.pad is not None}
        if not pads and self._reader is None:
            return
        feed = self._golden_feed(0, 1)
        for name, pad in pads.items():
            longer = [(0, 0)] * feed[name].ndim
            longer[1] = (0, _PADDING)
            feed[name] = np.pad(feed[name], longer, constant_values=pad)
        names = self._output_names
        for name, output in zip(names, self._outputs(names, feed, filling=_PADDING), strict=True):
            try:
                self._compare(name, output, expected[name][:1], 0)
            except ModelError as exc:
                raise ModelError(f"filled up with `pad`, {exc}") from exc

    def _compare(self, name: str, got: Array, wanted: Array, start: int) -> None:
        tolerance = self.spec.golden.tolerance
        if got.shape != wanted.shape:
            raise ModelError(
                f"golden inputs give {name!r} of shape {got.shape}, not {wanted.shape}"
            )
        error = np.abs(got.astype(np.float64) - wanted)
        # Not `> tolerance`: a NaN has to fail too.
        if not (error <= tolerance).all():
            raise ModelError(
                f"golden inputs give other outputs: off by {error.max():.4g}, allowed {tolerance:.4g}"
            )
        if self.spec.items is None:
            return
        flat = (len(got), -1)
        agree = got.reshape(flat).argmax(axis=1) == wanted.reshape(flat).argmax(axis=1)
        if not agree.all():
            raise ModelError(
                f"golden input {start + int(agree.argmin())} is classified differently"
            )


def _reader(directory: Path, spec: ReleaseSpec) -> TextReader | None:
    if spec.text is None:
        return None
    dtypes = {table.name: table.dtype for table in spec.inputs}
    return TextReader(read_tokenizer(directory, spec.text), spec.text, dtypes)


def _open_and_keep(
    model: bytes, settings: WorkerSettings, forms: OptimisedForms | None, release: bytes
) -> ort.InferenceSession:
    if forms is None or len(model) < MIN_MODEL_BYTES or settings.providers != (CPU,):
        return open_session(model, settings)
    try:
        with forms.making(release, max_bytes=2 * len(model)) as path:
            return open_session(model, settings, save_to=path)
    except (OSError, ModelError):
        # The disk may be what failed: if it is the model, this says so.
        return open_session(model, settings)


def _best(
    scores: Array, *, is_softmax: bool
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    """`ANSWERS`: which label each row has, -1 where an output is not finite, and how sure it is."""
    flat = scores.reshape(len(scores), -1).astype(np.float64)
    finite = np.isfinite(flat).all(axis=1)
    flat[~finite] = 0.0
    best = flat.argmax(axis=1).astype(np.int32)
    confidence = flat.max(axis=1)
    if is_softmax:
        confidence = 1.0 / np.exp(flat - confidence[:, None]).sum(axis=1)
    best[~finite] = -1
    return best, confidence


def _check_signature(session: ort.InferenceSession, spec: ReleaseSpec) -> bool:
    """Whether the batch dimension is fixed at one row."""
    inputs, outputs = spec.tensors
    found = session.get_inputs()
    if len(found) != len(inputs):
        number = "one" if len(inputs) == 1 else str(len(inputs))
        raise ModelError(f"the model has {len(found)} inputs, not {number}")
    fixed = []
    for what, tables, arguments in (
        ("input", inputs, found),
        ("output", outputs, session.get_outputs()),
    ):
        by_name = {argument.name: argument for argument in arguments}
        for table in tables:
            if table.name not in by_name:
                names = ", ".join(repr(name) for name in by_name)
                raise ModelError(f"the model has no {what} {table.name!r}, only {names}")
            fixed.append(_check_tensor(what, by_name[table.name], table, is_batched=spec.batch))
    return any(fixed)


def _check_tensor(what: str, tensor: Any, table: TensorTable, *, is_batched: bool) -> bool:
    shape = ["n", *table.shape] if is_batched else list(table.shape)
    promise = f"{table.name!r} {table.dtype} [{', '.join(map(str, shape))}]"
    dtype = ONNX_DTYPES.get(tensor.type, tensor.type)
    reason = (
        f"the model's {what} is {tensor.name!r} {dtype} {tensor.shape}, release.toml says {promise}"
    )
    if dtype != table.dtype or len(tensor.shape) != len(shape):
        raise ModelError(reason)
    batch, *rest = tensor.shape if is_batched else ("n", *tensor.shape)
    # A dimension may stay symbolic (text or None); what really comes out is checked at every run.
    if any(isinstance(a, int) and a != b for a, b in zip(rest, table.shape, strict=True)):
        raise ModelError(reason)
    if isinstance(batch, int) and batch != 1:
        raise ModelError(f"the model's {what} takes batches of {batch} only; it must be free or 1")
    return isinstance(batch, int)
