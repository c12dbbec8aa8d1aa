"""Messages of the bus, topics and device frames as JSON with names: what people and other programs read.

Pure. Bytes become hex and states their names, as everywhere in what the controller says in JSON.
"""

from enum import Enum, IntEnum
from typing import Any

import msgspec

from shoal_contract.frames import Frame, Kind, Op, Status
from shoal_contract.topics import (
    Address,
    ChunkTopic,
    DoorTopic,
    GroupTopic,
    NodeTopic,
    UpdateTopic,
)
from shoal_fleet.plain import plain


def named_fields(part: msgspec.Struct) -> dict[str, Any]:
    """The fields of a message or of a piece of one, by name."""
    return {name: _named(getattr(part, name)) for name in part.__struct_fields__}


def named_address(address: Address) -> dict[str, Any]:
    """What a topic says."""
    match address:
        case NodeTopic(node, channel, leaf):
            return {"node": node, "channel": channel.name.lower(), **_leaf(leaf)}
        case DoorTopic(user, node, channel, leaf):
            door = {"door": user, "node": node, "channel": channel.name.lower()}
            return {**door, **_leaf(leaf)}
        case GroupTopic(group):
            return {"group": group, "channel": "commands"}
        case ChunkTopic(digest, index):
            return {"blob": digest.hex(), "chunk": index}
        case UpdateTopic(name):
            return {"update": name}


def named_frame(frame: Frame) -> dict[str, Any]:
    """A device frame; a reply's first argument is its status."""
    found: dict[str, Any] = {
        "frame": frame.kind.name.lower(),
        "seq": frame.seq,
        "op": _name_in(Op, frame.op),
        "args": plain(frame.args),
    }
    if frame.kind is Kind.REPLY and frame.args:
        found["status"] = _name_in(Status, frame.args[0])
    return found


def _named(value: object) -> Any:
    match value:
        case msgspec.Struct():
            return named_fields(value)
        case Enum():
            return value.name.lower()
        case list() | tuple():
            return [_named(item) for item in value]
        case _:
            return plain(value)


def _leaf(leaf: str | None) -> dict[str, str]:
    return {} if leaf is None else {"leaf": leaf}


def _name_in(kind: type[IntEnum], number: object) -> object:
    """The number's name; numbers of a product's own firmware have none."""
    if type(number) is int and number in set(kind):
        return kind(number).name.lower()
    return plain(number)
