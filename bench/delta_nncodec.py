"""NNCodec's DeepCABAC on plain residuals, as a peer for delta_peers.py: a module of .venv-bench-delta.

NNCodec has no container for an ONNX file, so it gets the best one around: INT8 tensors of the same name and
shape go through DeepCABAC as new - old, a stream for each; the files with those tensors zeroed go
through hdiffpatch. Only the extension is loaded: the package itself wants PyTorch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import hdiffpatch
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

Way = tuple[Callable[[], bytes], Callable[[bytes], bytes]]
# NNCodec's own defaults: 11 unary bits, context parameters optimised, no row skipping, profile 0.
UNARY_BITS, OPTIMISED, PROFILE = 11, 1, 0
LENGTH_BYTES = 4


def extension() -> ModuleType | None:
    """DeepCABAC, or None where it is not built."""
    spec = importlib.util.find_spec("nncodec")
    if spec is None or spec.origin is None:
        return None
    found = sorted((Path(spec.origin).parent / "extensions").glob("deepCABAC*.so"))
    if not found:
        return None
    there = importlib.util.spec_from_file_location("deepCABAC", found[0])
    if there is None or there.loader is None:
        return None
    module = importlib.util.module_from_spec(there)
    there.loader.exec_module(module)
    return module


def way(before: bytes, after: bytes) -> Way | None:
    """None: not built, no models, or not serialised as the onnx package does."""
    coder = extension()
    try:
        old, new = onnx.load_from_string(before), onnx.load_from_string(after)
    except Exception:  # noqa: BLE001 - protobuf raises what it likes
        return None
    if coder is None or _written(new) != after or not old.graph.initializer:
        return None
    base = {t.name: numpy_helper.to_array(t) for t in old.graph.initializer if _is_int8(t)}

    def shared(model: onnx.ModelProto) -> list[onnx.TensorProto]:
        return [
            tensor
            for tensor in model.graph.initializer
            if tensor.name in base
            and _is_int8(tensor)
            and tuple(tensor.dims) == base[tensor.name].shape
        ]

    for tensor in filter(_is_int8, old.graph.initializer):
        tensor.raw_data = bytes(len(tensor.raw_data))
    before = _written(old)
    return (
        lambda: _encoded(coder, before, after, shared, base),
        lambda delta: _decoded(coder, before, delta, shared, base),
    )


def _is_int8(tensor: onnx.TensorProto) -> bool:
    return (
        tensor.data_type == onnx.TensorProto.INT8
        and tensor.HasField("raw_data")
        and any(tensor.dims)
    )


def _encoded(
    coder: ModuleType,
    before: bytes,
    after: bytes,
    shared: Callable[[onnx.ModelProto], list[onnx.TensorProto]],
    base: dict[str, NDArray[np.int8]],
) -> bytes:
    model = onnx.load_from_string(after)
    streams = []
    for tensor in shared(model):
        residual = numpy_helper.to_array(tensor).astype(np.int32) - base[tensor.name]
        encoder = coder.Encoder()
        encoder.initCtxModels(UNARY_BITS, OPTIMISED)
        rows = np.zeros(residual.shape[0], np.int32)
        encoder.encodeLayer(
            np.ascontiguousarray(residual),
            0,
            0,
            PROFILE,
            0,
            0,
            rows,
            coder.HdspMode.AlwaysOff,
            np.zeros(2, np.int8),
            0,
            0,
        )
        streams.append(bytes(encoder.finish()))
        tensor.raw_data = bytes(len(tensor.raw_data))
    rest = hdiffpatch.diff(before, _written(model), compression=hdiffpatch.Lzma2Config(level=9))
    parts = [rest, *streams]
    return b"".join(len(part).to_bytes(LENGTH_BYTES, "little") + part for part in parts)


def _decoded(
    coder: ModuleType,
    before: bytes,
    delta: bytes,
    shared: Callable[[onnx.ModelProto], list[onnx.TensorProto]],
    base: dict[str, NDArray[np.int8]],
) -> bytes:
    parts, at = [], 0
    while at < len(delta):
        size = int.from_bytes(delta[at : at + LENGTH_BYTES], "little")
        parts.append(delta[at + LENGTH_BYTES : at + LENGTH_BYTES + size])
        at += LENGTH_BYTES + size
    model = onnx.load_from_string(hdiffpatch.apply(before, parts[0]))
    for tensor, stream in zip(shared(model), parts[1:], strict=True):
        decoder = coder.Decoder()
        decoder.setStream(np.frombuffer(stream, np.uint8))
        decoder.initCtxModels(UNARY_BITS)
        residual = np.zeros(base[tensor.name].shape, np.int32)
        decoder.decodeLayer(
            residual, 0, 0, PROFILE, 0, coder.HdspMode.AlwaysOff, np.zeros(2, np.int8), 0, 0
        )
        decoder.finish()
        tensor.raw_data = (residual + base[tensor.name]).astype(np.int8).tobytes()
    return _written(model)


def _written(model: onnx.ModelProto) -> bytes:
    return bytes(model.SerializeToString(deterministic=True))
