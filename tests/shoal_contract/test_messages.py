import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_contract import cbor, messages
from shoal_contract import messages as m
from shoal_contract.errors import DecodeError, EncodeError, UnknownKindError

ID = bytes(range(8))
RELEASE = b"\x11" * 32
BLOB = m.BlobRef(b"\x22" * 32, 70_000, 65_536, b"\x33" * 32)

EXAMPLES = {
    "command": m.Command(ID, "device.set", {"device": "meter", "value": 7}, 1000, 2000),
    "cancel": m.Cancel(ID),
    "command update": m.CommandUpdate(ID, m.State.SUCCEEDED, 1500, "", {"ok": True}, 100),
    "cancelled": m.Cancelled(ID, m.CancelAnswer.TOO_LATE, 1500, "it is done"),
    "presence": m.Presence(online=True, boot=b"boot", since_ms=1),
    "reported": m.Reported(
        version="0.1.0",
        boot=b"boot",
        at_ms=5,
        hardware=m.Hardware(
            "Pi 4", "Debian", "aarch64", 4, 1 << 30, 1 << 20, 48.5, False, ["asimd"]
        ),
        models=[m.ModelState("digits", RELEASE, "1.0.0", RELEASE, m.Phase.SERVING)],
        devices=["meter"],
        pipelines=[m.PipelineState("climate", True, False, "no")],
        pipelines_version=8,
    ),
    "wanted": m.Wanted(
        3,
        9,
        [m.ModelWanted("digits", RELEASE, BLOB, [BLOB], [m.DeltaOffer(RELEASE, RELEASE, BLOB)])],
        ["oven"],
        300,
        b"signed",
    ),
    "pipelines": m.Pipelines(
        8, 7, [m.PipelineWanted("climate", {"stream": "climate", "topic": {"values": ["$.t"]}})]
    ),
    "chunks missing": m.ChunksMissing(RELEASE, [1, 5]),
    "reading": m.Reading("meter", 1, 42, "7", 0.5, b"\x11" * 8, "n1", 1234, 900),
    "infer request": m.InferRequest(
        ID,
        "digits",
        [b"\x00" * 4],
        tensors=[m.TensorPart("x", "uint8", [1, 2], b"ab")],
        outputs=["y"],
    ),
    "infer reply": m.InferReply(
        ID, "n2", RELEASE, [m.Answer("7", 0.5)], tensors=[m.TensorPart("y", "uint8", [1], b"c")]
    ),
    "chunk request": m.ChunkRequest(ID, RELEASE, 65_536, 4096),
    "chunk reply": m.ChunkReply(ID, b"abc"),
    "manifest": m.Manifest(
        "digits",
        "1.0.0",
        [m.FileEntry("model.onnx", 3, RELEASE)],
        [m.OperatorSet("", 17, ["Conv"])],
    ),
    "receipt": m.Receipt(bytes(range(16))),
    "policy": m.Policy(
        2, 7, [m.Mandate(RELEASE, "ops", ["device.*"], ["oven"], True, 99)], [RELEASE], ["*"], ["x"]
    ),
}

# What these messages have looked like on the wire since their first version. A change here means that
# boards in the field stop understanding the fleet: add fields at the end instead.
GOLDEN = {
    "command": "87014800010203040506076a6465766963652e736574a266646576696365656d657465726576616c7565071903e81907d004",
    "cancel": "8202480001020304050607",
    "command update": "8703480001020304050607031905dc60a1626f6bf51864",
    "cancelled": "8504480001020304050607021905dc6a697420697320646f6e65",
    "presence": "8405f544626f6f7401",
    "reported": "8c0665302e312e3044626f6f74058964506920346644656269616e6761617263683634041a400000001a00100000fb4048400000000000f481656173696d64818c666469676974735820111111111111111111111111111111111111111111111111111111111111111165312e302e3058201111111111111111111111111111111111111111111111111111111111111111046000406000000081656d6574657200646e6f646580818467636c696d617465f5f4626e6f08",
    "wanted": "870703098185666469676974735820111111111111111111111111111111111111111111111111111111111111111184582022222222222222222222222222222222222222222222222222222222222222221a000111701a00010000582033333333333333333333333333333333333333333333333333333333333333338184582022222222222222222222222222222222222222222222222222222222222222221a000111701a00010000582033333333333333333333333333333333333333333333333333333333333333338183582011111111111111111111111111111111111111111111111111111111111111115820111111111111111111111111111111111111111111111111111111111111111184582022222222222222222222222222222222222222222222222222222222222222221a000111701a000100005820333333333333333333333333333333333333333333333333333333333333333381646f76656e19012c467369676e6564",
    "chunks missing": "830858201111111111111111111111111111111111111111111111111111111111111111820105",
    "reading": "8a09656d6574657201182a6137fb3fe0000000000000481111111111111111626e311904d2190384",
    "infer request": "880a480001020304050607666469676974738144000000001903e800818461786575696e7438820102426162816179",
    "infer reply": "870b480001020304050607626e325820111111111111111111111111111111111111111111111111111111111111111181826137fb3fe000000000000060818461796575696e743881014163",
    "chunk request": "8512480001020304050607582011111111111111111111111111111111111111111111111111111111111111111a00010000191000",
    "chunk reply": "84134800010203040506074361626360",
    "manifest": "850c6664696769747365312e302e3081836a6d6f64656c2e6f6e6e780358201111111111111111111111111111111111111111111111111111111111111111818360118164436f6e76",
    "receipt": "820d50000102030405060708090a0b0c0d0e0f",
    "policy": "870e0207818658201111111111111111111111111111111111111111111111111111111111111111636f707381686465766963652e2a81646f76656ef51863815820111111111111111111111111111111111111111111111111111111111111111181612a816178",
    "pipelines": "84110807818267636c696d617465a26673747265616d67636c696d61746565746f706963a16676616c7565738163242e74",
}

