import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.shoal_agent.until import until
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from shoal_agent.peers import announcement
from shoal_agent.peers.announcement import SERVICE_TYPE
from shoal_agent.peers.discovery import Discovery

LOOPBACK = ["127.0.0.1"]


def own(name: str) -> str:
    """Several test runs on one machine hear each other."""
    return f"{name}-{os.getpid()}"


def discovery(node: str, *, root: str, role: str = "node", port: int = 4711):
    return Discovery.open(node=node, root=root, port=port, role=role, interfaces=LOOPBACK)


async def test_neighbours_find_each_other_and_hear_of_changes_and_farewells():
    async with discovery(own("a"), root=own("test-1")) as a:
        async with discovery(own("b"), root=own("test-1"), role="upstream", port=4712) as b:
            await b.announce(["digits"])
            await until(lambda: bool(a.find("digits")) and bool(b.names()))
            (peer,) = a.find("digits")
            assert (peer.node, peer.host, peer.port) == (own("b"), "127.0.0.1", 4712)
            assert a.upstream() == [peer]
            assert b.names() == [own("a")]
            assert b.find("digits") == []
            await b.announce(["meter"])
            await until(lambda: bool(a.find("meter")) and not a.find("digits"))
        await until(lambda: a.names() == [])


async def test_opening_waits_for_nothing():
    started = asyncio.get_running_loop().time()
    async with discovery(own("a"), root=own("test-2")):
        assert asyncio.get_running_loop().time() - started < 0.1


async def test_nodes_of_other_fleets_and_hostile_announcements_are_not_seen():
    async with discovery(own("a"), root=own("test-3")) as a, discovery(own("c"), root=own("other")):
        hostile = AsyncZeroconf(interfaces=LOOPBACK)
        try:
            for name, entries in {
                own("evil"): {"v": "1", "root": own("test-3"), "node": "../etc", "role": "node"},
                own("good"): {
                    "v": "1",
                    "root": own("test-3"),
                    "node": own("good"),
                    "role": "node",
                    "models": "m",
                },
            }.items():
                info = AsyncServiceInfo(
                    SERVICE_TYPE,
                    announcement.instance_name(node=name, root=own("test-3")),
                    port=1,
                    properties=entries,
                    server=f"{name}-test.local.",
                    parsed_addresses=LOOPBACK,
                )
                await hostile.async_register_service(info, cooperating_responders=True)
            await until(lambda: a.names() == [own("good")])
        finally:
            await hostile.async_close()


async def test_a_second_node_of_the_same_name_goes_on_alone():
    async with (
        discovery(own("twin"), root=own("test-4")) as first,
        discovery(own("b"), root=own("test-4")) as b,
    ):
        await until(lambda: b.names() == [own("twin")])
        async with discovery(own("twin"), root=own("test-4")) as second:
            await until(lambda: second.names() == [own("b")])
            assert first.names() == [own("b")]


@pytest.mark.skipif(
    subprocess.run(["unshare", "-rn", "true"], check=False, capture_output=True).returncode != 0,
    reason="no network namespace can be made here (unshare -rn)",
)
@pytest.mark.parametrize("interfaces", ["['127.0.0.1']", "None"])
def test_neighbours_find_each_other_where_there_is_only_lo(interfaces):
    code = f"""
import asyncio
from shoal_agent.peers.discovery import Discovery
async def main():
    def open(node):
        return Discovery.open(
            node=node, root="test-5", port=4711, role="node", interfaces={interfaces})
    async with open("a") as a, open("b") as b, asyncio.timeout(45):
        await b.announce(["digits"])
        while not a.find("digits"):
            await asyncio.sleep(0.01)
        print(a.find("digits")[0].host)
asyncio.run(main())
"""
    shell = 'ip link set lo up && exec "$0" -c "$1"'
    done = subprocess.run(
        ["unshare", "-rn", "sh", "-c", shell, sys.executable, code],
        check=False,
        capture_output=True,
        text=True,
        timeout=15,
        cwd=Path("/"),
    )
    assert done.stdout == "127.0.0.1\n", done.stderr


async def test_without_multicast_the_node_goes_on_alone(monkeypatch):
    tried = asyncio.Event()

    def no_socket(*arguments: object, **options: object) -> None:
        tried.set()
        raise OSError(19, "No such device")

    monkeypatch.setattr("shoal_agent.peers.discovery.AsyncZeroconf", no_socket)
    async with discovery(own("a"), root=own("test-6")) as a, asyncio.timeout(5):
        await tried.wait()
        await a.announce(["digits"])
        assert a.names() == []
