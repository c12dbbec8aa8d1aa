"""The operations that every node has. Their table is `operations`; how they are run is `commands`."""

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from shoal_agent import config as configuration
from shoal_agent import hardware
from shoal_agent.capability import document
from shoal_agent.config import AgentConfig
from shoal_agent.devices import DeviceLink
from shoal_agent.errors import OperationError
from shoal_agent.inference.router import Router
from shoal_agent.journal import Journal
from shoal_agent.operations import Operations, Tell
from shoal_agent.pipelines.roster import Roster
from shoal_agent.update import Updater
from shoal_broker.logs import RecentLines
from shoal_contract.operations import Argument, Operation

Arguments = dict[str, Any]

_MAX_LINES_BYTES = 60 * 1024
_BUNDLE_LINES = 500

_DEVICE = Argument("device", "str", "name of a [[device]] of the node", required=True, maximum=64)
_CHANNEL = Argument(
    "channel", "int", "channel of the device", required=True, minimum=0, maximum=255
)
_VALUE = Argument("value", "any", "what to set it to", required=True)
_LINES = Argument("lines", "int", "how many", default=50, minimum=1, maximum=1000)
_RELEASE = Argument("release", "str", "release id, or its beginning", required=True, minimum=4)


class BuiltIn:
    """What the built-in operations do; `declare` puts them into the table."""

    def __init__(
        self,
        *,
        config: AgentConfig,
        recent: RecentLines,
        journal: Journal,
        devices: Mapping[str, DeviceLink],
        updater: Updater,
        router: Router,
        roster: Roster,
    ) -> None:
        self._config = config
        self._recent = recent
        self._journal = journal
        self._devices = devices
        self._updater = updater
        self._router = router
        self._roster = roster
        self._started_s = time.monotonic()

    def declare(self, *, restart: Callable[[], None]) -> Operations:
        """The table of every node; `restart` ends the process and starts it again."""
        table = Operations()

        async def ops_list(_: Arguments, __: Tell) -> object:
            return [msgspec.to_builtins(operation) for operation in table.declared()]

        add = table.add
        add(Operation("ping", "answer at once", "read"), self.ping)
        add(Operation("ops.list", "the operations of this node", "read"), ops_list)
        add(Operation("config.get", "the configuration in effect", "read"), self.config_get)
        add(Operation("logs.tail", "the newest log lines", "read", (_LINES,)), self.logs_tail)
        add(Operation("diag.bundle", "a .tar.gz for a bug report", "read"), self.diag_bundle)
        add(Operation("device.list", "devices and their links", "read"), self.device_list)
        device = (_DEVICE, _CHANNEL)
        add(Operation("device.get", "read a channel", "read", device), self.device_get)
        # Not repeatable: another one may have set the channel since the power was cut.
        device_set = Operation(
            "device.set", "set a channel", "operate", (*device, _VALUE), repeatable=False
        )
        add(device_set, self.device_set)
        retry = Operation("model.retry", "try a refused release again", "operate", (_RELEASE,))
        add(retry, self.model_retry)
        stop = Operation("agent.restart", "stop and start the agent", "admin", repeatable=False)
        add(stop, self.nothing, after=restart)
        return table

    async def ping(self, _: Arguments, __: Tell) -> object:
        """Answer at once."""
        return {"uptime_s": round(time.monotonic() - self._started_s, 3)}

    async def nothing(self, _: Arguments, __: Tell) -> object:
        """The effect comes after the answer."""
        return {}

    async def config_get(self, _: Arguments, __: Tell) -> object:
        """The configuration in effect, without secrets."""
        return configuration.redacted(self._config)

    async def logs_tail(self, arguments: Arguments, _: Tell) -> object:
        """The newest lines that fit into one message."""
        lines = self._recent.tail(arguments["lines"])
        while lines and sum(map(len, lines)) > _MAX_LINES_BYTES:
            del lines[0]
        return {"lines": lines}

    async def diag_bundle(self, _: Arguments, tell: Tell) -> object:
        """What a developer asks for first, as one archive."""
        from shoal_agent import bundle  # noqa: PLC0415 - tarfile only for who asks

        await tell(0, "facts")
        facts = {
            "config.json": configuration.redacted(self._config),
            "hardware.json": msgspec.to_builtins(hardware.read(Path(self._config.state_dir))),
            "models.json": [repr(state) for state in self._updater.states()],
            "steps.json": await self._journal.steps(),
            "inference.json": {
                "router": repr(self._router.stats),
                "models": [repr(facts) for facts in self._router.describe()],
            },
            "capability.json": document.read(Path(self._config.state_dir)),
            "pipelines.json": [msgspec.structs.asdict(state) for state in self._roster.states()],
            "devices.json": [link.describe() for link in self._devices.values()],
        }
        await tell(50, "archive")
        return {
            "bundle": await asyncio.to_thread(bundle.pack, facts, self._recent.tail(_BUNDLE_LINES))
        }

    async def device_list(self, _: Arguments, __: Tell) -> object:
        """Every device with the state of its link."""
        return [link.describe() for _, link in sorted(self._devices.items())]

    async def device_get(self, arguments: Arguments, _: Tell) -> object:
        """Read a channel of a device."""
        return {"value": await self._device(arguments).get(arguments["channel"])}

    async def device_set(self, arguments: Arguments, _: Tell) -> object:
        """Set a channel of a device; done when the device says so."""
        value = arguments["value"]
        if isinstance(value, (list, dict)):
            raise OperationError("device.set: value must be a number, text, bytes, true or false")
        await self._device(arguments).set(arguments["channel"], value)
        return {"value": value}

    async def model_retry(self, arguments: Arguments, _: Tell) -> object:
        """Forgive a release that failed here."""
        forgiven = [
            await self._journal.forgive(release)
            for release in await self._journal.refused()
            if release.hex().startswith(arguments["release"])
        ]
        if not any(forgiven):
            raise OperationError("this node has refused no such release")
        self._updater.wake()
        return {"releases": len(forgiven)}

    def _device(self, arguments: Arguments) -> DeviceLink:
        name = arguments["device"]
        if name not in self._devices:
            known = ", ".join(sorted(self._devices)) or "none"
            raise OperationError(f"no device {name!r} on this node (devices: {known})")
        return self._devices[name]
