"""The cable between a board and the broker: it carries, it is cut, it is there again at the same port."""

import asyncio
import os
from contextlib import asynccontextmanager

import pytest

from shoal_fleet.demo.proxy import CuttableProxy


@asynccontextmanager
async def echoing():
    """The port of a server that sends back what it gets; `None` in its log when a client went away."""
    gone = asyncio.Queue()

    async def serve(reader, writer) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            """The cut may be a reset."""
        writer.close()
        gone.put_nowait(None)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], gone


@asynccontextmanager
async def connected(port: int):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def test_bytes_go_through_both_ways_whatever_their_number():
    data = os.urandom(300_000)
    async with (
        echoing() as (port, _),
        CuttableProxy.open(port) as proxy,
        connected(proxy.port) as (reader, writer),
    ):
        writer.write(data)
        assert await reader.readexactly(len(data)) == data


async def test_a_cut_ends_both_halves_and_refuses_until_it_is_healed():
    async with (
        echoing() as (port, gone),
        CuttableProxy.open(port) as proxy,
        connected(proxy.port) as (reader, writer),
    ):
        writer.write(b"x")
        await reader.readexactly(1)
        listens = proxy.port
        await proxy.cut()
        assert await reader.read() == b""
        await gone.get()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", listens)
        await proxy.cut()  # a second cut changes nothing
        await proxy.heal()
        assert proxy.port == listens
        async with connected(proxy.port) as (again, writer_again):
            writer_again.write(b"y")
            assert await again.readexactly(1) == b"y"


async def test_who_hangs_up_on_one_side_is_hung_up_on_on_the_other():
    async with echoing() as (port, gone), CuttableProxy.open(port) as proxy:
        async with connected(proxy.port) as (reader, writer):
            writer.write(b"x")
            await reader.readexactly(1)
        await gone.get()


async def test_without_a_target_a_connection_is_closed():
    async with echoing() as (port, _):
        pass
    async with CuttableProxy.open(port) as proxy, connected(proxy.port) as (reader, _):
        assert await reader.read() == b""


async def test_leaving_frees_the_port_and_ends_what_is_connected():
    async with echoing() as (port, gone):
        async with CuttableProxy.open(port) as proxy:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            writer.write(b"x")
            await reader.readexactly(1)
        assert await reader.read() == b""
        writer.close()
        await gone.get()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", proxy.port)
