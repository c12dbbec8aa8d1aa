import pytest

from shoal_contract.errors import FileFormatError
from shoal_contract.release import parse_spec

TENSOR = """
[[{kind}]]
name = "{name}"
dtype = "{dtype}"
shape = {shape}
"""
REST = """
[golden]
file = "golden.npz"
tolerance = 0.01

[quality]
metric = "none"
value = 1.0
evaluated_on = "nothing"
"""


def spec(text="", inputs=("input_ids", "attention_mask"), dtype="int64", shape="[-1, 384]", top=""):
    tables = [TENSOR.format(kind="inputs", name=name, dtype=dtype, shape="[-1]") for name in inputs]
    tables.append(TENSOR.format(kind="outputs", name="hidden", dtype="float32", shape=shape))
    head = f'name = "minilm"\nversion = "1.0.0"\n{top}\n[model]\nfile = "model.onnx"\n'
    return parse_spec((head + f"[text]\n{text}\n" + "".join(tables) + REST).encode())


def test_a_release_of_texts_serves_texts_and_gives_one_row_each():
    release = spec()
    (text,), (row,) = release.served
    assert (text.name, text.dtype, text.shape, text.pad) == ("text", "uint8", [-1], 0)
    assert (row.name, row.shape) == ("hidden", [384])
    assert [table.name for table in release.tensors[0]] == ["input_ids", "attention_mask"]
    assert release.files == ("release.toml", "model.onnx", "golden.npz", "tokenizer.json")


def test_a_release_without_texts_serves_what_its_model_has():
    head = 'name = "m"\nversion = "1.0.0"\n[model]\nfile = "model.onnx"\n'
    tables = [
        TENSOR.format(kind=kind, name="x", dtype="float32", shape="[4]")
        for kind in ("inputs", "outputs")
    ]
    release = parse_spec((head + "".join(tables) + REST).encode())
    assert release.served == release.tensors
    assert len(release.files) == 3


def test_a_model_that_pools_by_itself_is_asked_with_texts_too():
    assert spec('pooling = "none"', shape="[384]").served[1][0].shape == [384]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"text": 'tokenizer = "../etc"'}, "is not a plain file name"),
        ({"text": 'tokenizer = "model.onnx"'}, "tokenizer is a file of its own"),
        ({"text": 'pooling = "max"'}, "pooling"),
        ({"text": "max_tokens = 4"}, "max_tokens"),
        ({"text": "max_bytes = 70000"}, "max_bytes"),
        ({"text": 'mask = "input_ids"'}, "different inputs"),
        ({"text": "pad_id = 1"}, "pad_id"),
        ({"inputs": ("attention_mask",)}, "inputs.. are attention_mask, not 'input_ids'"),
        ({"inputs": ("input_ids", "position_ids")}, "position_ids, not 'input_ids'"),
        ({"dtype": "float32"}, "'input_ids' is int64 or int32"),
        ({"shape": "[384]"}, "pooling 'mean' needs the output 'hidden'"),
        ({"text": 'pooling = "none"'}, "without a free dimension"),
        ({"text": 'pooling = "none"', "shape": "[2, 3]"}, "normalise needs outputs"),
        ({"top": "batch = false"}, "without batch = false"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(options, reason):
    with pytest.raises(FileFormatError, match=reason):
        spec(**options)
