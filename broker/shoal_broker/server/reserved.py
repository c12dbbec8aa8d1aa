"""Names that belong to the broker itself: topics with `$`, and the client ids of what runs inside. Pure."""

INSIDE_PREFIX = "$bridge/"
LARGEST_STATE_BYTES = 20
"""1, 0 or a number: anybody may call itself a bridge."""
_CONNECTION_TOPIC = "$SYS/broker/connection/{}/{}"


def inside_client_id(name: str) -> str:
    """The client id of a bridge inside this process: none from outside may have one like it."""
    return f"{INSIDE_PREFIX}{name}"


def is_reserved_client_id(client_id: str) -> bool:
    """Whether a client from outside may not call itself so."""
    return client_id.startswith("$")


def state_topic(client_id: str) -> str:
    """Where a bridge tells whether it stands, 1 or 0, as mosquitto's bridges do."""
    return _CONNECTION_TOPIC.format(client_id.removeprefix(INSIDE_PREFIX), "state")


def queued_topic(client_id: str) -> str:
    """Where a bridge of ours tells how many messages wait to go out."""
    return _CONNECTION_TOPIC.format(client_id.removeprefix(INSIDE_PREFIX), "queued")


def is_own_state(topic: str, client_id: str) -> bool:
    """Whether it is where this client tells its state, if it is a bridge: no rule need grant that."""
    return topic.startswith("$") and topic in (state_topic(client_id), queued_topic(client_id))
