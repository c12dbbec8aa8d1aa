import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_contract import cbor, envelope, messages
from shoal_contract.envelope import Envelope
from shoal_contract.errors import EncodeError, EnvelopeError, KeyTextError
from shoal_contract.messages import MAX_MESSAGE_BYTES, Command, Wanted
from shoal_contract.signatures import Signer, Verifier

# RFC 8032, 7.1, test 1.
SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC_KEY = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
COMMAND = messages.encode(
    Command(bytes(range(8)), "device.set", {"device": "meter", "value": 7}, 1000, 2000)
)
NODE_TOPIC, GROUP_TOPIC = "shoal/n/press-4/c", "shoal/g/oven/c"

# Written by pycose 1.1.0, which shares no code with ours, from the same key, message and topic: a
# Sign1Message with algorithm and key id in the protected header, encoded without its tag.
GOLDEN = {
    NODE_TOPIC: "8447a20127044221fea0583287014800010203040506076a6465766963652e736574a266646576696365656d657465726576616c7565071903e81907d0045840e3654a85aaf854a642da33a8891e0ffa8c556c42bd097e3686955c3110c33044be42ec0b88f441e93b436b776f98d86740459eb87fe0c3aed34e695b1754be0c",
    GROUP_TOPIC: "8447a20127044221fea0583287014800010203040506076a6465766963652e736574a266646576696365656d657465726576616c7565071903e81907d004584057422c8512294787c0acb05a514e559557256bdcb19bd7b3d2170a2cec491404f2e30b24a3c34afda67dbe415d5a2dcfb3f087d0ffb848c1f0478cddbfcc2800",
}
# A wanted state, put together with cbor2 and cryptography alone:
# [7, 1767225600000, 1767225600000, [], ["oven"], 12, b""].
WANTED = messages.encode(Wanted(1767225600000, 1767225600000, [], ["oven"], 12))
WANTED_TOPIC = "shoal/n/press-4/w"
WANTED_GOLDEN = "8447a20127044221fea0581d87071b0000019b76daa8001b0000019b76daa8008081646f76656e0c405840d077c83e7512e7a3a7542a3deb870a10c941df0b7eeafe05b98575977f97b8947a91ecc654323f0e93e1cb816693fb542e436bed2092c31fee98170974881c06"

signer = Signer(SEED)
verifier = Verifier([PUBLIC_KEY])
good = signer.sign(COMMAND, topic=NODE_TOPIC)


def reason(data, *, topic=NODE_TOPIC, by=verifier, **limits):
    with pytest.raises(EnvelopeError) as caught:
        by.open(data, topic=topic, **limits)
    return caught.value.reason


@pytest.mark.parametrize("topic", GOLDEN)
def test_an_envelope_is_what_another_implementation_of_cose_writes(topic):
    assert signer.public_key == PUBLIC_KEY
    assert signer.sign(COMMAND, topic=topic).hex() == GOLDEN[topic]


def test_a_signed_wanted_state_stays_the_same_bytes():
    assert signer.sign(WANTED, topic=WANTED_TOPIC).hex() == WANTED_GOLDEN
    payload, key = verifier.open(bytes.fromhex(WANTED_GOLDEN), topic=WANTED_TOPIC)
    assert (payload, key) == (WANTED, PUBLIC_KEY)
    assert reason(bytes.fromhex(WANTED_GOLDEN), topic="shoal/n/press-5/w") == "bad_signature"


@pytest.mark.parametrize("topic", GOLDEN)
def test_what_another_implementation_signed_is_taken(topic):
    assert verifier.open(bytes.fromhex(GOLDEN[topic]), topic=topic)[0] == COMMAND


def test_the_signature_is_over_the_structure_of_rfc_9052():
    # Spelled out by hand, without our encoder: array of 4, text, byte strings.
    identity = hashlib.sha256(PUBLIC_KEY).digest()[:2]
    protected = b"\xa2\x01\x27\x04\x42" + identity
    topic = NODE_TOPIC.encode()
    by_hand = (
        b"\x84\x6aSignature1"
        + (bytes([0x40 + len(protected)]) + protected)
        + (bytes([0x40 + len(topic)]) + topic)
        + (b"\x58" + bytes([len(COMMAND)]) + COMMAND)
    )
    assert envelope.to_be_signed(COMMAND, key_id=identity, topic=NODE_TOPIC) == by_hand


@pytest.mark.parametrize("size", [1, 23, 24, 25, 255, 256, 4096, 65_535])
def test_a_signature_costs_at_most_80_bytes(size):
    assert len(signer.sign(bytes(size), topic=NODE_TOPIC)) - size <= 80


def test_a_signed_command_is_good_on_its_own_topic_only():
    for topic in (
        GROUP_TOPIC,
        "shoal/n/press-5/c",
        "other/n/press-4/c",
        "shoal/n/press-4/w",
        "",
    ):
        assert reason(good, topic=topic) == "bad_signature"
    assert verifier.open(good, topic=NODE_TOPIC)[0] == COMMAND


def test_a_key_that_nobody_named_does_not_count():
    stranger = Signer(b"\x01" * 32)
    assert reason(stranger.sign(COMMAND, topic=NODE_TOPIC)) == "unknown_key"
    assert reason(good, by=Verifier([])) == "unknown_key"
    assert reason(good, by=Verifier([stranger.public_key])) == "unknown_key"


