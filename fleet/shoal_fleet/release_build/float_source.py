"""Where the float model comes from: an ONNX file, a Hugging Face directory, a torch module. Worker only.

Everything is local; nothing is downloaded. torch and optimum are loaded when a source needs them.
"""

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import helper, numpy_helper
from onnxruntime.quantization import shape_inference

from shoal_fleet.errors import ReleaseBuildError
from shoal_fleet.release_build.calibration import Items
from shoal_fleet.release_build.recipe import Facts

MODEL_FILE: Final = "model.onnx"
# protobuf's limit for one message; a board could not hold more either.
MAX_MODEL_BYTES: Final = (1 << 31) - 1
TORCH_SUFFIXES: Final = (".pt", ".pth")
FULL_HINT: Final = "make it with `make quantize-env ARGS=--full`"
_QUANTISABLE: Final = frozenset({"Conv", "Gemm", "MatMul"})
_OPSET: Final = 17
_MIN_OPSET: Final = 13
_TENSOR: Final = 2


def needs_torch(source: Path) -> bool:
    """Whether it is something else than an ONNX file."""
    return source.suffix in TORCH_SUFFIXES or (source.is_dir() and not _onnx_files(source))


def float_model(source: Path, scratch: Path, *, task: str, example: Items | None) -> Path:
    """The source as one ONNX file, ready for the quantisers; `scratch` is an empty directory.

    `example` are inputs that a torch module is traced with.

    Raises:
        ReleaseBuildError: it is no model, is too large, or what it needs is not installed.
    """
    model = _onnx_of(source, scratch, task, example)
    beside = (path for path in model.parent.iterdir() if path.name.startswith(model.name))
    size_bytes = sum(path.stat().st_size for path in beside)
    if size_bytes > MAX_MODEL_BYTES:
        raise ReleaseBuildError(f"{source} has {size_bytes} bytes, more than {MAX_MODEL_BYTES}")
    loaded = load(model)
    if not loaded.graph.node:
        raise ReleaseBuildError(f"{source} has no nodes: not an ONNX model")
    return _prepared(loaded, model, scratch)


def load(path: Path, *, with_data: bool = False) -> Any:
    """The ONNX model in a file.

    Raises:
        ReleaseBuildError: it is none.
    """
    try:
        return onnx.load(path, load_external_data=with_data)
    except (OSError, ValueError, DecodeError, onnx.checker.ValidationError) as exc:
        raise ReleaseBuildError(f"{path} cannot be read as an ONNX model: {exc}") from exc


def facts_of(model: Any, *, calibration_items: int) -> Facts:
    """What decides how it is quantised."""
    sizes = {
        tensor.name: int(np.prod(tensor.dims, dtype=np.int64))
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }
    weights = {
        node.name or node.output[0]: sizes[node.input[1]]
        for node in model.graph.node
        if node.op_type in _QUANTISABLE and len(node.input) > 1 and node.input[1] in sizes
    }
    convolutions = sum(op == "Conv" for op in op_types(model.graph))
    return Facts(convolutions, weights, calibration_items)


def float_weights(model: Any) -> Mapping[str, Any]:
    """The float initialisers by name."""
    return {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }


def op_types(graph: Any) -> Iterator[str]:
    """The operator of every node, those of the branches of If and the bodies of Loop included."""
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from op_types(inner)


def _onnx_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.onnx")) or sorted(folder.glob("onnx/model.onnx"))


def _onnx_of(source: Path, scratch: Path, task: str, example: Items | None) -> Path:
    if source.is_file():
        return _traced(source, scratch, example) if source.suffix in TORCH_SUFFIXES else source
    if not source.is_dir():
        raise ReleaseBuildError(f"{source} is neither a file nor a directory")
    found = _onnx_files(source)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ReleaseBuildError(f"{source} has several ONNX files ({names}): name one of them")
    if found:
        return found[0]
    if not (source / "config.json").is_file():
        raise ReleaseBuildError(f"{source} has neither an ONNX file nor a Hugging Face config.json")
    exporter = _module("optimum.exporters.onnx")
    try:
        exporter.main_export(
            model_name_or_path=str(source), output=scratch, task=task, local_files_only=True
        )
    except Exception as exc:  # a foreign tool raises anything; its reason is handed on in full
        raise ReleaseBuildError(f"{source} cannot be exported to ONNX: {exc}") from exc
    if not (scratch / MODEL_FILE).is_file():
        raise ReleaseBuildError(
            f"{source} became several ONNX files: export it and name one of them"
        )
    return scratch / MODEL_FILE


def _traced(source: Path, scratch: Path, example: Items | None) -> Path:
    """A TorchScript file as ONNX. A pickled module is refused: reading one runs what is in it."""
    if example is None:
        raise ReleaseBuildError(f"{source} needs inputs to be traced with: give --calibration")
    torch = _module("torch")
    out = scratch / MODEL_FILE
    values = {name: torch.from_numpy(items[:2]) for name, items in example.inputs.items()}
    try:
        module = torch.jit.load(str(source), map_location="cpu").eval()
        torch.onnx.export(
            module,
            tuple(values.values()),
            str(out),
            input_names=list(values),
            output_names=["output"],
            dynamic_axes={name: {0: "batch"} for name in (*values, "output")},
            opset_version=_OPSET,
            dynamo=False,
        )
    except Exception as exc:  # a foreign tool raises anything; its reason is handed on in full
        first = (str(exc).strip() or type(exc).__name__).splitlines()[0]
        raise ReleaseBuildError(
            f"{source} is no TorchScript module (torch.jit.save) that exports to ONNX: {first}"
        ) from exc
    return out


def _prepared(loaded: Any, model: Path, scratch: Path) -> Path:
    """Batch normalisation folded, names for all nodes, Gemm weights with their channels in front."""
    path = model
    ops = set(op_types(loaded.graph))
    if "BatchNormalization" in ops:
        path = scratch / "folded.onnx"
        try:
            shape_inference.quant_pre_process(model, path, skip_symbolic_shape=True)
        except Exception as exc:  # a foreign tool raises anything
            raise ReleaseBuildError(f"{model} cannot be prepared: {exc}") from exc
    whole = load(path, with_data=True)
    if any(i.version < _MIN_OPSET for i in whole.opset_import if i.domain in {"", "ai.onnx"}):
        try:
            whole = onnx.version_converter.convert_version(whole, _MIN_OPSET)
        except Exception as exc:  # a foreign tool raises anything
            raise ReleaseBuildError(f"{model} is too old and cannot be converted: {exc}") from exc
    for number, node in enumerate(whole.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    _transpose_gemms(whole)
    ready = scratch / "float.onnx"
    onnx.save(whole, ready)
    return ready


def _transpose_gemms(model: Any) -> None:
    """Every Gemm gets transB = 1: one axis of channels for all of them."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    users = [name for node in model.graph.node for name in node.input]
    for node in model.graph.node:
        if node.op_type != "Gemm" or users.count(node.input[1]) != 1:
            continue
        is_transposed = any(a.name == "transB" and a.i for a in node.attribute)
        tensor = tensors.get(node.input[1])
        if is_transposed or tensor is None or len(tensor.dims) != _TENSOR:
            continue
        turned = np.ascontiguousarray(numpy_helper.to_array(tensor).T)
        tensor.CopyFrom(numpy_helper.from_array(turned, tensor.name))
        kept = [attribute for attribute in node.attribute if attribute.name != "transB"]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("transB", 1)])


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as exc:
        raise ReleaseBuildError(
            f"this source needs {name}, which the environment has not: {FULL_HINT}"
        ) from exc
