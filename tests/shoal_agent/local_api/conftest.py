"""A local API on a free port of loopback, with toy models behind it."""

import asyncio
from contextlib import asynccontextmanager

import httpx
import msgspec
import pytest
from tests.support.toy_models import ToyModels

from shoal_agent.config import LocalApiTable
from shoal_agent.local_api.server import serve
from shoal_agent.local_api.service import Service


@pytest.fixture
def open_api():
    """Open one with other settings than the usual."""

    @asynccontextmanager
    async def opened(models: ToyModels, **settings):
        config = msgspec.structs.replace(LocalApiTable(port=0), **settings)
        service = Service(models, models, deadline_s=config.deadline_s)
        async with serve(config, service) as api:
            yield api

    return opened


@pytest.fixture
async def models():
    return ToyModels()


@pytest.fixture
async def api(open_api, models):
    async with open_api(models) as api:
        yield api


@pytest.fixture
async def client(api):
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{api.port}", timeout=5) as client:
        yield client


@pytest.fixture
async def line(api):
    """A bare socket: what is written to it, byte by byte."""
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    yield reader, writer
    writer.transport.abort()
