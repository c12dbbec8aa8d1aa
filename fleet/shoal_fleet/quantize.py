"""A float transformer becomes an INT8 ONNX file, with optimum-onnx; behind `shoal release quantize`.

Dynamic by default, static when calibration inputs are given; weights signed 8 bit per channel. It
does not measure accuracy (the release's golden inputs and quality figure do) and it does not build a
release directory. optimum, transformers and torch (1.3 GB) are loaded when they are needed, and only
on the controller's side: `pip install 'shoal[quantize]'`.
"""

import importlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal, get_args

Target = Literal["arm64", "avx2", "avx512", "avx512_vnni"]
TARGETS: Final[tuple[Target, ...]] = get_args(Target)
MODEL_FILE: Final = "model.onnx"
# protobuf's limit for one message; a board could not hold more either.
MAX_MODEL_BYTES: Final = (1 << 31) - 1
INSTALL_HINT: Final = "pip install 'shoal[quantize]'"

_QUANTISED_OPS: Final = frozenset(
    {
        "MatMulInteger",
        "DynamicQuantizeMatMul",
        "ConvInteger",
        "QLinearMatMul",
        "DynamicQuantizeLSTM",
    }
)
# One calibration item: input name -> its value without the batch dimension.
Item = Mapping[str, Any]


class QuantizeError(Exception):
    """The model was not quantised; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class QuantizationReport:
    """What was made: the INT8 file, both sizes, and how many nodes compute in INT8."""

    model: Path
    mode: Literal["dynamic", "static"]
    target: Target
    source_bytes: int
    model_bytes: int
    int8_nodes: int
    float_matmuls: int


def quantize(
    source: Path,
    out_dir: Path,
    *,
    target: Target = "arm64",
    calibration: Sequence[Item] | None = None,
    task: str = "feature-extraction",
) -> QuantizationReport:
    """Quantise `source` into `out_dir` as model.onnx, with the configuration files that go with it.

    Args:
        source: an ONNX file, a directory with one, or a Hugging Face model directory, which is
            exported to ONNX first. Always local; nothing is downloaded.
        out_dir: a directory that is new or empty.
        target: the boards' instruction set. Weights get 7 bits on "avx2" and "avx512", where the
            products of 8 bits can saturate.
        calibration: inputs like the real ones; with them the quantisation is static, QDQ.
        task: the Hugging Face task to export for; optimum cannot tell it from a directory.

    Raises:
        QuantizeError: not installed, not a model, more than 2 GiB, `out_dir` is in use, or Conv
            nodes without calibration: dynamic quantisation makes Conv 4 to 6 times slower.
    """
    if target not in TARGETS:
        raise QuantizeError(f"target {target!r} is none of {', '.join(TARGETS)}")
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise QuantizeError(f"{out_dir} exists and is not empty: name a new directory")
    if calibration is not None and not calibration:
        raise QuantizeError("static quantisation needs at least one calibration item")
    try:
        out_dir.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise QuantizeError(f"{out_dir} cannot be made: {exc}") from exc
    with tempfile.TemporaryDirectory(prefix=".quantize-", dir=out_dir.parent) as scratch:
        model = _onnx_of(source, Path(scratch) / "float", task)
        source_bytes = _checked(model, static=calibration is not None)
        made = Path(scratch) / "int8"
        _run(model, made, target=target, calibration=calibration)
        if out_dir.exists():
            out_dir.rmdir()
        made.rename(out_dir)
    path = out_dir / MODEL_FILE
    ops = list(_op_types(_load(path).graph))
    int8_nodes = sum(op in _QUANTISED_OPS for op in ops)
    float_matmuls = sum(op in {"MatMul", "Gemm"} for op in ops)
    if calibration is not None:
        # In QDQ the operators keep their names; each one's quantised weight is a constant.
        int8_nodes, float_matmuls = _qdq_counts(path)
    return QuantizationReport(
        model=path,
        mode="dynamic" if calibration is None else "static",
        target=target,
        source_bytes=source_bytes,
        model_bytes=path.stat().st_size,
        int8_nodes=int8_nodes,
        float_matmuls=float_matmuls,
    )


def _run(model: Path, made: Path, *, target: Target, calibration: Sequence[Item] | None) -> None:
    """Optimum's part: `model` -> `made`/model.onnx."""
    optimum = _module("optimum.onnxruntime")
    settings = _module("optimum.onnxruntime.configuration")
    ort = _module("onnxruntime.quantization")
    config = getattr(settings.AutoQuantizationConfig, target)(
        is_static=calibration is not None, per_channel=True
    )
    # optimum's avx2 preset has unsigned weights; per channel and symmetric they have to be signed.
    config.weights_dtype = ort.QuantType.QInt8
    config.reduce_range = target in {"avx2", "avx512"}
    ranges = None
    try:
        quantizer = optimum.ORTQuantizer.from_pretrained(model.parent, file_name=model.name)
        if calibration is not None:
            # Gather and the rest gain nothing in INT8 and cost accuracy.
            config.operators_to_quantize = ["MatMul", "Gemm", "Conv"]
            method = settings.CalibrationConfig(
                dataset_name="local",
                dataset_config_name="local",
                dataset_split="local",
                dataset_num_samples=len(calibration),
                method=ort.CalibrationMethod.MinMax,
            )
            ranges = quantizer.fit(
                dataset=calibration,
                calibration_config=method,
                onnx_augmented_model_name=str(made.with_name("augmented.onnx")),
                operators_to_quantize=config.operators_to_quantize,
            )
        quantizer.quantize(
            quantization_config=config,
            save_dir=made,
            file_suffix=None,
            calibration_tensors_range=ranges,
        )
    except Exception as exc:  # a foreign tool raises anything; its reason is handed on in full
        raise QuantizeError(f"{model} cannot be quantised: {exc}") from exc
    written = made / model.name
    if written.name != MODEL_FILE:
        written.rename(made / MODEL_FILE)


