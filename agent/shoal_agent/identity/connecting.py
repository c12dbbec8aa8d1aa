"""How the session to the broker uses the board's own identity, and waits until there is one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from shoal_agent.config import AgentConfig
from shoal_agent.identity.store import IdentityStore
from shoal_broker.link import Connect, Link, SessionConfig, Will


def uses_identity(config: AgentConfig, store: IdentityStore) -> bool:
    """Whether we show the broker the certificate that we enrolled for: the configuration names no other."""
    if config.broker.cert_file is not None:
        return False
    if config.enrolment is not None:
        return True
    return config.broker.ca_file is None and store.facts() is not None


def session_config(config: AgentConfig, store: IdentityStore) -> SessionConfig:
    """The session to open.

    Raises:
        BrokerTableError: a file that the configuration names cannot be used.
    """
    if not uses_identity(config, store):
        return config.broker.session(config.node, named=config.node)
    broker = config.broker
    tls = store.tls_files(ca_file=broker.ca_file, server_name=broker.server_name)
    return broker.session(config.node, tls=replace(tls, named=config.node))


def once_enrolled(connect: Connect, enrolled: asyncio.Event) -> Connect:
    """The same way to the broker, which is not taken before there is a certificate to show there."""

    @asynccontextmanager
    async def waiting(config: SessionConfig, will: Will | None) -> AsyncIterator[Link]:
        await enrolled.wait()
        async with connect(config, will) as link:
            yield link

    return waiting
