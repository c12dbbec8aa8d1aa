import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shoal_agent.inference.encodings import to_tensor
from shoal_contract.release import InputTable


def table(encoding: str, *shape: int, scale: float = 1.0, offset: float = 0.0) -> InputTable:
    return InputTable(
        name="x",
        dtype="float32",
        shape=list(shape),
        encoding=encoding,
        scale=scale,
        offset=offset,
        units="",
    )


def raw(*items: bytes) -> np.ndarray:
    return np.frombuffer(b"".join(items), np.uint8).reshape(len(items), -1)


def pack_u5(values: list[int]) -> bytes:
    bits = "".join(f"{value:05b}" for value in values)
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


@given(
    st.integers(1, 70).flatmap(
        lambda n: st.lists(
            st.lists(st.integers(0, 31), min_size=n, max_size=n), min_size=1, max_size=5
        )
    )
)
def test_u5_gives_back_what_was_packed_most_significant_bit_first(batch):
    tensor = to_tensor(raw(*map(pack_u5, batch)), table("u5", len(batch[0])))
    assert tensor.dtype == np.float32
    assert tensor.tolist() == batch


def test_u8_is_scaled_shifted_and_shaped():
    tensor = to_tensor(
        raw(*[bytes([0, 1, 2, 255])] * 2), table("u8", 1, 2, 2, scale=0.5, offset=-1)
    )
    assert tensor.shape == (2, 1, 2, 2)
    assert tensor[1].tolist() == [[[-1.0, -0.5], [0.0, 126.5]]]


def test_f32_is_little_endian():
    tensor = to_tensor(raw(bytes.fromhex("0000803f000000c0")), table("f32", 2))
    assert tensor.tolist() == [[1.0, -2.0]]