def _onnx_of(source: Path, scratch: Path, task: str) -> Path:
    """The one ONNX file of `source`, exported from a Hugging Face directory when there is none."""
    if source.is_file():
        return source
    if not source.is_dir():
        raise QuantizeError(f"{source} is neither a file nor a directory")
    found = sorted(source.glob("*.onnx")) or sorted(source.glob("onnx/model.onnx"))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise QuantizeError(f"{source} has several ONNX files ({names}): name one of them")
    if found:
        return found[0]
    if not (source / "config.json").is_file():
        raise QuantizeError(f"{source} has neither an ONNX file nor a Hugging Face config.json")
    exporter = _module("optimum.exporters.onnx")
    try:
        exporter.main_export(
            model_name_or_path=str(source), output=scratch, task=task, local_files_only=True
        )
    except Exception as exc:  # a foreign tool raises anything; its reason is handed on in full
        raise QuantizeError(f"{source} cannot be exported to ONNX: {exc}") from exc
    if not (scratch / MODEL_FILE).is_file():
        raise QuantizeError(f"{source} became several ONNX files: export it and name one of them")
    return scratch / MODEL_FILE


def _checked(model: Path, *, static: bool) -> int:
    """The size of a model that can be quantised, with its external data."""
    beside = (path for path in model.parent.iterdir() if path.name.startswith(model.name))
    size_bytes = sum(path.stat().st_size for path in beside)
    if size_bytes > MAX_MODEL_BYTES:
        raise QuantizeError(f"{model} has {size_bytes} bytes, more than {MAX_MODEL_BYTES}")
    ops = list(_op_types(_load(model).graph))
    if not ops:
        raise QuantizeError(f"{model} has no nodes: not an ONNX model")
    if not static and "Conv" in ops:
        raise QuantizeError(
            f"{model} has {ops.count('Conv')} Conv nodes; dynamic quantisation makes them 4 to 6 "
            "times slower: give calibration inputs (static quantisation)"
        )
    return size_bytes


def _qdq_counts(path: Path) -> tuple[int, int]:
    """In a QDQ model: MatMul, Gemm and Conv nodes between (INT8, float) operands."""
    graph = _load(path).graph
    dequantised = {out for n in graph.node if n.op_type == "DequantizeLinear" for out in n.output}
    nodes = [n for n in graph.node if n.op_type in {"MatMul", "Gemm", "Conv"}]
    int8_nodes = sum(set(node.input[:2]) <= dequantised for node in nodes)
    return int8_nodes, len(nodes) - int8_nodes


def _op_types(graph: Any) -> Iterator[str]:
    """The operator of every node, those of the branches of If and the bodies of Loop included."""
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _op_types(inner)


def _load(path: Path) -> Any:
    onnx = _module("onnx")
    protobuf = _module("google.protobuf.message")
    try:
        return onnx.load(path, load_external_data=False)
    except (OSError, protobuf.DecodeError) as exc:
        raise QuantizeError(f"{path} cannot be read as an ONNX model: {exc}") from exc


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as exc:
        raise QuantizeError(f"quantising needs {name}, which is missing: {INSTALL_HINT}") from exc
