"""Finds neighbours by mDNS and tells them of this node. A rumour of an address, never an identity.

Nothing here stands in the way of a start: without multicast, or with a name conflict, the node goes on
alone and tries again. Interfaces that come and go are followed.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from typing import Any, Final, Self

import ifaddr
import structlog
from zeroconf import Error as ZeroconfError
from zeroconf import (
    InterfaceChoice,
    IPVersion,
    NonUniqueNameException,
    ServiceStateChange,
)
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from shoal_agent.background import Background
from shoal_agent.peers import announcement
from shoal_agent.peers.announcement import SERVICE_TYPE
from shoal_agent.peers.errors import WireError
from shoal_agent.peers.peer import Peer

log = structlog.get_logger()

__all__ = ["Discovery", "Peer"]

MAX_PEERS: Final = 256
RETRY_S: Final = 30.0
_RESOLVE_TIMEOUT_MS: Final = 3000
_RESOLVING: Final = 8
_TTL_S: Final = 120
"""A neighbour that vanished without a goodbye is forgotten after this."""
_LOOK_S: Final = 30.0
"""How often the addresses of this machine are looked at."""


class Discovery:
    """The neighbours of the same fleet (topic root) that are in sight."""

    def __init__(
        self,
        *,
        node: str,
        root: str,
        port: int,
        role: str,
        interfaces: Sequence[str] | None,
        tls: bool = False,
        shares: bool = False,
    ) -> None:
        self._node = node
        self._root = root
        self._port = port
        self._role = role
        self._tls = tls
        self._shares = shares
        self._interfaces = list(interfaces) if interfaces else None
        self._models: list[str] = []
        self._changed = asyncio.Event()
        self._peers: dict[str, Peer] = {}
        self._resolving: set[str] = set()
        self._room = asyncio.Semaphore(_RESOLVING)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        *,
        node: str,
        root: str,
        port: int,
        role: str,
        interfaces: Sequence[str] | None,
        tls: bool = False,
        shares: bool = False,
    ) -> AsyncIterator[Self]:
        """Look and announce until the block is left; returns at once.

        Args:
            node: who we are: the service's name.
            root: the fleet's topic root; nodes of others are not seen.
            port: of our PeerServer.
            role: "node" or "upstream".
            interfaces: IPv4 addresses of the interfaces to use; None: all, as they come and go.
            tls: we speak mutual TLS; neighbours that do not are not seen, and the other way round.
            shares: we hand out chunks of the blobs that are here.
        """
        discovery = cls(
            node=node,
            root=root,
            port=port,
            role=role,
            interfaces=interfaces,
            tls=tls,
            shares=shares,
        )
        async with Background.open() as tasks:
            tasks.start(discovery._run(tasks), name="peers.discovery")
            yield discovery

    async def announce(self, models: Iterable[str]) -> None:
        """Tell the neighbours which models serve here, soon."""
        self._models = sorted(models)
        self._changed.set()

    def find(self, model: str) -> list[Peer]:
        """Neighbours that announce the model, the one heard from last first."""
        return [peer for peer in reversed(self._peers.values()) if model in peer.models]

    def upstream(self) -> list[Peer]:
        """Neighbours that announce themselves as upstream nodes, the one heard from last first."""
        return [peer for peer in reversed(self._peers.values()) if peer.role == "upstream"]

    def sharing(self) -> list[Peer]:
        """Neighbours that announce that they hand out chunks."""
        return [peer for peer in self._peers.values() if peer.shares]

    def names(self) -> list[str]:
        """Every neighbour in sight, sorted."""
        return sorted(peer.node for peer in self._peers.values())

    # ------------------------------------------------------------------ the life of the mDNS socket
    async def _run(self, tasks: Background) -> None:
        while True:
            try:
                await self._look_and_announce(tasks)
            except (OSError, ZeroconfError) as exc:
                log.warning("peer discovery does not work", reason=str(exc) or type(exc).__name__)
            self._peers.clear()
            await asyncio.sleep(RETRY_S)

    async def _look_and_announce(self, tasks: Background) -> None:
        interfaces = self._interfaces or InterfaceChoice.All
        zeroconf = AsyncZeroconf(interfaces=interfaces, ip_version=IPVersion.V4Only)
        browser: AsyncServiceBrowser | None = None
        try:
            await zeroconf.zeroconf.async_wait_for_start()

            def heard(*, name: str, state_change: ServiceStateChange, **_: Any) -> None:
                self._heard(zeroconf, tasks, name, state_change)

            browser = AsyncServiceBrowser(zeroconf.zeroconf, SERVICE_TYPE, handlers=[heard])
            await self._announce_forever(zeroconf)
        finally:
            if browser is not None:
                await browser.async_cancel()
            await zeroconf.async_close()

    async def _announce_forever(self, zeroconf: AsyncZeroconf) -> None:
        addresses = await asyncio.to_thread(self._addresses)
        registered = False
        while True:
            self._changed.clear()
            info = self._info(addresses)
            try:
                if registered:
                    await (await zeroconf.async_update_service(info))
                else:
                    await (await zeroconf.async_register_service(info))
                    registered = True
            except NonUniqueNameException:
                log.warning("another node announces our name", node=self._node)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._changed.wait()
            now = await asyncio.to_thread(self._addresses)
            if now != addresses:
                addresses = now
                if self._interfaces is None:
                    await zeroconf.async_update_interfaces(InterfaceChoice.All)

    def _info(self, addresses: Sequence[str]) -> AsyncServiceInfo:
        return AsyncServiceInfo(
            SERVICE_TYPE,
            announcement.instance_name(node=self._node, root=self._root),
            port=self._port,
            properties=announcement.build(
                node=self._node,
                root=self._root,
                role=self._role,
                models=self._models,
                tls=self._tls,
                shares=self._shares,
            ),
            server=announcement.host_name(node=self._node, root=self._root),
            parsed_addresses=list(addresses),
            host_ttl=_TTL_S,
            other_ttl=_TTL_S,
        )

    def _addresses(self) -> list[str]:
        if self._interfaces is not None:
            return self._interfaces
        adapters = ifaddr.get_adapters()
        found = sorted({str(ip.ip) for adapter in adapters for ip in adapter.ips if ip.is_IPv4})
        return [address for address in found if not IPv4Address(address).is_loopback] or found

    # ------------------------------------------------------------------ what is heard
    def _heard(
        self, zeroconf: AsyncZeroconf, tasks: Background, name: str, change: ServiceStateChange
    ) -> None:
        if change is ServiceStateChange.Removed:
            self._peers.pop(name, None)
        elif name not in self._resolving and len(self._resolving) < MAX_PEERS:
            self._resolving.add(name)
            tasks.start(self._resolve(zeroconf, name), name="peers.resolve")

    async def _resolve(self, zeroconf: AsyncZeroconf, name: str) -> None:
        try:
            async with self._room:
                info = AsyncServiceInfo(SERVICE_TYPE, name)
                if not await info.async_request(zeroconf.zeroconf, _RESOLVE_TIMEOUT_MS):
                    return
            addresses = info.parsed_addresses(IPVersion.V4Only)
            peer = announcement.parse(
                name,
                info.properties,
                root=self._root,
                address=addresses[0] if addresses else None,
                port=info.port,
                tls=self._tls,
            )
        except WireError as exc:
            log.warning("announcement refused", name=name[:80], reason=str(exc))
            return
        except (OSError, ZeroconfError) as exc:
            log.debug("neighbour not resolved", name=name[:80], reason=str(exc))
            return
        finally:
            self._resolving.discard(name)
        self._remember(name, peer)

    def _remember(self, name: str, peer: Peer | None) -> None:
        self._peers.pop(name, None)  # to the end of the order, or gone
        if peer is None or peer.node == self._node:
            return
        if len(self._peers) >= MAX_PEERS:
            del self._peers[next(iter(self._peers))]
        self._peers[name] = peer
