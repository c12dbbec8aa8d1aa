"""The answer to CONNECT: refused with which code, or accepted with which promises. Pure."""

from shoal_broker.codec import (
    ConnAckPacket,
    ConnAckReasonCode,
    ConnectPacket,
)
from shoal_broker.server.access import Rights
from shoal_broker.server.config import BrokerConfig, Login
from shoal_broker.server.connection import Connection
from shoal_broker.server.router import MAX_LEVELS

MAX_CLIENT_ID_CHARACTERS = 256


def refusal(packet: ConnectPacket, connection: Connection) -> tuple[ConnAckReasonCode, str] | None:
    """Why this CONNECT cannot be accepted, before its password is looked at; None when it can."""
    if packet.authentication_method is not None:
        return ConnAckReasonCode.BAD_AUTHENTICATION_METHOD, "no extended authentication here"
    if len(packet.client_id) > MAX_CLIENT_ID_CHARACTERS:
        return (
            ConnAckReasonCode.CLIENT_ID_NOT_VALID,
            f"a client id has at most {MAX_CLIENT_ID_CHARACTERS} characters",
        )
    login = connection.login
    if login is Login.PASSWORD and (packet.username is None or packet.password is None):
        return (
            ConnAckReasonCode.BAD_USER_NAME_OR_PASSWORD,
            "this broker wants a user name and a password",
        )
    if login is Login.CERTIFICATE and not connection.identity:
        return (
            ConnAckReasonCode.BAD_USER_NAME_OR_PASSWORD,
            "the certificate does not say in one CN who the client is",
        )
    will = packet.will
    if will is not None and (will.topic.startswith("$") or will.topic.count("/") >= MAX_LEVELS):
        return ConnAckReasonCode.TOPIC_NAME_INVALID, "a will cannot go to this topic"
    return None


def denial(
    packet: ConnectPacket, rights: Rights | None, *, identity: str | None, owner: str | None
) -> tuple[ConnAckReasonCode, str] | None:
    """Why `identity` may not have this connection; None when it may.

    `owner` is whose session the client id is already.
    """
    if owner is not None and owner != identity:
        return ConnAckReasonCode.CLIENT_ID_NOT_VALID, "this client id is another user's"
    if rights is not None and packet.will is not None and not rights.may_write(packet.will.topic):
        return ConnAckReasonCode.NOT_AUTHORIZED, "a will may not go to this topic"
    return None


def acceptance(
    config: BrokerConfig, *, session_present: bool, assigned_client_id: str | None
) -> ConnAckPacket:
    """The CONNACK that says what this broker does and how much of it."""
    return ConnAckPacket(
        session_present=session_present,
        assigned_client_id=assigned_client_id,
        receive_max=config.receive_max,
        max_packet_size=config.max_packet_bytes,
        topic_alias_max=config.max_topic_aliases,
    )
