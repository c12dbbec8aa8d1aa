"""The answer to CONNECT: refused with which code, or accepted with which promises. Pure."""

from shoal_broker.codec import (
    ConnAckPacket,
    ConnAckReasonCode,
    ConnectPacket,
)
from shoal_broker.server.access import Rights
from shoal_broker.server.bridge.hops import BROKER_ID
from shoal_broker.server.config import BrokerConfig, Login
from shoal_broker.server.connection import Connection
from shoal_broker.server.reserved import is_own_state, is_reserved_client_id
from shoal_broker.server.router import MAX_LEVELS

MAX_CLIENT_ID_CHARACTERS = 256
BANNED = "this user is banned"


def refusal(packet: ConnectPacket, connection: Connection) -> tuple[ConnAckReasonCode, str] | None:
    """Why this CONNECT cannot be accepted, before its password is looked at; None when it can."""
    if packet.authentication_method is not None:
        return ConnAckReasonCode.BAD_AUTHENTICATION_METHOD, "no extended authentication here"
    if len(packet.client_id) > MAX_CLIENT_ID_CHARACTERS:
        return (
            ConnAckReasonCode.CLIENT_ID_NOT_VALID,
            f"a client id has at most {MAX_CLIENT_ID_CHARACTERS} characters",
        )
    if is_reserved_client_id(packet.client_id):
        return (
            ConnAckReasonCode.CLIENT_ID_NOT_VALID,
            "client ids that begin with $ are the broker's",
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
    if will is not None:
        is_reserved = will.topic.startswith("$") and not is_own_state(will.topic, packet.client_id)
        if is_reserved or will.topic.count("/") >= MAX_LEVELS:
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
    if rights is not None and rights.names_client and is_reserved_client_id(rights.identity):
        return ConnAckReasonCode.CLIENT_ID_NOT_VALID, "names that begin with $ are the broker's"
    will = packet.will
    if will is None or rights is None or is_own_state(will.topic, packet.client_id):
        return None
    if not rights.may_write(will.topic):
        return ConnAckReasonCode.NOT_AUTHORIZED, "a will may not go to this topic"
    return None


def keep_alive_s(packet: ConnectPacket, connection: Connection, config: BrokerConfig) -> int:
    """The keep alive that holds: what the client asks for, up to the limit where there is one.

    A client of MQTT 3.1.1 cannot be told of another one.
    """
    limit_s = config.max_keep_alive_s if connection.is_mqtt5 else 0
    if limit_s and not 0 < packet.keep_alive <= limit_s:
        return limit_s
    return packet.keep_alive


def session_expiry_s(packet: ConnectPacket, config: BrokerConfig) -> int:
    """How long the session is kept without a connection: what the client asks for, up to the limit."""
    return min(packet.session_expiry_interval, config.max_session_expiry_s)


def acceptance(
    packet: ConnectPacket,
    config: BrokerConfig,
    *,
    session_present: bool,
    client_id: str,
    keep_alive_s: int,
    broker_id: str = "",
) -> ConnAckPacket:
    """The CONNACK that says what this broker does and how much of it, to a bridge also who it is.

    What is as the client asked for is not repeated: its absence says so.
    """
    expiry_s = session_expiry_s(packet, config)
    return ConnAckPacket(
        session_present=session_present,
        session_expiry_interval=None if expiry_s == packet.session_expiry_interval else expiry_s,
        assigned_client_id=None if packet.client_id else client_id,
        server_keep_alive=None if keep_alive_s == packet.keep_alive else keep_alive_s,
        response_info=_response_topics(packet, config, client_id),
        receive_max=config.receive_max,
        max_packet_size=config.max_packet_bytes,
        topic_alias_max=config.max_topic_aliases,
        user_properties=[(BROKER_ID, broker_id)] if broker_id else [],
    )


def _response_topics(packet: ConnectPacket, config: BrokerConfig, client_id: str) -> str | None:
    """The topic below which replies for this client may go; only told to who asks (3.2.2.3.15)."""
    if not packet.request_response_info or not config.response_topics:
        return None
    # A client id may be what a topic cannot hold, or reach into somebody else's branch.
    if any(character in client_id for character in "+#/\0"):
        return None
    return f"{config.response_topics}/{client_id}"
