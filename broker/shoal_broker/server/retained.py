"""The last retained message of every topic, found by topic filter, within limits. Pure."""

from shoal_broker.server.journal import Journal
from shoal_broker.server.messages import Message

LEVEL_BYTES = 256
"""What a level costs in memory that no other topic shares: a short topic may have 128 of them."""


class _Node:
    __slots__ = ("children", "message")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.message: Message | None = None


class RetainedStore:
    """Retained messages in a trie of topic levels. `size_bytes` is what they count as."""

    def __init__(self, *, max_messages: int, max_bytes: int) -> None:
        self.size_bytes = 0
        self.journal: Journal | None = None
        """Told of every change, if they are to survive the process."""
        self.looked_at = 0
        """Topic levels that the last `match` went through."""
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._root = _Node()
        self._messages: dict[str, Message] = {}
        self._expiring: set[str] = set()

    def __len__(self) -> int:
        return len(self._messages)

    def get(self, topic: str) -> Message | None:
        """The message of exactly this topic."""
        return self._messages.get(topic)

    def put(self, message: Message) -> bool:
        """Keep `message` instead of the one before. False (and nothing changed) at the limit."""
        topic = message.topic
        earlier = self._messages.get(topic)
        size_bytes = self.size_bytes + message.size_bytes + self._levels_bytes(topic)
        if earlier is not None:
            size_bytes -= earlier.size_bytes
        elif len(self._messages) >= self._max_messages:
            return False
        if size_bytes > self._max_bytes:
            return False
        self.restore(message)
        if self.journal is not None:
            self.journal.retained(message)
        return True

    def restore(self, message: Message) -> None:
        """Keep `message` whatever the limits are: it was accepted once."""
        topic = message.topic
        earlier = self._messages.get(topic)
        node = self._root
        for level in topic.split("/"):
            child = node.children.get(level)
            if child is None:
                child = node.children[level] = _Node()
                self.size_bytes += LEVEL_BYTES
            node = child
        node.message = message
        self._messages[topic] = message
        self.size_bytes += message.size_bytes - (0 if earlier is None else earlier.size_bytes)
        _book(message, message.size_bytes)
        if earlier is not None:
            _book(earlier, -earlier.size_bytes)
        if message.expires_at_s is None:
            self._expiring.discard(topic)
        else:
            self._expiring.add(topic)

    def clear(self, topic: str) -> None:
        """Forget the message of `topic`, if there is one."""
        message = self._messages.pop(topic, None)
        if message is None:
            return
        if self.journal is not None:
            self.journal.cleared(topic)
        self.size_bytes -= message.size_bytes
        _book(message, -message.size_bytes)
        self._expiring.discard(topic)
        path: list[tuple[_Node, str]] = []
        node = self._root
        for level in topic.split("/"):
            path.append((node, level))
            node = node.children[level]
        node.message = None
        for parent, level in reversed(path):
            child = parent.children[level]
            if child.children or child.message is not None:
                break
            del parent.children[level]
            self.size_bytes -= LEVEL_BYTES

    def match(self, topic_filter: str) -> list[Message]:
        """The messages whose topic belongs to `topic_filter`, oldest branch first."""
        levels = topic_filter.split("/")
        nodes = [self._root]
        self.looked_at = 0
        for position, level in enumerate(levels):
            if level == "#":
                # `a/#` includes `a`; at the very start there is nothing above.
                below = _all_below(nodes if position else self._visible(self._root))
                self.looked_at += len(below)
                return [node.message for node in below if node.message is not None]
            following: list[_Node] = []
            for node in nodes:
                if level == "+":
                    following += self._visible(node)
                elif level in node.children:
                    following.append(node.children[level])
            nodes = following
            self.looked_at += len(nodes)
        return [node.message for node in nodes if node.message is not None]

    def drop_expired(self, now_s: float) -> int:
        """Forget what has expired. Returns how many."""
        expired = [topic for topic in self._expiring if self._messages[topic].has_expired(now_s)]
        for topic in expired:
            self.clear(topic)
        return len(expired)

    def _levels_bytes(self, topic: str) -> int:
        """What the levels of `topic` will cost that are not there yet."""
        levels = topic.split("/")
        node = self._root
        for depth, level in enumerate(levels):
            child = node.children.get(level)
            if child is None:
                return (len(levels) - depth) * LEVEL_BYTES
            node = child
        return 0

    def _visible(self, node: _Node) -> list[_Node]:
        """What a wildcard below `node` sees: at the start, no topic that begins with $."""
        if node is not self._root:
            return list(node.children.values())
        return [child for level, child in node.children.items() if not level.startswith("$")]


def _book(message: Message, size_bytes: int) -> None:
    if message.ledger is not None:
        message.ledger.retained_bytes += size_bytes


def _all_below(nodes: list[_Node]) -> list[_Node]:
    found: list[_Node] = []
    waiting = list(reversed(nodes))
    while waiting:
        node = waiting.pop()
        found.append(node)
        waiting.extend(reversed(node.children.values()))
    return found
