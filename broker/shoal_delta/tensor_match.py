"""Which old tensor is the base of which new one: by name, then by content, then by shape."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from shoal_delta.onnx_wire import Model, Tensor


def match_tensors(
    files: tuple[bytes, bytes],
    models: tuple[Model, Model],
    before: Sequence[Tensor],
    after: Sequence[Tensor],
) -> dict[int, Tensor]:
    """The old tensor for each new one that has one, by the new one's offset.

    The same content wins (the tensor of the same name first); then the same name with the same type;
    then, of what is left over on both sides, the next of the same type and shape, or else rank; where
    weights have found each other, their scales and zero points belong together too.
    """
    old, new = files
    by_name = {tensor.name: tensor for tensor in before}
    digests = {tensor.offset: _digest(old, tensor) for tensor in before}
    by_content = {digests[tensor.offset]: tensor for tensor in reversed(before)}
    matches: dict[int, Tensor] = {}
    for tensor in after:
        named = by_name.get(tensor.name)
        digest = _digest(new, tensor)
        if named is None or digests[named.offset] != digest:
            same = by_content.get(digest)
            if same is not None:
                named = same
            elif named is not None and named.dtype != tensor.dtype:
                named = None
        if named is not None:
            matches[tensor.offset] = named
    weights = [tensor for tensor in after if tensor.scale]
    for some in (weights, after):
        _match_left_over(before, some, matches, lambda tensor: tensor.dims)
        _match_left_over(before, some, matches, lambda tensor: len(tensor.dims))
        _match_companions(models, some, matches)
    return matches


def _match_left_over(
    before: Sequence[Tensor],
    after: Sequence[Tensor],
    matches: dict[int, Tensor],
    shape: Callable[[Tensor], object],
) -> None:
    """Of the same type and shape, the first that has no partner goes with the first that has none."""
    used = {match.offset for match in matches.values()}
    left: dict[tuple[int, object], list[Tensor]] = {}
    for tensor in reversed(before):
        if tensor.offset not in used:
            left.setdefault((tensor.dtype, shape(tensor)), []).append(tensor)
    for tensor in after:
        candidates = left.get((tensor.dtype, shape(tensor)))
        if tensor.offset not in matches and candidates:
            matches[tensor.offset] = candidates.pop()


def _match_companions(
    models: tuple[Model, Model], after: Sequence[Tensor], matches: dict[int, Tensor]
) -> None:
    for tensor in after:
        match = matches.get(tensor.offset)
        if match is None:
            continue
        for mine, other in ((tensor.scale, match.scale), (tensor.zero_point, match.zero_point)):
            new, old = models[1].by_name.get(mine), models[0].by_name.get(other)
            if new is not None and old is not None and new.dtype == old.dtype:
                matches.setdefault(new.offset, old)


def _digest(data: bytes, tensor: Tensor) -> bytes:
    return hashlib.sha256(data[tensor.offset : tensor.offset + tensor.size]).digest()
