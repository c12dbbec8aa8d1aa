"""Tells the fleet what this node is and runs: presence and reported state, both retained.

Presence is apart from the state because the last will overwrites it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import structlog

from shoal_agent import hardware
from shoal_agent.config import AgentConfig
from shoal_agent.release_tree import running_version
from shoal_agent.update import Updater
from shoal_broker.bus_errors import BusError
from shoal_broker.session import Session, Will
from shoal_contract import messages
from shoal_contract.errors import EncodeError
from shoal_contract.messages import ModelState, PipelineState, Presence, Reported
from shoal_contract.topics import Topics

if TYPE_CHECKING:
    from shoal_agent.peers.discovery import Discovery

log = structlog.get_logger()

QUIET_S = 0.2
"""Changes within this time go out as one message."""
RETRY_S = 5.0


class Reporter:
    """Publishes presence at every connection, and the state when it changed or has grown old."""

    def __init__(self, config: AgentConfig, *, topics: Topics) -> None:
        self._config = config
        self._topics = topics
        self._boot = os.urandom(4)
        self._version = running_version()
        self._since_ms = time.time_ns() // 1_000_000
        self._changed = asyncio.Event()

    def will(self) -> Will:
        """What the broker says when the connection breaks."""
        return Will(
            topic=self._topics.presence(self._config.node),
            payload=messages.encode(self._presence(online=False)),
        )

    async def on_connected(self, session: Session, session_present: bool) -> None:  # noqa: FBT001
        """Say that we are here; a broker that does not know us has not kept our state either."""
        if not session_present:
            self._changed.set()
        await self._say(session, online=True)

    async def say_goodbye(self, session: Session) -> None:
        """Say that we go on purpose; without a connection the last will has said it."""
        if session.connected:
            await self._say(session, online=False)

    async def changed(self) -> None:
        """Something that the state tells is different now."""
        self.note()

    def note(self) -> None:
        """The same, for who cannot wait."""
        self._changed.set()

    async def run(
        self,
        session: Session,
        updater: Updater,
        discovery: Discovery | None,
        pipelines: Callable[[], tuple[list[PipelineState], int]] = lambda: ([], 0),
        itself: Callable[[], list[ModelState]] = list,
    ) -> NoReturn:
        """Publish the state for ever; `itself`: where the agent's own update stands."""
        while True:
            board = await asyncio.to_thread(hardware.read, Path(self._config.state_dir))
            states, version = pipelines()
            state = Reported(
                version=self._version,
                boot=self._boot,
                at_ms=time.time_ns() // 1_000_000,
                hardware=board,
                models=[*updater.states(), *itself()],
                devices=[device.name for device in self._config.device],
                wanted_revision=updater.wanted_revision,
                role=self._config.role,
                peers=discovery.names() if discovery is not None else [],
                pipelines=states,
                pipelines_version=version,
            )
            try:
                await session.publish(
                    self._topics.state(self._config.node),
                    messages.encode(state),
                    retain=True,
                    coalesce_key="state",
                )
            except (BusError, EncodeError) as exc:
                log.warning("state not reported", reason=str(exc), retry_s=RETRY_S)
                await asyncio.sleep(RETRY_S)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._config.report_every_s):
                    await self._changed.wait()
            await asyncio.sleep(QUIET_S)
            self._changed.clear()

    def _presence(self, *, online: bool) -> Presence:
        return Presence(online=online, boot=self._boot, since_ms=self._since_ms)

    async def _say(self, session: Session, *, online: bool) -> None:
        try:
            await session.publish(
                self._topics.presence(self._config.node),
                messages.encode(self._presence(online=online)),
                retain=True,
                durable=False,
            )
        except BusError as exc:
            log.info("presence not sent", online=online, reason=str(exc))
