"""MQTT 5 topic names and topic filters: are they valid, does one match the other. Pure.

Which topics Shoal uses is `shoal_contract.topics`' business; this is section 4.7 of the standard.
"""

from __future__ import annotations

from functools import lru_cache

from shoal_broker.bus_errors import TopicError

MAX_TOPIC_BYTES = 65_535
SHARE_PREFIX = "$share/"


# Programs publish to the same topics, and receive on the same, over and over.
@lru_cache(maxsize=1024)
def check_topic(topic: str) -> None:
    """Raise TopicError unless `topic` may be published to."""
    _check_text(topic, "topic")
    if "+" in topic or "#" in topic:
        raise TopicError(f"{topic!r}: a topic to publish to has no wildcards")


def check_filter(topic_filter: str) -> None:
    """Raise TopicError unless `topic_filter` may be subscribed to, `$share/name/filter` included."""
    _check_text(topic_filter, "topic filter")
    levels = topic_filter.split("/")
    if topic_filter.startswith(SHARE_PREFIX):
        if len(levels) < 3 or not levels[1] or not "".join(levels[2:]):  # noqa: PLR2004 - $share, name, filter
            raise TopicError(f"{topic_filter!r}: a shared filter is $share/name/filter")
        if "+" in levels[1] or "#" in levels[1]:
            raise TopicError(f"{topic_filter!r}: the name of a share has no wildcards")
        levels = levels[2:]
    for position, level in enumerate(levels):
        if "#" in level and (level != "#" or position != len(levels) - 1):
            raise TopicError(f"{topic_filter!r}: '#' stands alone and at the end")
        if "+" in level and level != "+":
            raise TopicError(f"{topic_filter!r}: '+' stands alone between slashes")


@lru_cache(maxsize=8192)
def matches(topic_filter: str, topic: str) -> bool:
    """Return whether a message on `topic` belongs to the valid `topic_filter`."""
    if topic_filter.startswith(SHARE_PREFIX):
        topic_filter = topic_filter.split("/", 2)[2]
    if topic_filter == topic:
        return True
    wanted = topic_filter.split("/")
    levels = topic.split("/")
    if topic.startswith("$") and wanted[0] in ("+", "#"):
        return False
    for position, level in enumerate(wanted):
        if level == "#":
            return True
        if position >= len(levels) or level not in ("+", levels[position]):
            return False
    return len(wanted) == len(levels)


def _check_text(text: str, what: str) -> None:
    try:
        size_bytes = len(text.encode())
    except UnicodeEncodeError as exc:
        raise TopicError(f"{text!r}: not a {what}: it is no valid Unicode") from exc
    if not 0 < size_bytes <= MAX_TOPIC_BYTES:
        raise TopicError(f"a {what} has 1 to {MAX_TOPIC_BYTES} bytes, not {size_bytes}")
    if "\0" in text:
        raise TopicError(f"{text!r}: a {what} has no NUL")
