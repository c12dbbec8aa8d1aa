"""An engine and a router in one, with models that double their input, or do what models do when they do not."""

import asyncio
from array import array
from collections.abc import Callable
from types import SimpleNamespace

from shoal_agent.inference.errors import (
    BadInputError,
    DeadlineError,
    NobodyServesError,
    QueueFullError,
    WorkerLostError,
)
from shoal_agent.inference.signature import Signature, TensorInfo
from shoal_agent.inference.tensors import Tensor

RELEASE = bytes(range(32))
LARGE = 32 << 20
VERSION = RELEASE.hex()[:12]
DOUBLE = Signature(
    inputs=(TensorInfo("x", "float32", (-1, 4)),),
    outputs=(TensorInfo("y", "float32", (-1, 4)), TensorInfo("n", "int64", (-1,))),
)
WHOLE = Signature(
    inputs=(TensorInfo("x", "float32", (4,)),),
    outputs=(TensorInfo("y", "float32", (4,)),),
    is_batched=False,
)


class ToyModels:
    """`asked` holds what came, `cancelled` the models whose requests were given up.

    `before_answer` is called when an answer is ready.
    """

    def __init__(self) -> None:
        self.asked: list[SimpleNamespace] = []
        self.cancelled: list[str] = []
        self.go_on = asyncio.Event()
        self.before_answer: Callable[[], None] = lambda: None
        self._models = {"double": DOUBLE, "whole": WHOLE}
        self._models |= dict.fromkeys(
            ("slow", "busy", "late", "lost", "bug", "nan", "large"), DOUBLE
        )

    def models(self) -> list[str]:
        return sorted(self._models)

    def serving(self, model: str) -> bytes | None:
        return RELEASE if model in self._models else None

    def signature(self, model: str) -> Signature | None:
        return self._models.get(model)

    async def infer(self, model, inputs, *, outputs=(), priority=1, deadline_s=1.0):
        self.asked.append(
            SimpleNamespace(
                model=model,
                inputs=inputs,
                outputs=outputs,
                priority=priority,
                deadline_s=deadline_s,
            )
        )
        signature = self._models.get(model)
        if signature is None:
            raise NobodyServesError(f"nobody serves {model!r}: board-1: it does not run here")
        signature.form(inputs, outputs)
        await self._trouble(model, deadline_s)
        x = inputs["x"]
        numbers = array("f")
        numbers.frombytes(x.data)
        doubled = array("f", [2 * number for number in numbers])
        if model == "large":
            return SimpleNamespace(
                outputs={"y": Tensor("uint8", (LARGE,), bytes(LARGE))}, release=RELEASE, by="b"
            )
        if model == "nan":
            doubled[0] = float("nan")
        given = {"y": Tensor("float32", x.shape, doubled.tobytes())}
        if signature.is_batched:
            counts = array("q", range(x.shape[0]))
            given["n"] = Tensor("int64", (x.shape[0],), counts.tobytes())
        self.before_answer()
        chosen = {name: tensor for name, tensor in given.items() if not outputs or name in outputs}
        return SimpleNamespace(outputs=chosen, release=RELEASE, by="board-1")

    async def _trouble(self, model: str, deadline_s: float) -> None:
        match model:
            case "busy":
                raise QueueFullError("64 items are waiting", retry_after_s=1.2)
            case "late":
                raise DeadlineError(f"not done within {deadline_s:g} s")
            case "lost":
                raise WorkerLostError("the worker died of it twice")
            case "bug":
                raise RuntimeError("nobody has thought of this")
            case "bad":
                raise BadInputError("no")
            case "slow":
                try:
                    await self.go_on.wait()
                except asyncio.CancelledError:
                    self.cancelled.append(model)
                    raise
