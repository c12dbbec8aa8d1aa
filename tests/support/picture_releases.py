"""Descriptions of releases that read pictures."""

from shoal_contract.release import ReleaseSpec, parse_spec

END = """
[golden]
file = "golden.npz"
tolerance = 0.1
[quality]
metric = "none"
value = 1.0
evaluated_on = "nothing"
"""


def items(
    shape: str = "[3, 4, 4]", encoding: str = "u8", image: str = "", version: str = "1.0.0"
) -> ReleaseSpec:
    """One that takes encoded items."""
    text = f"""
name = "parts"
version = "{version}"
[model]
file = "model.onnx"
[input]
name = "x"
dtype = "float32"
shape = {shape}
encoding = "{encoding}"
units = "0..255"
{image}
[output]
name = "y"
dtype = "float32"
shape = [2]
decode = "softmax-argmax"
labels = ["good", "bad"]
units = "1"
"""
    return parse_spec((text + END).encode())


def tensors(dtype: str = "uint8") -> ReleaseSpec:
    """One that takes a tensor."""
    text = f"""
name = "parts"
version = "2.0.0"
[model]
file = "model.onnx"
[[inputs]]
name = "pixels"
dtype = "{dtype}"
shape = [4, 4, 3]
[[outputs]]
name = "logits"
dtype = "float32"
shape = [2]
"""
    return parse_spec((text + END).encode())
