"""[text] of a release.toml: how a text becomes the tokens that a model takes, and its output one row. Pure.

Tokenising and pooling are the matter of the worker that runs the model.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Literal

import msgspec

from shoal_contract import toml

MAX_TOKENIZER_BYTES: Final = 48 * 1024 * 1024
MAX_TEXT_BYTES: Final = 65536
_TOKEN_TYPES: Final = ("int64", "int32")
_SEQUENCE: Final = [-1]
_POOLED_DIMENSIONS: Final = 2

Tensors = Mapping[str, tuple[str, Sequence[int]]]
"""Type and shape by name, without the batch dimension."""


class TextTable(toml.Table, frozen=True, kw_only=True):
    """[text]: the model is asked with texts; [[inputs]] and [[outputs]] are still what the model itself has.

    `name`: what the one input is called in requests. `tokenizer`: the tokenizer.json, a file of the release. `ids`, `mask`,
    `types`: which [[inputs]] get what. A text has at most `max_bytes` of UTF-8; of its tokens the first `max_tokens` count.
    `pad`: the token that rows are filled up with to the length of others. `pooling`: "mean" (of the tokens that are not
    filling) or "cls" (the first) makes one row, [h], of an output [-1, h]; "none": the model does so. `normalise`: the row is then divided
    by its L2 norm.
    """

    name: str = "text"
    tokenizer: str = "tokenizer.json"
    max_tokens: Annotated[int, msgspec.Meta(ge=8, le=8192)] = 128
    max_bytes: Annotated[int, msgspec.Meta(ge=1, le=MAX_TEXT_BYTES)] = 4096
    pad: Annotated[int, msgspec.Meta(ge=0, le=1 << 30)] = 0
    ids: str = "input_ids"
    mask: str = "attention_mask"
    types: str = "token_type_ids"
    pooling: Literal["mean", "cls", "none"] = "mean"
    normalise: bool = True


def misfit(table: TextTable, inputs: Tensors, outputs: Tensors) -> str:
    """Why a model of these tensors cannot be asked with texts like this; empty: it can."""
    roles = (table.ids, table.mask, table.types)
    if len(set(roles)) != len(roles) or not table.name:
        return "ids, mask and types are different inputs, and name is not empty"
    if table.ids not in inputs or not inputs.keys() <= set(roles):
        return f"[[inputs]] are {', '.join(inputs)}, not {table.ids!r} and perhaps {table.mask!r}, {table.types!r}"
    for name, (dtype, shape) in inputs.items():
        if dtype not in _TOKEN_TYPES or list(shape) != _SEQUENCE:
            return f"the input {name!r} is int64 or int32, with shape [-1]"
    if table.pooling == "none":
        if any(-1 in shape for _, shape in outputs.values()):
            return 'pooling = "none" needs outputs without a free dimension'
        if table.normalise and any(
            dtype != "float32" or len(shape) != 1 for dtype, shape in outputs.values()
        ):
            return "normalise needs outputs that are float32, with shape [h]"
        return ""
    for name, (dtype, shape) in outputs.items():
        is_sequence = len(shape) == _POOLED_DIMENSIONS and shape[0] == -1 and shape[1] > 0
        if dtype != "float32" or not is_sequence:
            return f"pooling {table.pooling!r} needs the output {name!r} to be float32, with shape [-1, h]"
    return ""
