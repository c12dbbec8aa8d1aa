"""What the local API answers, whatever it is asked over: metadata, health, inference. Knows no HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import msgspec

import shoal_agent
from shoal_agent.errors import AgentError
from shoal_agent.inference.engine import Engine
from shoal_agent.inference.router import Router
from shoal_agent.inference.signature import FREE, Signature, TensorInfo
from shoal_agent.inference.tensors import Tensor, rows
from shoal_agent.local_api import oip
from shoal_agent.local_api.errors import BAD_REQUEST, NOT_FOUND, ApiError, refusal
from shoal_agent.local_api.oip import Call, Encoded
from shoal_agent.local_api.routes import Question, Route
from shoal_agent.local_api.tensor_json import DATATYPES, TEXTS

_VERSION_LETTERS: Final = 12
_PLATFORM: Final = "onnxruntime_onnx"
_EXTENSIONS: Final = ("binary_tensor_data",)


class Service:
    """Answers for one agent.

    Args:
        engine: tells what runs here.
        router: serves, here or elsewhere.
        deadline_s: of requests that name none.
    """

    def __init__(self, engine: Engine, router: Router, *, deadline_s: float) -> None:
        self._engine = engine
        self._router = router
        self._deadline_s = deadline_s

    def describe(self, route: Route) -> bytes:
        """The answer to every question but an inference, as JSON.

        Raises:
            ApiError: 404, such a model or version does not run here.
        """
        match route.question:
            case Question.LIVE:
                return msgspec.json.encode({"live": True})
            case Question.READY:
                return msgspec.json.encode({"ready": True})
            case Question.SERVER:
                facts = {
                    "name": "shoal-agent",
                    "version": shoal_agent.__version__,
                    "extensions": _EXTENSIONS,
                }
                return msgspec.json.encode(facts)
            case Question.MODEL_READY:
                self._signature(route.model, route.version)
                return msgspec.json.encode({"name": route.model, "ready": True})
            case _:
                return msgspec.json.encode(self._metadata(route))

    async def infer(self, call: Call) -> Encoded:
        """Run it, wherever the router finds somebody. Raises ApiError."""
        return await self._infer(call, call.inputs, {})

    async def stream(self, call: Call) -> AsyncIterator[Encoded]:
        """Run it a few rows at a time; each answer says how far one is. Raises ApiError."""
        signature = self._signature(call.model, call.version)
        if not signature.is_batched:
            raise ApiError(BAD_REQUEST, f"{call.model!r} has no rows to be run one after the other")
        counts = {tensor.shape[0] if tensor.shape else 0 for tensor in call.inputs.values()}
        if len(counts) != 1 or not (count := counts.pop()):
            raise ApiError(BAD_REQUEST, "the inputs do not have the same number of rows")
        for first in range(0, count, call.stream_rows):
            last = min(first + call.stream_rows, count)
            inputs = {
                name: Tensor(
                    tensor.dtype, (last - first, *tensor.shape[1:]), rows(tensor, first, last)
                )
                for name, tensor in call.inputs.items()
            }
            progress = {"first_row": first, "rows": last - first, "of_rows": count}
            yield await self._infer(call, inputs, {**progress, "final": last == count})

    async def _infer(
        self, call: Call, inputs: Mapping[str, Tensor], parameters: Mapping[str, Any]
    ) -> Encoded:
        is_served_here = self._engine.serving(call.model) is not None
        if call.version:
            self._signature(call.model, call.version)
        try:
            done = await self._router.infer(
                call.model,
                inputs,
                outputs=call.outputs,
                priority=call.priority,
                deadline_s=call.timeout_s or self._deadline_s,
            )
        except AgentError as exc:
            raise refusal(exc, is_served_here=is_served_here) from exc
        outputs = {name: done.outputs[name] for name in call.outputs or done.outputs}
        return oip.encode(
            call,
            outputs,
            model=call.model,
            version=_version(done.release),
            parameters={**parameters, "served_by": done.by},
        )

    def _metadata(self, route: Route) -> dict[str, Any]:
        signature = self._signature(route.model, route.version)
        release = self._engine.serving(route.model) or b""
        return {
            "name": route.model,
            "versions": [_version(release)],
            "platform": _PLATFORM,
            "inputs": [
                _text_input(info) if signature.text_bytes else _described(info)
                for info in signature.inputs
            ],
            "outputs": [_described(info) for info in signature.outputs],
        }

    def _signature(self, model: str, version: str) -> Signature:
        """Of a model that runs here, in this version if one is named."""
        signature, release = self._engine.signature(model), self._engine.serving(model)
        if signature is None or release is None:
            raise ApiError(NOT_FOUND, f"{model[:64]!r} does not run here")
        if version and version not in {_version(release), release.hex()}:
            raise ApiError(
                NOT_FOUND, f"{model!r} runs in version {_version(release)}, not {version[:64]!r}"
            )
        return signature


def _version(release: bytes) -> str:
    """A release's id begins with it."""
    return release.hex()[:_VERSION_LETTERS]


def _text_input(info: TensorInfo) -> dict[str, Any]:
    return {"name": info.name, "datatype": TEXTS, "shape": [FREE]}


def _described(info: TensorInfo) -> dict[str, Any]:
    return {"name": info.name, "datatype": DATATYPES[info.dtype], "shape": list(info.shape)}
