"""An open enrolment door on a real database, and tasks for a board that asks there."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.enrolling import an_authority

from shoal_agent.identity.task import Task
from shoal_fleet.clock import now_ms
from shoal_fleet.database import Database
from shoal_fleet.identity.authority import Authority
from shoal_fleet.identity.door import Door
from shoal_fleet.identity.door_certificate import DoorCertificate
from shoal_fleet.identity.enrolment import LIFE_S, Enrolment
from shoal_fleet.identity.inventory import Inventory
from shoal_fleet.identity.pending import Pending
from shoal_fleet.identity.tokens import Tokens
from shoal_fleet.tables import FleetBase


class OpenDoor:
    """Where boards enrol. `at_ms` is its clock; None: the machine's."""

    def __init__(self, folder: Path, authority: Authority, door: Door, database: Database) -> None:
        self.folder = folder
        self.authority = authority
        self.door = door
        self.enrolment = door._enrolment
        self.tokens = Tokens(database)
        self.pending = Pending(database, self.enrolment._inventory)
        self.at_ms: int | None = None

    @property
    def url(self) -> str:
        return f"https://localhost:{self.door.port}"

    async def token(self, node: str | None = None) -> str:
        (made,) = await self.tokens.create(node=node, labels={}, ttl_s=3600, count=1)
        return made["token"]

    async def token_file(self, node: str | None = None, *, name: str = "token") -> Path:
        path = self.folder / name
        path.write_text(await self.token(node) + "\n")
        return path

    def task(self, node: str = "press-4", **changes) -> Task:
        known = {
            "state_dir": str(self.folder / node),
            "node": node,
            "url": self.url,
            "now_ms": now_ms(),
            "ca_pin": self.authority.pin,
            "hardware": "a simulated board",
        }
        return Task(**known | changes)


@asynccontextmanager
async def open_door(
    folder: Path, *, authority: Authority | None = None, life_s: float = LIFE_S
) -> AsyncIterator[OpenDoor]:
    authority = authority or an_authority(folder / "ca")
    certificate = DoorCertificate(authority, folder, ["localhost", "127.0.0.1"])
    certificate.renew()

    async def nothing(*_: object) -> None:
        pass

    async with Database.open(folder / "fleet.db", FleetBase) as database:
        enrolment = Enrolment(
            database,
            authority,
            await Inventory.load(database),
            admit=nothing,
            superseded=nothing,
            life_s=life_s,
            clock_ms=lambda: now_ms() if found.at_ms is None else found.at_ms,
        )
        with socket.create_server(("127.0.0.1", 0)) as listener:
            async with Door.open(
                listener, certificate.context, enrolment, ca_pem=authority.pem
            ) as door:
                found = OpenDoor(folder, authority, door, database)
                yield found