def test_a_forger_who_names_a_key_that_counts_needs_that_key():
    stranger = Signer(b"\x01" * 32)
    forged = envelope.unpack(stranger.sign(COMMAND, topic=NODE_TOPIC))
    named = Envelope(envelope.key_id(PUBLIC_KEY), forged.payload, forged.signature)
    assert reason(envelope.pack(named)) == "bad_signature"


def test_two_keys_that_share_an_id_both_count():
    # Found by counting: 16 bits meet soon.
    first: dict[bytes, Signer] = {}
    for number in range(5000):
        one = Signer(number.to_bytes(32, "big"))
        other = first.setdefault(envelope.key_id(one.public_key), one)
        if other is not one:
            break
    else:
        pytest.fail("no two keys share an id")
    both = Verifier([one.public_key, other.public_key])
    for key in (one, other):
        assert both.open(key.sign(COMMAND, topic=NODE_TOPIC), topic=NODE_TOPIC) == (
            COMMAND,
            key.public_key,
        )
    assert reason(other.sign(COMMAND, topic=NODE_TOPIC), by=Verifier([one.public_key])) == (
        "bad_signature"
    )


def test_no_bit_of_an_envelope_may_change():
    for at in range(len(good) * 8):
        flipped = bytearray(good)
        flipped[at // 8] ^= 1 << at % 8
        with pytest.raises(EnvelopeError):
            verifier.open(bytes(flipped), topic=NODE_TOPIC)


def test_no_message_looks_like_an_envelope():
    assert envelope.is_signed(good)
    for kind in messages.KINDS:
        for length in range(24):
            assert not envelope.is_signed(bytes([0x80 + length]) + cbor.encode(kind))
    assert not envelope.is_signed(b"")
    assert not envelope.is_signed(b"\x84")
    assert reason(COMMAND) == "unsigned"
    assert reason(b"") == "unsigned"


def _assembled(*items):
    return cbor.encode(list(items))


PROTECTED = b"\xa2\x01\x27\x04\x42" + envelope.key_id(PUBLIC_KEY)
SIGNATURE = envelope.unpack(good).signature


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(_assembled(PROTECTED, {4: b"x"}, COMMAND, SIGNATURE), id="unprotected header"),
        pytest.param(_assembled(b"", {}, COMMAND, SIGNATURE), id="no protected header"),
        pytest.param(_assembled(b"\xa1\x01\x27", {4: PROTECTED[-2:]}, COMMAND, SIGNATURE), id="key id unprotected"),
        pytest.param(_assembled(b"\xa2\x01\x26" + PROTECTED[3:], {}, COMMAND, SIGNATURE), id="another algorithm"),
        pytest.param(_assembled(PROTECTED[:4] + b"\x43abc", {}, COMMAND, SIGNATURE), id="longer key id"),
        pytest.param(_assembled(PROTECTED, {}, None, SIGNATURE), id="detached payload"),
        pytest.param(_assembled(PROTECTED, {}, COMMAND, SIGNATURE[:-1]), id="short signature"),
        pytest.param(_assembled(PROTECTED, {}, COMMAND, SIGNATURE + b"\0"), id="long signature"),
        pytest.param(_assembled(PROTECTED, [], COMMAND, SIGNATURE), id="no map"),
        pytest.param(_assembled(PROTECTED, {}, COMMAND, "text"), id="text signature"),
        pytest.param(good + b"\0", id="trailing"),
        pytest.param(good[:-1], id="cut"),
        pytest.param(good.replace(b"\x58\x32", b"\x59\x00\x32", 1), id="longer length than needed"),
        pytest.param(b"\x84\x5f", id="indefinite"),
        pytest.param(b"\x84" + b"\x40" * 2, id="three missing"),
    ],
)  # fmt: skip
def test_an_envelope_has_one_form(data):
    assert data[:1] == b"\x84"
    with pytest.raises(EnvelopeError) as caught:
        verifier.open(data, topic=NODE_TOPIC)
    assert caught.value.reason in {"shape", "unsigned"}


def test_a_tagged_envelope_is_none():
    assert reason(b"\xd2" + good) == "unsigned"


def test_the_size_is_looked_at_first():
    assert reason(good, max_bytes=len(good) - 1) == "shape"
    assert verifier.open(good, topic=NODE_TOPIC, max_bytes=len(good))[0] == COMMAND


def test_what_is_too_large_when_signed_is_not_signed():
    with pytest.raises(EncodeError):
        signer.sign(bytes(MAX_MESSAGE_BYTES - 60), topic=NODE_TOPIC)
    assert len(signer.sign(bytes(MAX_MESSAGE_BYTES - 81), topic=NODE_TOPIC)) == MAX_MESSAGE_BYTES


@given(st.binary(max_size=400) | st.binary(max_size=200).map(lambda tail: good[:10] + tail))
def test_any_bytes_end_in_one_error(data):
    with pytest.raises(EnvelopeError):
        verifier.open(data, topic=NODE_TOPIC)


@given(st.binary(max_size=300), st.text(max_size=60).filter(lambda text: text.isprintable()))
def test_what_was_signed_is_opened(payload, topic):
    assert verifier.open(signer.sign(payload, topic=topic), topic=topic) == (payload, PUBLIC_KEY)


def test_a_key_goes_to_text_and_back():
    assert envelope.parse_key(envelope.key_text(PUBLIC_KEY)) == PUBLIC_KEY


@pytest.mark.parametrize("text", ["", "AAAA", "ä", "not base64!", envelope.key_text(bytes(31))])
def test_a_text_that_is_no_key_is_an_error_that_does_not_quote_it(text):
    with pytest.raises(KeyTextError) as caught:
        envelope.parse_key(text)
    assert not text or text not in str(caught.value)
