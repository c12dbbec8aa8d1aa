"""Items as devices send them -> float32 tensors. Only the worker process imports this (numpy)."""

from typing import Any

import numpy as np
import numpy.typing as npt

from shoal_contract.release import InputTable

_BITS_OF_U5 = np.array([16, 8, 4, 2, 1], dtype=np.uint8)


def to_tensor(raw: npt.NDArray[Any], table: InputTable) -> npt.NDArray[np.float32]:
    """The batch that the model takes: float32, [n, *shape], value * scale + offset.

    Args:
        raw: n encoded items, uint8 [n, table.item_bytes].
        table: the release's [input].
    """
    count = len(raw)
    match table.encoding:
        case "u5":
            bits = np.unpackbits(raw, axis=1)[:, : table.values * 5]
            values = bits.reshape(count, table.values, 5) @ _BITS_OF_U5
        case "u8":
            values = raw
        case "f32":
            values = np.ascontiguousarray(raw).view("<f4")
    scaled = values.astype(np.float32) * np.float32(table.scale) + np.float32(table.offset)
    return scaled.reshape(count, *table.shape)
