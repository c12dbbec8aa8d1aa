"""The embedded MQTT 5 broker: a core without I/O under a thin asyncio shell.

    async with Broker.open(BrokerConfig(host="127.0.0.1", port=0)) as broker:
        print(broker.port)

It keeps everything in memory: a restart forgets sessions and retained messages.
"""

from shoal_broker.server.config import BrokerConfig
from shoal_broker.server.shell import Broker

__all__ = ["Broker", "BrokerConfig"]
