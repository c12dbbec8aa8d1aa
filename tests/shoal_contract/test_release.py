import hashlib

import pytest

from shoal_contract import messages, release
from shoal_contract.errors import DecodeError, FileFormatError

GOOD = """
name = "digits"
version = "1.0.0"
[model]
file = "model.onnx"
[input]
name = "image"
dtype = "float32"
shape = [1, 8, 8]
encoding = "u5"
scale = 0.0625
units = "grey level"
[output]
name = "logits"
dtype = "float32"
shape = [2]
decode = "softmax-argmax"
labels = ["a", "b"]
units = "digit"
[golden]
file = "golden.npz"
tolerance = 0.05
[quality]
metric = "accuracy"
value = 0.9
evaluated_on = "rows"
"""


def test_a_good_specification_is_read():
    spec = release.parse_spec(GOOD.encode())
    assert spec.files == ("release.toml", "model.onnx", "golden.npz")
    assert (spec.input.values, spec.input.item_bytes) == (64, 40)


@pytest.mark.parametrize(("encoding", "size"), [("u5", 40), ("u8", 64), ("f32", 256)])
def test_an_item_has_the_length_its_encoding_says(encoding, size):
    spec = release.parse_spec(GOOD.replace('"u5"', f'"{encoding}"').encode())
    assert spec.input.item_bytes == size


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('name = "digits"', 'name = "digits"\ncolour = 1', "unknown key `colour`"),
        ("tolerance = 0.05", "", r"\[golden\] missing key `tolerance`"),
        ("tolerance = 0.05", "tolerance = -1", "golden.tolerance"),
        ('"1.0.0"', '"1.0"', "must be like 1.2.3"),
        ('"digits"', '"../digits"', "must be a-z"),
        ('"model.onnx"', '"../../etc/passwd"', "not a plain file name"),
        ('"model.onnx"', '"release.toml"', "not a plain file name"),
        ('"model.onnx"', '"golden.npz"', "are the same"),
        ('"u5"', '"u3"', "input.encoding"),
        ("[1, 8, 8]", "[0]", "input.shape"),
        ('["a", "b"]', '["a"]', "1 labels for shape"),
        ("shape = [2]", "shape = [2", "not TOML"),
    ],
)
def test_a_wrong_specification_names_the_file_and_the_key(old, new, says):
    with pytest.raises(FileFormatError, match=says) as caught:
        release.parse_spec(GOOD.replace(old, new).encode(), source="here/release.toml")
    assert str(caught.value).startswith("here/release.toml: ")


def test_bytes_that_are_no_text_are_refused():
    with pytest.raises(FileFormatError, match="not UTF-8"):
        release.parse_spec(b"\xff\xfe")


FILES = {"release.toml": GOOD.encode(), "model.onnx": b"model", "golden.npz": b"golden"}


def test_a_manifest_lists_every_file_by_its_digest():
    data = release.build_manifest(release.parse_spec(GOOD.encode()), FILES)
    manifest = release.parse_manifest(data, release=hashlib.sha256(data).digest())
    assert {entry.name: entry.digest for entry in manifest.files} == {
        name: hashlib.sha256(content).digest() for name, content in FILES.items()
    }


def test_a_manifest_lists_the_operators_that_the_model_uses():
    used = [messages.OperatorSet("", 17, ["MatMul", "Relu"])]
    data = release.build_manifest(release.parse_spec(GOOD.encode()), FILES, used)
    manifest = release.parse_manifest(data, release=hashlib.sha256(data).digest())
    assert manifest.operator_sets == used


def test_a_manifest_that_is_not_the_one_asked_for_is_refused():
    data = release.build_manifest(release.parse_spec(GOOD.encode()), FILES)
    with pytest.raises(DecodeError, match="not the one"):
        release.parse_manifest(data, release=bytes(32))


@pytest.mark.parametrize("names", [["../x", "release.toml"], ["release.toml"] * 2, ["model.onnx"]])
def test_a_manifest_whose_names_could_do_harm_is_refused(names):
    data = messages.encode(
        messages.Manifest("x", "1.0.0", [messages.FileEntry(name, 1, bytes(32)) for name in names])
    )
    with pytest.raises(DecodeError):
        release.parse_manifest(data, release=hashlib.sha256(data).digest())


def test_versions_are_ordered_by_number():
    assert release.version_key("1.10.0") > release.version_key("1.9.9")


TENSORS = """
name = "pair"
version = "1.0.0"
[model]
file = "model.onnx"
[[inputs]]
name = "ids"
dtype = "int64"
shape = [-1]
pad = 0
[[inputs]]
name = "mask"
dtype = "bool"
shape = [-1]
[[outputs]]
name = "embedding"
dtype = "float32"
shape = [384]
[[outputs]]
name = "score"
dtype = "float32"
shape = []
units = "1"
[golden]
file = "golden.npz"
tolerance = 0.05
[quality]
metric = "cosine"
value = 0.99
evaluated_on = "sentences"
"""


def test_a_release_of_tensors_has_as_many_as_it_likes():
    spec = release.parse_spec(TENSORS.encode())
    assert spec.items is None
    _, outputs = spec.tensors
    assert [(t.name, t.dtype, t.shape, t.pad) for t in spec.inputs] == [
        ("ids", "int64", [-1], 0),
        ("mask", "bool", [-1], None),
    ]
    assert [t.shape for t in outputs] == [[384], []]


def test_a_release_of_items_says_its_tensors_too():
    spec = release.parse_spec(GOOD.encode())
    assert spec.items == (spec.input, spec.output)
    ((image,), (logits,)) = spec.tensors
    assert (image.name, image.dtype, image.shape) == ("image", "float32", [1, 8, 8])
    assert (logits.name, logits.shape, spec.batch) == ("logits", [2], True)


@pytest.mark.parametrize(
    ("text", "old", "new", "says"),
    [
        (TENSORS, '"mask"', '"ids"', "must be distinct"),
        (TENSORS, '"mask"', '""', "must be distinct"),
        (TENSORS, '"int64"', '"string"', "inputs"),
        (TENSORS, "shape = [384]", "shape = [0]", "1 or more, or -1"),
        (TENSORS, "shape = [384]", "shape = [-2]", "outputs"),
        (TENSORS, "[[outputs]]", "[[inputs]]", r"\[\[inputs\]\] and \[\[outputs\]\]"),
        (TENSORS, "shape = [-1]\npad", "shape = [4]\npad", r"with pad has shape \[-1"),
        (TENSORS, "shape = [-1]\npad", "shape = [-1, -1]\npad", r"with pad has shape \[-1"),
        (TENSORS, "shape = [384]", "shape = [-1]", "without a free dimension"),
        (TENSORS, 'version = "1.0.0"', 'version = "1.0.0"\nbatch = false', "pad needs a batch"),
        (GOOD, "[output]", "[nothing]", "unknown key"),
        (GOOD, 'version = "1.0.0"', 'version = "1.0.0"\nbatch = false', "go without"),
        (GOOD + '[[inputs]]\nname = "x"\ndtype = "bool"\nshape = []', "", "", "go without"),
    ],
)
def test_tensors_that_cannot_be_are_refused(text, old, new, says):
    with pytest.raises(FileFormatError, match=says):
        release.parse_spec(text.replace(old, new).encode())
