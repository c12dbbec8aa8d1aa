"""Items as devices send them -> float32 tensors. Only the worker process imports this (numpy)."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shoal_contract.release import InputTable

_BITS_OF_U5 = np.array([16, 8, 4, 2, 1], dtype=np.uint8)


def to_tensor(items: Sequence[bytes], table: InputTable) -> npt.NDArray[np.float32]:
    """The batch that the model takes: float32, [n, *shape], value * scale + offset.

    Args:
        items: n encoded items of `table.item_bytes` each.
        table: the release's [input].

    Raises:
        ValueError: an item of another length.
    """
    if any(len(item) != table.item_bytes for item in items):
        raise ValueError(f"an item does not have {table.item_bytes} bytes")
    raw = np.frombuffer(b"".join(items), dtype=np.uint8).reshape(len(items), table.item_bytes)
    match table.encoding:
        case "u5":
            bits = np.unpackbits(raw, axis=1)[:, : table.values * 5]
            values = bits.reshape(len(items), table.values, 5) @ _BITS_OF_U5
        case "u8":
            values = raw
        case "f32":
            values = raw.view("<f4")
    scaled = values.astype(np.float32) * np.float32(table.scale) + np.float32(table.offset)
    return scaled.reshape(len(items), *table.shape)