BEFORE_TENSORS = {
    "infer request": "860a480001020304050607666469676974738144000000001903e800",
    "infer reply": "860b480001020304050607626e325820111111111111111111111111111111111111111111111111111111111111111181826137fb3fe000000000000060",
}
BEFORE_PIPELINES = {
    "reported": "8a0665302e312e3044626f6f74058964506920346644656269616e6761617263683634041a400000001a00100000fb4048400000000000f481656173696d648188666469676974735820111111111111111111111111111111111111111111111111111111111111111165312e302e30582011111111111111111111111111111111111111111111111111111111111111110460004081656d6574657200646e6f646580",
    "wanted": "860703098185666469676974735820111111111111111111111111111111111111111111111111111111111111111184582022222222222222222222222222222222222222222222222222222222222222221a000111701a00010000582033333333333333333333333333333333333333333333333333333333333333338184582022222222222222222222222222222222222222222222222222222222222222221a000111701a00010000582033333333333333333333333333333333333333333333333333333333333333338183582011111111111111111111111111111111111111111111111111111111111111115820111111111111111111111111111111111111111111111111111111111111111184582022222222222222222222222222222222222222222222222222222222222222221a000111701a000100005820333333333333333333333333333333333333333333333333333333333333333381646f76656e19012c",
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_message_comes_back(name):
    assert messages.decode(messages.encode(EXAMPLES[name])) == EXAMPLES[name]


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_bytes_of_a_message_never_change(name):
    assert messages.encode(EXAMPLES[name]).hex() == GOLDEN[name]


def test_every_kind_has_an_example():
    kinds = {cbor.decode(messages.encode(e), max_bytes=9999)[0] for e in EXAMPLES.values()}
    assert kinds == messages.KINDS


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_newer_version_may_add_fields_at_the_end(name):
    items = cbor.decode(messages.encode(EXAMPLES[name]), max_bytes=9999)
    assert messages.decode(cbor.encode([*items, "news"])) == EXAMPLES[name] or len(items) < len(
        msgspec.structs.fields(EXAMPLES[name])
    )


def test_an_older_version_leaves_out_what_has_a_default():
    items = cbor.decode(messages.encode(EXAMPLES["reading"]), max_bytes=999)
    assert messages.decode(cbor.encode(items[:-1])).latency_us == 0


def test_a_manifest_from_before_operators_were_listed_lists_none():
    items = cbor.decode(messages.encode(EXAMPLES["manifest"]), max_bytes=999)
    assert messages.decode(cbor.encode(items[:-1])).operator_sets == []


@pytest.mark.parametrize("name", BEFORE_TENSORS)
def test_what_nodes_asked_and_answered_before_tensors_travelled_has_none(name):
    nothing = {"tensors": [], "outputs": []} if name == "infer request" else {"tensors": []}
    decoded = messages.decode(bytes.fromhex(BEFORE_TENSORS[name]))
    assert decoded == msgspec.structs.replace(EXAMPLES[name], **nothing)


@pytest.mark.parametrize("name", BEFORE_PIPELINES)
def test_what_nodes_and_controllers_said_before_there_were_pipelines_says_nothing_of_them(name):
    decoded = messages.decode(bytes.fromhex(BEFORE_PIPELINES[name]))
    nothing = {"pipelines": [] if name == "reported" else b""}
    if name == "reported":
        nothing["pipelines_version"] = 0
    assert decoded == msgspec.structs.replace(EXAMPLES[name], **nothing)


def test_an_unknown_kind_is_told_apart_from_damage():
    with pytest.raises(UnknownKindError) as caught:
        messages.decode(cbor.encode([23, "anything"]))
    assert caught.value.kind == 23


@pytest.mark.parametrize(
    "value",
    [[], {}, "x", 7, [True, 1], ["1"], [1], [1, "short"], [2, b"short"], [5, 1, b"boot", 1]],
)
def test_a_wrong_shape_is_a_decode_error(value):
    with pytest.raises(DecodeError):
        messages.decode(cbor.encode(value))


@given(st.binary(max_size=80))
def test_any_bytes_end_in_a_message_or_a_decode_error(data):
    with contextlib.suppress(DecodeError):
        messages.decode(data)


@given(st.sampled_from(sorted(EXAMPLES)), st.integers(0, 10_000), st.integers(0, 7))
def test_a_flipped_bit_ends_in_a_message_or_a_decode_error(name, position, bit):
    data = bytearray(messages.encode(EXAMPLES[name]))
    data[position % len(data)] ^= 1 << bit
    with contextlib.suppress(DecodeError):
        messages.decode(bytes(data))


def test_bytes_stay_bytes_and_text_stays_text():
    with pytest.raises(DecodeError):
        messages.decode(cbor.encode([2, "AAAAAAAAAAA="]))


def test_a_message_that_could_not_travel_is_refused_by_its_sender():
    with pytest.raises(EncodeError, match="may travel"):
        messages.encode(m.CommandUpdate(ID, m.State.SUCCEEDED, 1, result=bytes(100_000)))


def test_the_wrong_kind_is_named():
    with pytest.raises(DecodeError, match="a Cancel where a Reading belongs"):
        messages.decode_as(messages.encode(EXAMPLES["cancel"]), m.Reading)


def test_a_command_with_a_25_byte_body_stays_small():
    command = m.Command(
        ID, "device.set", {"channel": 2, "value": 7}, 1_800_000_000_000, 1_800_000_060_000
    )
    assert len(messages.encode(command)) <= 64
