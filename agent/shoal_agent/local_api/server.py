"""Where the local API listens."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from shoal_agent.background import Background
from shoal_agent.config import LocalApiTable
from shoal_agent.errors import ConfigError
from shoal_agent.local_api.access import Access, read_token
from shoal_agent.local_api.http import HttpConnection
from shoal_agent.local_api.inside import LocalApi
from shoal_agent.local_api.service import Service


@asynccontextmanager
async def serve(config: LocalApiTable, service: Service) -> AsyncIterator[LocalApi]:
    """Listen until the block is left.

    Raises:
        ConfigError: the address or the token file cannot be used.
    """
    token = None if config.token_file is None else read_token(Path(config.token_file))
    loop = asyncio.get_running_loop()
    async with Background.open() as tasks:
        api = LocalApi(config, service, Access(host=config.host, token=token), tasks)
        try:
            listening = await loop.create_server(
                lambda: HttpConnection(api), config.host, config.port
            )
        except OSError as exc:
            address = f"{config.host}:{config.port}"
            raise ConfigError(f"[local_api] cannot listen on {address}: {exc.strerror}") from exc
        try:
            api.port = listening.sockets[0].getsockname()[1]
            yield api
        finally:
            listening.close()
            api.end()
