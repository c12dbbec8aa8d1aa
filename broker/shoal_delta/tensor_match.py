"""Which old tensor is the base of which new one: by name, then by content, then by shape."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from shoal_delta.onnx_wire import Tensor


def match_tensors(
    old: bytes, new: bytes, before: Sequence[Tensor], after: Sequence[Tensor]
) -> dict[int, Tensor]:
    """The old tensor for each new one that has one, by the new one's offset.

    The same content wins (the tensor of the same name first); then the same name with the same type
    and the same rows; then, of what is left over on both sides, the next of the same type and shape.
    """
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
            elif named is not None and not _alike(named, tensor):
                named = None
        if named is not None:
            matches[tensor.offset] = named
    used = {match.offset for match in matches.values()}
    left: dict[tuple[int, tuple[int, ...]], list[Tensor]] = {}
    for tensor in reversed(before):
        if tensor.offset not in used:
            left.setdefault((tensor.dtype, tensor.dims), []).append(tensor)
    for tensor in after:
        candidates = left.get((tensor.dtype, tensor.dims))
        if tensor.offset not in matches and candidates:
            matches[tensor.offset] = candidates.pop()
    return matches


def _alike(old: Tensor, new: Tensor) -> bool:
    """Same type, and the same size or only more or fewer rows."""
    return old.dtype == new.dtype and (old.dims[1:] == new.dims[1:] or old.size == new.size)


def _digest(data: bytes, tensor: Tensor) -> bytes:
    return hashlib.sha256(data[tensor.offset : tensor.offset + tensor.size]).digest()
