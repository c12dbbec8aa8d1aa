"""A pipeline by itself, and beside the release that is to read it."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_contract import pipelines
from shoal_contract.errors import ContractError, FileFormatError, MisfitError
from shoal_contract.fitting import fit
from shoal_contract.pipelines import parse, read_file
from shoal_contract.release import parse_spec

CLIMATE = {
    "stream": "climate",
    "model": "climate",
    "topic": {"filter": "z/+", "values": ["$.t", "$.h"], "units": ["°F", "%"], "convert": True},
}
PARTS = {"stream": "parts", "model": "parts", "images": {"path": "/var/spool/parts"}}
CAMERA = {"stream": "door", "model": "parts", "camera": {"url": "rtsp://10.0.0.7/live"}}

ITEMS = """
name = "{name}"
version = "1.0.0"
[model]
file = "model.onnx"
[input]
name = "x"
dtype = "float32"
shape = {shape}
encoding = "{encoding}"
units = "{units}"
{image}
[output]
name = "y"
dtype = "float32"
shape = [2]
decode = "softmax-argmax"
labels = ["dry", "damp"]
units = "1"
"""
TENSORS = """
name = "parts"
version = "2.0.0"
[model]
file = "model.onnx"
[[inputs]]
name = "pixels"
dtype = "{dtype}"
shape = [3, 8, 8]
[[outputs]]
name = "logits"
dtype = "float32"
shape = [2]
"""
END = """
[golden]
file = "golden.npz"
tolerance = 0.1
[quality]
metric = "none"
value = 1.0
evaluated_on = "nothing"
"""


def release(shape="[2]", encoding="f32", units="degC, %", image="", name="climate"):
    text = ITEMS.format(name=name, shape=shape, encoding=encoding, units=units, image=image)
    return parse_spec((text + END).encode())


def tensors(dtype="uint8"):
    return parse_spec((TENSORS.format(dtype=dtype) + END).encode())


def topic(**changes):
    return parse(CLIMATE | {"topic": CLIMATE["topic"] | changes})


def misfit(table, spec) -> str:
    with pytest.raises(MisfitError) as caught:
        fit(table, spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_declared_conversion_makes_the_values_the_releases():
    first, second = fit(parse(CLIMATE), release()).conversions
    assert first(212.0) == pytest.approx(100.0)
    assert second is None


def test_units_that_are_the_same_convert_nothing():
    assert fit(topic(units=["°C", "%"], convert=False), release()).conversions == ()


def test_another_unit_without_a_declared_conversion_is_refused_and_says_what_to_do():
    said = misfit(topic(convert=False), release())
    assert said == "$.t is in '°F', climate@1.0.0 wants 'degC': set convert = true"


def test_units_of_other_things_are_refused_whatever_is_declared():
    assert "'Pa' is not 'degC', and does not become it" in misfit(
        topic(units=["Pa", "%"]), release()
    )


def test_one_unit_is_of_all_values():
    assert fit(topic(units=["%"], convert=False), release(units="%")).conversions == ()


def test_as_many_units_as_values_are_needed():
    assert "names 3 units" in misfit(topic(), release(units="K, %, Pa"))


def test_another_encoding_is_refused():
    table = topic(encoding="u8", convert=False, units=[])
    assert "encoding 'u8': climate@1.0.0 reads 'f32'" in misfit(table, release())


def test_what_a_device_measures_is_held_against_the_units_and_never_converted():
    device = {"stream": "s", "model": "climate", "device": "oven", "channel": 1}
    fit(parse(device | {"units": "celsius"}), release(units="°C"))
    assert "cannot be converted" in misfit(parse(device | {"units": "K"}), release(units="°C"))
    fit(parse(device), release(units="°C"))


def test_a_command_needs_a_label_that_spells_a_number():
    command = {"command": {"device": "fan", "channel": 1}}
    assert 'spells a number: value = "text"' in misfit(parse(CLIMATE | command), release())
    command["command"]["value"] = "text"
    fit(parse(CLIMATE | command), release())


def test_a_picture_becomes_what_the_release_says():
    spec = release("[3, 8, 16]", "u8", "0..255", '[input.image]\ncolour = "bgr"\nfit = "cover"')
    found = fit(parse(PARTS | {"prepare": {"fit": "contain"}}), spec).preparation
    assert (found.width, found.height, found.colour, found.fit) == (16, 8, "bgr", "contain")
    assert found.element == "uint8"


def test_a_picture_for_an_input_that_is_none_is_refused():
    assert "is no picture" in misfit(parse(PARTS), release())


@pytest.mark.parametrize("dtype", ["uint8", "int8", "float32"])
def test_a_picture_becomes_a_tensor_and_the_pipeline_says_what_comes_out(dtype):
    answer = {"answer": {"output": "logits", "labels": ["good", "bad"]}}
    found = fit(parse(CAMERA | answer), tensors(dtype))
    assert (found.tensor, found.preparation.element) == ("pixels", dtype)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (CAMERA, "[pipeline.answer] has to say what they mean"),
        (CAMERA | {"answer": {"output": "y"}}, "has no output 'y'"),
        (CAMERA | {"answer": {"output": "logits", "labels": ["a"]}}, "1 labels for 2 values"),
        (CAMERA | {"answer": {"output": "logits"}, "input": "x"}, "takes pixels"),
        (CLIMATE | {"answer": {"output": "logits"}}, "only pictures become tensors"),
    ],
)
def test_what_does_not_fit_a_release_of_tensors_says_where(table, says):
    assert says in misfit(parse(table), tensors())


def test_a_type_that_no_picture_becomes_is_refused():
    table = parse(CAMERA | {"answer": {"output": "logits"}})
    assert "pictures do not become int64" in misfit(table, tensors("int64"))


def test_a_release_that_names_labels_needs_no_other():
    spec = release("[3, 8, 16]", "u8", "0..255")
    table = parse(PARTS | {"answer": {"output": "y"}})
    assert "no [pipeline.answer]" in misfit(table, spec)


def test_a_release_whose_image_contradicts_its_shape_is_none():
    with pytest.raises(FileFormatError, match="colour 'grey' does not have the 3 channels"):
        release("[3, 8, 16]", "u8", "0..255", '[input.image]\ncolour = "grey"')


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (PARTS | CAMERA, "is its source"),
        ({"stream": "s", "model": "m"}, "is its source"),
        (PARTS | {"stream": "a/b"}, "is not a name"),
        (PARTS | {"color": 1}, "unknown key `color`"),
        (PARTS | {"images": {"path": "/x", "formats": ["svg"]}}, r"\[images.formats"),
        (PARTS | {"images": {"path": "/x", "formats": []}}, r"\[images.formats"),
        (PARTS | {"channel": 1}, "only a device has a channel"),
        (CLIMATE | {"prepare": {}}, "only pictures are prepared"),
        (CLIMATE | {"units": "K"}, "units are of a device or a raw message"),
        (CLIMATE | {"topic": {"filter": "a", "values": ["t"]}}, "is no path"),
        (CLIMATE | {"topic": {"filter": "a", "values": ["$"], "units": ["K", "K"]}}, "2 units"),
        (CLIMATE | {"topic": {"filter": "a", "values": ["$"], "convert": True}}, "convert needs"),
        (CAMERA | {"camera": {"url": "file:///etc/passwd"}}, "url: /dev/video0, or one of"),
        (CAMERA | {"camera": {"url": "/etc/passwd"}}, "no /dev/video device"),
        (CAMERA | {"camera": {"url": "concat:a|b"}}, "url: /dev/video0, or one of"),
        (CAMERA | {"camera": {"url": "rtsp://u:p@10.0.0.7/"}}, "password into password_file"),
        (CAMERA | {"camera": {"url": "rtsp://[::1/"}}, "url"),
        (CAMERA | {"camera": {"url": "rtsp://h/", "username": "u"}}, "go together"),
        (PARTS | {"command": {"channel": 1}}, "name the device"),
    ],
)
def test_a_table_that_says_too_much_too_little_or_nonsense_is_one_line(table, says):
    with pytest.raises(ContractError, match=says) as caught:
        parse(table)
    assert "\n" not in str(caught.value)


def test_a_device_that_is_not_there_is_named():
    table = parse({"stream": "s", "model": "m", "device": "oven", "channel": 1})
    with pytest.raises(FileFormatError, match="'oven' is not a"):
        pipelines.check(table, ["fan"])
    pipelines.check(table)


def test_a_file_gives_its_tables_as_they_are_written():
    text = b'[[pipeline]]\nstream = "parts"\nmodel = "parts"\n[pipeline.images]\npath = "/var/spool/parts"\n'
    assert read_file(text, source="f.toml") == [PARTS]
    with pytest.raises(FileFormatError, match=r"f.toml: .*unknown key `node`"):
        read_file(b'node = "x"\n' + text, source="f.toml")
    with pytest.raises(FileFormatError, match=r"f.toml: \[\[pipeline\]\]"):
        read_file(text.replace(b'"parts"\nmodel', b'"a/b"\nmodel'), source="f.toml")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [*pipelines.PipelineTable.__struct_fields__, "path", "url", "filter"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_no_plain_values_at_all_lead_to_another_error(value):
    with contextlib.suppress(ContractError):
        parse(value if isinstance(value, dict) else {"stream": value})
