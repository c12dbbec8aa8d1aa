"""What another node says to a request, and tensors on their way to it and back. Pure; whom to ask is the router's matter."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from shoal_agent.inference import texts
from shoal_agent.inference.errors import BadInputError
from shoal_agent.inference.served import Inferred, Served
from shoal_agent.inference.signature import FREE, Signature
from shoal_agent.inference.tensors import ELEMENT_BYTES, Tensor
from shoal_agent.peers.errors import PeerUnreachableError
from shoal_contract import topics
from shoal_contract.errors import ContractError
from shoal_contract.messages import MAX_MESSAGE_BYTES, InferReply, InferRequest, TensorPart

MAX_TENSOR_BYTES: Final = MAX_MESSAGE_BYTES - 8 * 1024
"""In one message; names and shapes take the rest."""
COUNTS_ON_US: Final = 2
"""`hops` of who is about to leave and looks for somebody to serve for it; one node further is 1."""


def as_parts(tensors: Mapping[str, Tensor]) -> list[TensorPart]:
    """Tensors by name as they travel."""
    return [
        TensorPart(name, tensor.dtype, list(tensor.shape), bytes(tensor.data))
        for name, tensor in tensors.items()
    ]


def as_tensors(parts: Sequence[TensorPart]) -> dict[str, Tensor]:
    """Tensors by name that have travelled; those of the type "text" as the texts that a model takes.

    Raises:
        BadInputError: one is none, or two have one name.
    """
    tensors = {part.name: _tensor(part) for part in parts}
    if len(tensors) != len(parts):
        raise BadInputError("two tensors have one name")
    return tensors


def _tensor(part: TensorPart) -> Tensor:
    if part.dtype != texts.TEXT:
        return Tensor.of(part.dtype, part.shape, part.data)
    return texts.text_tensor(texts.split(part.data, texts.count_in(part.shape)))


def answers_in(reply: InferReply, *, items: int) -> Served | None:
    """What a reply says was served; None for a refusal with its reason.

    Raises:
        PeerUnreachableError: it is neither.
    """
    if reply.reason and not reply.answers:
        return None
    try:
        topics.check_node_id(reply.by)
    except ContractError as exc:
        raise PeerUnreachableError(f"a reply by nobody: {exc}") from exc
    if len(reply.answers) != items:
        raise PeerUnreachableError(f"{len(reply.answers)} answers to {items} items")
    return Served(reply.answers, reply.release, reply.by)


def tensors_in(reply: InferReply, *, wanted: frozenset[str]) -> Inferred | None:
    """What a reply says was made of tensors; None for a refusal with its reason.

    Raises:
        PeerUnreachableError: it is neither.
    """
    if reply.reason and not reply.tensors:
        return None
    try:
        topics.check_node_id(reply.by)
        outputs = as_tensors(reply.tensors)
    except (ContractError, BadInputError) as exc:
        raise PeerUnreachableError(f"a reply that cannot be: {exc}") from exc
    if not outputs or (wanted and outputs.keys() != wanted):
        raise PeerUnreachableError(f"outputs {sorted(outputs)} for {sorted(wanted) or 'all'}")
    return Inferred(outputs, reply.release, reply.by)


def trial_question(
    model: str, signature: Signature
) -> tuple[InferRequest, Callable[[InferReply], str | None]]:
    """The smallest request that fits the model, all zeros, and what reads off the reply who served it."""
    by: Callable[[InferReply], Served | Inferred | None]
    if signature.item_bytes:
        request = InferRequest(b"", model, [bytes(signature.item_bytes)], hops=COUNTS_ON_US)
        by = partial(answers_in, items=1)
    else:
        request = InferRequest(
            b"", model, [], hops=COUNTS_ON_US, tensors=as_parts(_zeros(signature))
        )
        by = partial(tensors_in, wanted=frozenset())

    def read(reply: InferReply) -> str | None:
        found = by(reply)
        return None if found is None else found.by

    return request, read


def _zeros(signature: Signature) -> dict[str, Tensor]:
    zeros = {}
    for info in signature.inputs:
        shape = tuple(1 if size == FREE else size for size in info.shape)
        size_bytes = math.prod(shape) * ELEMENT_BYTES[info.dtype]
        zeros[info.name] = Tensor(info.dtype, shape, bytes(size_bytes))
    return zeros
