"""Which brokers a message has left behind: what goes round is stopped (decision 0021). Pure.

Every bridge of ours adds a user property when it takes a message from one broker to another: the id
of the one it leaves. It takes none to a broker that the message has been at, nor from one that it
has left before. No-local does for one bridge alone, and sees neither rings nor a second bridge.
"""

from __future__ import annotations

from hashlib import sha256

from shoal_broker.link import Properties

HOP = "shoal-via"
BROKER_ID = "shoal-broker"
"""What our own brokers tell a bridge in CONNACK."""
MAX_HOPS = 16
"""For what no id stops, like brokers that start anew at every turn."""


def upstream_id(connack: tuple[tuple[str, str], ...], host: str, port: int) -> str:
    """Who the upstream broker is: as it says, else as its address, which is good for this bridge alone."""
    for name, value in connack:
        if name == BROKER_ID and value:
            return value
    return sha256(f"{host}:{port}".encode()).hexdigest()[:16]


def may_cross(properties: Properties | None, here: str, there: str) -> bool:
    """Whether a message may go from one broker to the other."""
    if properties is None:
        return True
    left = [value for name, value in properties.user if name == HOP]
    return here not in left and there not in left and len(left) < MAX_HOPS


def leaving(properties: Properties | None, here: str) -> Properties:
    """What the message carries on the other side."""
    if properties is None:
        return Properties(user=((HOP, here),))
    return Properties(
        payload_format=properties.payload_format,
        content_type=properties.content_type,
        user=(*properties.user, (HOP, here)),
    )
