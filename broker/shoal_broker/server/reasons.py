"""Why something was refused, in words for the clients that want them. Pure."""

from shoal_broker.server.connection import Connection

FAILURES_FROM = 0x80

LARGEST_ANSWER_BYTES = 256
"""With the longest of these texts, without the codes of a SUBACK or UNSUBACK."""

WORDS = {
    0x87: "not allowed",
    0x8F: "the topic filter is none, or has too many levels",
    0x90: "the topic is the server's own, or has too many levels",
    0x97: "a limit of the broker is reached",
}


def words(connection: Connection, reason_code: int, *, codes: int = 1) -> str | None:
    """The reason string for an answer with this code, among as many `codes`.

    None where there is nothing to explain, where the client wants none (MQTT 5, 3.1.2.11.7) or where
    it would make the packet larger than the client takes (3.4.2.2.2).
    """
    if reason_code < FAILURES_FROM or not connection.wants_reasons:
        return None
    if connection.max_packet_bytes < LARGEST_ANSWER_BYTES + codes:
        return None
    return WORDS.get(reason_code)


def parting_words(connection: Connection, reason: str) -> str | None:
    """The reason string for CONNACK or DISCONNECT, which every client may be told; None: no room."""
    # A fixed header of 5 bytes, the flags and code, and the length and head of the property.
    size_bytes = len(reason.encode()) + 16
    return reason if size_bytes <= connection.max_packet_bytes else None
