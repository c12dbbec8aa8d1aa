"""What certificates and lists of revoked ones say of themselves: numbers, dates, names. Pure.

It is read to be told to people, and to know which connection's certificate was revoked. Whether
anything of it is true only OpenSSL judges (decision 0034): nothing is let in by what stands here.
DER: X.690; certificates and lists: RFC 5280, sections 4.1 and 5.1.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from shoal_broker.bus_errors import CertificateFactsError

MAX_FILE_BYTES: Final = 16 << 20

_BEGIN = re.compile(rb"^-----BEGIN ([A-Z0-9 ]+)-----\s*$", re.MULTILINE)
_WRITTEN_TIME = re.compile(rb"([0-9]{4})" + rb"([0-9]{2})" * 5 + rb"Z")
_MAX_LENGTH_OCTETS: Final = 4
_LONG_TAG: Final = 0x1F
_INTEGER, _SEQUENCE, _OID, _UTC_TIME, _TIME = 0x02, 0x30, 0x06, 0x17, 0x18
_VERSION: Final = 0xA0
_COMMON_NAME: Final = bytes.fromhex("550403")


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """Of one certificate. `common_name` is None unless there is exactly one."""

    number: int
    common_name: str | None
    begins: datetime
    ends: datetime


@dataclass(frozen=True, slots=True)
class RevokedList:
    """What the lists of one file say together: serial numbers, and when the first of them ends."""

    numbers: frozenset[int]
    ends: datetime | None


NOTHING_REVOKED: Final = RevokedList(frozenset(), None)


def read_certificate(pem: bytes) -> CertificateFacts:
    """Of the first certificate in a file. Raises CertificateFactsError."""
    for der in _blocks(pem, b"CERTIFICATE"):
        return _certificate(der)
    raise CertificateFactsError("holds no certificate in PEM form")


def read_revoked(pem: bytes) -> RevokedList:
    """Of every list in a file. Raises CertificateFactsError when one of them is not whole."""
    lists = [_revoked(der) for der in _blocks(pem, b"X509 CRL")]
    if not lists:
        raise CertificateFactsError("holds no list of revoked certificates in PEM form")
    ends = [each.ends for each in lists if each.ends is not None]
    return RevokedList(
        frozenset().union(*(each.numbers for each in lists)), min(ends) if ends else None
    )


# --- PEM


def _blocks(pem: bytes, label: bytes) -> Iterator[bytes]:
    """The DER of every block of this kind; a block without its end is an error."""
    if len(pem) > MAX_FILE_BYTES:
        raise CertificateFactsError(f"is larger than {MAX_FILE_BYTES} bytes")
    at = 0
    while (begin := _BEGIN.search(pem, at)) is not None:
        end = pem.find(b"-----END " + begin[1] + b"-----", begin.end())
        if end < 0:
            raise CertificateFactsError("ends in the middle of what it holds")
        at = end
        if begin[1] != label:
            continue
        try:
            yield binascii.a2b_base64(b"".join(pem[begin.end() : end].split()), strict_mode=True)
        except binascii.Error as exc:
            raise CertificateFactsError(f"is no base64: {exc}") from exc


# --- DER

Element = tuple[int, int, int]
"""Its tag, and where its content begins and ends."""


def _element(der: bytes, at: int, end: int) -> Element:
    if end - at < 2:  # noqa: PLR2004 - a tag and a length
        raise CertificateFactsError("is cut off")
    tag, length, begin = der[at], der[at + 1], at + 2
    if tag & _LONG_TAG == _LONG_TAG:
        raise CertificateFactsError("has a tag that no certificate has")
    if length & 0x80:
        octets = length & 0x7F
        if not 1 <= octets <= _MAX_LENGTH_OCTETS or octets > end - begin:
            raise CertificateFactsError("has a length that is none")
        length = int.from_bytes(der[begin : begin + octets], "big")
        begin += octets
    if length > end - begin:
        raise CertificateFactsError("is cut off")
    return tag, begin, begin + length


def _elements(der: bytes, begin: int, end: int) -> Iterator[Element]:
    while begin < end:
        found = _element(der, begin, end)
        yield found
        begin = found[2]


def _inside(der: bytes, element: Element, tag: int) -> list[Element]:
    """The parts of an element that must have this tag."""
    if element[0] != tag:
        raise CertificateFactsError("is of another kind")
    return list(_elements(der, element[1], element[2]))


def _signed(der: bytes) -> list[Element]:
    """The parts of what is signed in a certificate or a list."""
    outermost = _element(der, 0, len(der))
    if outermost[2] != len(der):
        raise CertificateFactsError("has something behind its end")
    parts = _inside(der, outermost, _SEQUENCE)
    if not parts:
        raise CertificateFactsError("is empty")
    return _inside(der, parts[0], _SEQUENCE)


def _number(der: bytes, element: Element) -> int:
    tag, begin, end = element
    if tag != _INTEGER or begin == end:
        raise CertificateFactsError("has a number that is none")
    return int.from_bytes(der[begin:end], "big", signed=True)


def _time(der: bytes, element: Element) -> datetime:
    tag, begin, end = element
    text = der[begin:end]
    if tag == _UTC_TIME:
        # RFC 5280, 4.1.2.5.1.
        text = (b"20" if text[:2] < b"50" else b"19") + text
    found = _WRITTEN_TIME.fullmatch(text)
    if tag not in (_UTC_TIME, _TIME) or found is None:
        raise CertificateFactsError("has a time that is none")
    year, month, day, hour, minute, second = map(int, found.groups())
    try:
        return datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError as exc:
        raise CertificateFactsError("has a time that is none") from exc


# --- X.509


def _certificate(der: bytes) -> CertificateFacts:
    parts = _signed(der)
    if parts and parts[0][0] == _VERSION:
        parts = parts[1:]
    # Number, algorithm, issuer, validity, subject.
    if len(parts) < 5:  # noqa: PLR2004 - see above
        raise CertificateFactsError("is no certificate")
    validity = _inside(der, parts[3], _SEQUENCE)
    if len(validity) != 2:  # noqa: PLR2004 - from and until
        raise CertificateFactsError("has no dates")
    return CertificateFacts(
        number=_number(der, parts[0]),
        common_name=_common_name(der, parts[4]),
        begins=_time(der, validity[0]),
        ends=_time(der, validity[1]),
    )


def _common_name(der: bytes, subject: Element) -> str | None:
    names = []
    for group in _inside(der, subject, _SEQUENCE):
        for pair in _elements(der, group[1], group[2]):
            oid, value, *_ = [*_inside(der, pair, _SEQUENCE), (0, 0, 0), (0, 0, 0)]
            if oid[0] == _OID and der[oid[1] : oid[2]] == _COMMON_NAME:
                names.append(der[value[1] : value[2]].decode("utf-8", "replace"))
    return names[0] if len(names) == 1 else None


def _revoked(der: bytes) -> RevokedList:
    parts = _signed(der)
    if parts and parts[0][0] == _INTEGER:
        parts = parts[1:]
    # Algorithm, issuer, this update.
    if len(parts) < 3:  # noqa: PLR2004 - see above
        raise CertificateFactsError("is no list of revoked certificates")
    rest = parts[3:]
    ends = None
    if rest and rest[0][0] in (_UTC_TIME, _TIME):
        ends = _time(der, rest.pop(0))
    numbers = frozenset[int]()
    if rest and rest[0][0] == _SEQUENCE:
        numbers = frozenset(
            _number(der, _element(der, entry[1], entry[2]))
            for entry in _inside(der, rest[0], _SEQUENCE)
        )
    return RevokedList(numbers, ends)
