"""The parts of enrolment on a real database, with a clock that the test sets."""

import pytest
from tests.support.enrolling import an_authority

from shoal_fleet.clock import now_ms
from shoal_fleet.database import Database
from shoal_fleet.identity.enrolment import Enrolment
from shoal_fleet.identity.inventory import Inventory
from shoal_fleet.identity.pending import Pending
from shoal_fleet.identity.revocations import Revocations
from shoal_fleet.identity.tokens import Tokens
from shoal_fleet.tables import FleetBase


class Office:
    """Where boards enrol. `at_ms` is its clock."""

    def __init__(self, database, authority, inventory) -> None:
        self.at_ms = now_ms()
        self.database = database
        self.authority = authority
        self.inventory = inventory
        self.tokens = Tokens(database)
        self.pending = Pending(database, inventory)
        self.admitted = []
        self.disconnected = []
        self.forsaken = []
        self.groups = {}
        self.revocations = Revocations(
            database,
            authority,
            inventory,
            disconnect=self._disconnect,
            forsake=self._forsake,
            is_node=lambda name: name == "inherited",
        )
        self.enrolment = Enrolment(
            database,
            authority,
            inventory,
            reserved=lambda: {"shoal-controller"},
            groups_of=lambda node: self.groups.get(node, ()),
            admit=self._admit,
            superseded=self.revocations.write_list,
            clock_ms=lambda: self.at_ms,
        )

    async def token(self, node=None, *, ttl_s=3600.0, **labels) -> str:
        (made,) = await self.tokens.create(
            node=node, labels=labels, ttl_s=ttl_s, count=1, at_ms=self.at_ms
        )
        return made["token"]

    async def ask(self, request, address="192.0.2.1"):
        return await self.enrolment.ask(request, address=address)

    async def _admit(self, node, labels) -> None:
        self.admitted.append((node, dict(labels)))

    async def _disconnect(self, node) -> None:
        self.disconnected.append(node)

    async def _forsake(self, node) -> None:
        self.forsaken.append(node)


@pytest.fixture
async def office(tmp_path):
    async with Database.open(tmp_path / "fleet.db", FleetBase) as database:
        authority = an_authority(tmp_path / "ca")
        yield Office(database, authority, await Inventory.load(database))
