import pytest

from shoal_contract.errors import FileFormatError, MisfitError
from shoal_contract.fitting import Fit, fit
from shoal_contract.pipelines import AnswerTable, PipelineTable, TopicTable, check
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


LABELS = AnswerTable(output="hidden", decode="argmax")


def pipeline(encoding="text", answer=LABELS, **topic):
    source = TopicTable(filter="notes/+", values=("$.note",), encoding=encoding, **topic)
    return PipelineTable(stream="notes", model="minilm", topic=source, answer=answer)


def test_a_pipeline_of_texts_fits_a_release_of_texts_by_the_name_of_its_input():
    assert fit(pipeline(), spec('name = "note"')) == Fit(tensor="note")


def test_labels_are_held_against_what_is_pooled():
    answer = AnswerTable(output="hidden", labels=("calm", "alarm"))
    assert fit(pipeline(answer=answer), spec(shape="[-1, 2]")).tensor == "text"
    with pytest.raises(MisfitError, match="2 labels for 384 values"):
        fit(pipeline(answer=answer), spec())


def test_only_texts_fit_a_release_of_texts_and_nothing_else_takes_them():
    with pytest.raises(MisfitError, match='with encoding = "text" gives'):
        fit(pipeline("f32"), spec())
    head = 'name = "m"\nversion = "1.0.0"\n[model]\nfile = "model.onnx"\n'
    tables = [
        TENSOR.format(kind="inputs", name="x", dtype="float32", shape="[4]"),
        TENSOR.format(kind="outputs", name="hidden", dtype="float32", shape="[4]"),
    ]
    with pytest.raises(MisfitError, match="takes no texts"):
        fit(pipeline(), parse_spec((head + "".join(tables) + REST).encode()))


def test_texts_have_no_units():
    with pytest.raises(FileFormatError, match="texts have no units"):
        check(pipeline(units=("degC",)))
