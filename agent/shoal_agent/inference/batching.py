"""Pieces of requests -> one batch: their rows below each other, those of other lengths filled up. Pure, no copies."""

from collections.abc import Sequence
from dataclasses import replace

from shoal_agent.inference.backlog import Piece
from shoal_agent.inference.batch import Batch
from shoal_agent.inference.signature import Form
from shoal_agent.inference.tensors import padded_rows, rows


def batch_of(pieces: Sequence[Piece], row_count: int) -> Batch:
    """The batch of these pieces, all of one form, with so many rows altogether."""
    form = pieces[0].request.form
    if not form.is_batched:
        return Batch(form, 1, [[tensor.data] for tensor in pieces[0].request.inputs])
    if any(info.pad is not None for info in form.inputs):
        return _padded(pieces, row_count, form)
    return Batch(
        form,
        row_count,
        [
            [rows(piece.request.inputs[n], piece.start, piece.stop) for piece in pieces]
            for n in range(len(form.inputs))
        ],
    )


def _padded(pieces: Sequence[Piece], row_count: int, form: Form) -> Batch:
    """As long as the longest row, not as the bucket: one that runs alone costs what it always did."""
    infos, chunks = [], []
    for n, info in enumerate(form.inputs):
        parts: list[bytes | memoryview] = []
        pad = info.pad
        if pad is not None:
            length = max(piece.request.inputs[n].shape[1] for piece in pieces)
            info = replace(info, shape=(length, *info.shape[1:]))  # noqa: PLW2901 - the same, shorter
        for piece in pieces:
            tensor = piece.request.inputs[n]
            if pad is None:
                parts.append(rows(tensor, piece.start, piece.stop))
            else:
                parts += padded_rows(tensor, piece.start, piece.stop, length, pad)
        infos.append(info)
        chunks.append(parts)
    return Batch(Form(tuple(infos), form.outputs), row_count, chunks)
