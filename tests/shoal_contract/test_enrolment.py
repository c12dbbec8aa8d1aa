"""Messages of the enrolment door: golden bytes, limits, and how keys and tokens are written."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_contract import enrolment as wire
from shoal_contract.enrolment import EnrolAnswer, EnrolRefusal, EnrolRequest
from shoal_contract.errors import ContractError, DecodeError, KeyTextError, TopicError

GOLDEN = [
    (
        EnrolRequest(node="press-4", csr=b"\x30\x00", token="A" * 43),
        b'{"node":"press-4","csr":"MAA=","token":"' + b"A" * 43 + b'"}',
    ),
    (
        EnrolRequest(node="a", csr=b"1", known_key=b"\xff" * 2, signature=b"\0", hardware="Pi"),
        b'{"node":"a","csr":"MQ==","known_key":"//8=","signature":"AA==","hardware":"Pi"}',
    ),
    (
        EnrolAnswer(state="pending", at_ms=7, retry_s=30.0),
        b'{"state":"pending","at_ms":7,"retry_s":30.0}',
    ),
    (
        EnrolAnswer(state="issued", at_ms=7, certificate="c", ca="a"),
        b'{"state":"issued","at_ms":7,"certificate":"c","ca":"a"}',
    ),
    (EnrolRefusal(error="no", why="token"), b'{"error":"no","why":"token"}'),
]


@pytest.mark.parametrize(("message", "data"), GOLDEN)
def test_the_bytes_are_these(message, data):
    assert wire.encode(message) == data
    assert wire.decode(data, type(message), max_bytes=len(data)) == message
    with pytest.raises(DecodeError, match="too many"):
        wire.decode(data, type(message), max_bytes=len(data) - 1)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b'{"node":"a"}',
        b'{"node":"a","csr":"not base64!"}',
        b'{"node":"a","csr":1}',
        b'{"node":"' + b"a" * 64 + b'","csr":"MAA="}',
        b'{"node":"a","csr":"' + b"AAAA" * 700 + b'"}',
        b'{"node":"a","csr":"MAA=","token":"' + b"A" * 65 + b'"}',
        b'{"node":"a","csr":"MAA="} trailing',
        b'{"node":"\xff","csr":"MAA="}',
        b"[" * 8000,
    ],
)
def test_what_is_no_request_is_one_kind_of_error(data):
    with pytest.raises(DecodeError):
        wire.decode(data, EnrolRequest, max_bytes=wire.MAX_REQUEST_BYTES)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_that_error(data):
    for kind in (EnrolRequest, EnrolAnswer, EnrolRefusal):
        try:
            wire.decode(data, kind, max_bytes=wire.MAX_REQUEST_BYTES)
        except DecodeError:
            continue


def test_a_later_version_may_say_more():
    data = b'{"state":"pending","at_ms":7,"retry_s":1.0,"next":"x"}'
    assert wire.decode(data, EnrolAnswer, max_bytes=100).retry_s == 1.0


def test_what_a_known_key_signs_names_the_node_and_the_whole_request():
    proofs = {wire.proof(node, csr) for node in ("a", "b") for csr in (b"", b"1", b"2")}
    assert len(proofs) == 6
    assert len({proof[:20] for proof in proofs}) <= 2
    with pytest.raises(TopicError):
        wire.proof("a\0b", b"")


@given(st.binary(min_size=32, max_size=32))
def test_a_sha256_is_read_as_it_was_written_and_as_openssl_prints_it(digest):
    text = wire.sha256_text(digest)
    colons = ":".join(f"{byte:02X}" for byte in digest)
    for way in (text, text.upper().replace("SHA256", "sha256"), digest.hex(), colons, f" {text}\n"):
        assert wire.parse_sha256(way) == digest


@given(st.text(max_size=80))
def test_other_texts_are_none(text):
    with contextlib.suppress(KeyTextError):
        assert len(wire.parse_sha256(text)) == 32
    with contextlib.suppress(ContractError):
        assert len(wire.token_digest(text)) == 32


def test_a_token_is_forty_three_characters():
    assert wire.token_digest("a" * 43) != wire.token_digest("b" * 43)
    for wrong in ("", "a" * 42, "a" * 44, "a" * 42 + "\n", "ä" * 43, "a" * 43 + "\n"):
        with pytest.raises(DecodeError):
            wire.token_digest(wrong)
