"""The broker's retained metadata for who has no agent at hand: a session of its own for each file."""

import asyncio
import secrets
from collections.abc import Callable, Iterator

from shoal_agent.updater.retained import retained
from shoal_agent.updater.sources import MissingError
from shoal_broker.bus_errors import BusError
from shoal_broker.session import Session, SessionConfig
from shoal_contract.errors import TopicError
from shoal_contract.topics import Topics


class MqttSource:
    """Files retained at `<root>/u/<file name>`. It keeps no session at the broker."""

    def __init__(self, host: str, port: int, root: str) -> None:
        self._host = host
        self._port = port
        self._topics = Topics(root)

    def pieces(self, name: str, *, left_s: Callable[[], float]) -> Iterator[bytes]:
        """See Source."""
        try:
            topic = self._topics.update(name)
        except TopicError as exc:
            raise MissingError(name) from exc
        try:
            data = asyncio.run(self._read(topic, left_s()))
        except (BusError, TimeoutError) as exc:
            raise OSError(str(exc) or "the broker does not answer") from exc
        if data is None:
            raise MissingError(name)
        yield data

    async def _read(self, topic: str, timeout_s: float) -> bytes | None:
        config = SessionConfig(
            host=self._host,
            port=self._port,
            client_id=f"tuf-{secrets.token_hex(4)}",
            session_expiry_s=0,
            connect_timeout_s=timeout_s,
        )
        async with asyncio.timeout(timeout_s), Session.open(config) as session:
            return await retained(session, topic, timeout_s=timeout_s)
