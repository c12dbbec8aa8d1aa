"""The embedded MQTT 5 broker: a core without I/O under a thin asyncio shell.

    async with Broker.open(BrokerConfig(host="127.0.0.1", port=0)) as broker:
        print(broker.port)

It keeps everything in memory, so that a restart forgets sessions and retained messages, unless `durable_dir` is set.
"""

from typing import TYPE_CHECKING

from shoal_broker.server.config import BrokerConfig

if TYPE_CHECKING:
    from shoal_broker.server.shell import Broker

__all__ = ["Broker", "BrokerConfig"]


def __getattr__(name: str) -> object:
    """`Broker` is loaded when it is wanted: a board has no codec, and runs the doctor all the same."""
    if name == "Broker":
        from shoal_broker.server.shell import Broker  # noqa: PLC0415 - see above

        return Broker
    raise AttributeError(name)
