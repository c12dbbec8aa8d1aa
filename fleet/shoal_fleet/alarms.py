"""The silent-node alarm: one log line and one webhook call when a node goes silent, one when it is back.

Many at once are one alarm. A node with the label `parked` may be silent. The time in which the controller was down or the broker away
does not count, nor does the step of a clock that was set: patience starts anew behind it.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

import httpx
import structlog

from shoal_fleet.clock import ListeningTime, now_ms
from shoal_fleet.registry import Registry

log = structlog.get_logger(__name__)

PARKED_LABEL: Final = "parked"
WEBHOOK_TIMEOUT_S: Final = 10.0
WEBHOOK_ATTEMPTS: Final = 3
MAX_WAITING: Final = 1000
TOLD_ONE_BY_ONE: Final = 10
"""More that go, or come back, at one look are one alarm."""


class Alarms:
    """Which nodes are silent now.

    Attributes:
        silent: their names.
        webhook_failures: alarms that the webhook did not take.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        silent_after_s: float,
        webhook_url: str | None,
        is_listening: Callable[[], bool] = lambda: True,
    ) -> None:
        self.silent: set[str] = set()
        self.webhook_failures = 0
        self._registry = registry
        self._silent_after_s = silent_after_s
        self._webhook_url = webhook_url
        self._is_listening = is_listening
        self._listening_since_ms = now_ms()
        self._time = ListeningTime(self._listening_since_ms, time.monotonic())
        # When those who are silent were last seen: whoever was seen since is back.
        self._last_seen_ms: dict[str, int] = {}
        self._to_tell: asyncio.Queue[dict[str, Any]] = asyncio.Queue(MAX_WAITING)

    async def watch(self) -> NoReturn:
        """Look for ever, often enough that an alarm is late by at most a tenth."""
        while True:
            self.look_now()
            await self._registry.flush()
            await asyncio.sleep(min(self._silent_after_s / 10, 5.0))

    def look_now(self) -> None:
        """Raise and clear alarms, after a look at whether the time that passed counts."""
        at_ms = now_ms()
        if self._time.uncounted_ms(at_ms, time.monotonic(), listening=self._is_listening()):
            self._listening_since_ms = at_ms
        self.look(at_ms)

    def look(self, at_ms: int) -> None:
        """Raise and clear alarms as of now."""
        gone: dict[str, float] = {}
        back: dict[str, float] = {}
        for name, node in self._registry.nodes.items():
            seen_ms = self._registry.last_seen_ms[name]
            if not seen_ms:
                # On a list, and not mounted yet.
                continue
            silent_s = (at_ms - max(seen_ms, self._listening_since_ms)) / 1000
            parked = PARKED_LABEL in node.labels
            if name not in self.silent:
                if silent_s > self._silent_after_s and not parked:
                    self.silent.add(name)
                    self._last_seen_ms[name] = seen_ms
                    gone[name] = silent_s
            elif parked or seen_ms != self._last_seen_ms[name]:
                self.silent.discard(name)
                back[name] = silent_s
        self._announce("node is silent", "nodes are silent", gone, log.error)
        self._announce("node is back", "nodes are back", back, log.info)

    def _announce(
        self, one: str, many: str, nodes: Mapping[str, float], say: Callable[..., Any]
    ) -> None:
        """Of a site that lost its line a person wants one message, not hundreds."""
        if len(nodes) > TOLD_ONE_BY_ONE:
            names = sorted(nodes)[:TOLD_ONE_BY_ONE]
            say(many, nodes=len(nodes), first=names)
            self.tell(many, names[0], nodes=len(nodes), first=names)
            return
        for name, silent_s in nodes.items():
            say(one, node=name, silent_s=round(silent_s))
            self._tell(one, name, silent_s)

    async def deliver(self) -> NoReturn:
        """Post alarms to the webhook for ever; one that cannot be posted is logged and counted."""
        async with httpx.AsyncClient(timeout=WEBHOOK_TIMEOUT_S) as client:
            while True:
                await self._post(client, await self._to_tell.get())

    def tell(self, event: str, node: str, **facts: Any) -> None:
        """Post an alarm about a node to the webhook, where there is one."""
        if self._webhook_url is None:
            return
        try:
            self._to_tell.put_nowait({"event": event, "node": node, **facts, "at_ms": now_ms()})
        except asyncio.QueueFull:
            self.webhook_failures += 1

    def _tell(self, event: str, node: str, silent_s: float) -> None:
        self.tell(
            event,
            node,
            silent_s=round(silent_s, 1),
            last_seen_ms=self._registry.last_seen_ms[node],
        )

    async def _post(self, client: httpx.AsyncClient, alarm: dict[str, Any]) -> None:
        if self._webhook_url is None:
            return
        reason = ""
        for attempt in range(WEBHOOK_ATTEMPTS):
            if attempt:
                await asyncio.sleep(2.0**attempt)
            try:
                (await client.post(self._webhook_url, json=alarm)).raise_for_status()
            except (httpx.HTTPError, httpx.InvalidURL) as exc:
                reason = str(exc) or type(exc).__name__
            else:
                return
        self.webhook_failures += 1
        log.error("webhook did not take the alarm", node=alarm["node"], reason=reason)
