"""How many bytes Shoal's messages are, in CBOR beside JSON and Protobuf. For bus.py; nothing is sent.

JSON: objects with the fields' names, without spaces, bytes as base64, defaults left out. Protobuf: the
same fields numbered in order below a `oneof` of all kinds, proto3 (defaults left out, packed numbers),
by the wire encoder below and not by the protobuf package; values of any type are google.protobuf.Value.
The examples are those whose golden bytes the tests pin.
"""

from __future__ import annotations

import importlib.util
import struct
from enum import IntEnum
from pathlib import Path
from typing import Any

import msgspec

from measure import BenchError
from shoal_broker import client_packets
from shoal_broker.link import Outbound
from shoal_contract import messages
from shoal_contract.envelope import KEY_BYTES
from shoal_contract.signatures import Signer
from shoal_contract.topics import Topics

EXAMPLES = Path(__file__).parents[1] / "tests" / "shoal_contract" / "test_messages.py"
BODY_BYTES = 25
NODE = "n17"
LONGER_NODE = "gw-00417"
EXPIRY_S = 60


def command_bytes(node: str = NODE, *, is_signed: bool = False) -> int:
    """A command with a body of BODY_BYTES as a PUBLISH at QoS 1, with its message expiry."""
    topic, payload = Topics().commands(node), bytes(BODY_BYTES)
    if is_signed:
        payload = Signer(bytes(KEY_BYTES)).sign(payload, topic=topic)
    message = Outbound(topic=topic, payload=payload, expiry_s=EXPIRY_S)
    return len(client_packets.publish_packet(message, 1))


def sizes() -> dict[str, tuple[int, int, int]]:
    """CBOR, JSON and Protobuf bytes of every kind's example, by name."""
    examples = _examples()
    found = {int(str(e.__struct_config__.tag)) for e in examples.values()}
    if missing := messages.KINDS - found:
        raise BenchError(f"kinds without an example in {EXAMPLES.name}: {sorted(missing)}")
    return {
        name: (len(messages.encode(example)), len(to_json(example)), len(to_protobuf(example)))
        for name, example in examples.items()
    }


def to_json(message: msgspec.Struct) -> bytes:
    """The object that people would write."""
    kind = type(message).__name__
    return msgspec.json.encode({"kind": kind} | _named(message))


def to_protobuf(message: msgspec.Struct) -> bytes:
    """One message of the `oneof`."""
    return _field(int(str(message.__struct_config__.tag)), _protobuf_struct(message))


def _examples() -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location("message_examples", EXAMPLES)
    if spec is None or spec.loader is None:
        raise BenchError(f"{EXAMPLES} cannot be read")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    examples: dict[str, Any] = module.EXAMPLES
    return examples


# ------------------------------------------------------------------ JSON
def _named(struct_: msgspec.Struct) -> dict[str, Any]:
    shown = {}
    for field in msgspec.structs.fields(struct_):
        value = getattr(struct_, field.name)
        if value != field.default and not (value == [] and not field.required):
            shown[field.name] = _plain(value)
    return shown


def _plain(value: object) -> object:
    if isinstance(value, msgspec.Struct):
        return _named(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


# ------------------------------------------------------------------ Protobuf
def _protobuf_struct(struct_: msgspec.Struct) -> bytes:
    encoded = b""
    for number, field in enumerate(msgspec.structs.fields(struct_), start=1):
        value = getattr(struct_, field.name)
        # A result may be of any type, as the arguments of a command are.
        encoded += (
            _field(number, _any(value))
            if field.type is Any and value is not None
            else _field(number, value)
        )
    return encoded


def _field(number: int, value: object) -> bytes:
    """A field as proto3 writes it: nothing for a default."""
    match value:
        case None | False | 0 | 0.0 | "" | b"" | []:
            return b""
        case bool() | IntEnum() | int():
            return _varint(number << 3) + _varint(int(value))
        case float():
            return _varint(number << 3 | 1) + struct.pack("<d", value)
        case str():
            return _lengthy(number, value.encode())
        case bytes():
            return _lengthy(number, value)
        case msgspec.Struct():
            return _lengthy(number, _protobuf_struct(value))
        case dict():
            return b"".join(
                _lengthy(number, _field(1, key) + _lengthy(2, _any(item)))
                for key, item in value.items()
            )
        case list() if all(isinstance(item, int) for item in value):
            return _lengthy(number, b"".join(_varint(item) for item in value))
        case list():
            # Repeated: an empty item is written, too.
            return b"".join(_field(number, item) or _lengthy(number, b"") for item in value)
    raise BenchError(f"no Protobuf for a {type(value).__name__}")


def _any(value: object) -> bytes:
    """A google.protobuf.Value, whose members are written even when they are defaults."""
    match value:
        case None:
            return b"\x08\x00"
        case bool():
            return b"\x20" + _varint(int(value))
        case int() | float():
            return b"\x11" + struct.pack("<d", value)
        case str():
            return _lengthy(3, value.encode())
        case dict():
            return _lengthy(5, _field(1, value))
        case list():
            return _lengthy(6, b"".join(_lengthy(1, _any(item)) for item in value))
    raise BenchError(f"no google.protobuf.Value for a {type(value).__name__}")


def _lengthy(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
