"""The part of the HTTP API that is about the list of nodes: taking one in, other names, new boards, what runs."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select

from shoal_fleet.controller import Controller
from shoal_fleet.errors import RequestError
from shoal_fleet.node_csv import MAX_BYTES, parse
from shoal_fleet.running import running
from shoal_fleet.selection import belongs, parse_group
from shoal_fleet.tables import WantedRow

Answer = dict[str, Any]
LONGEST_S = 365 * 86400


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class AliasChanges(_Body):
    """Other names to give and to take away."""

    add: list[str] = Field(default_factory=list, max_length=64)
    remove: list[str] = Field(default_factory=list, max_length=64)


class Replacement(_Body):
    """How long the token for the new board is good."""

    ttl_s: float = Field(default=7 * 86400.0, gt=0, le=LONGEST_S)


async def _controller(request: Request) -> Controller:
    controller: Controller = request.app.state.controller
    return controller


Parts = Annotated[Controller, Depends(_controller)]
router = APIRouter()


@router.post("/api/nodes/import")
async def import_nodes(parts: Parts, request: Request) -> Answer:
    """Take in a list of nodes: the body is CSV. All of it or nothing."""
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > MAX_BYTES:
            raise RequestError(f"the list is larger than {MAX_BYTES} bytes")
    rows = parse(bytes(data))
    fresh, changed = await parts.registry.take_in(rows)
    for node in changed:
        await parts.wanted.regroup(node.name)
    parts.policies.wake()
    return {"rows": len(rows), "new": len(fresh), "changed": len(changed)}


@router.patch("/api/nodes/{node}/aliases")
async def change_aliases(parts: Parts, node: str, changes: AliasChanges) -> Answer:
    """Give a node other names, or take some away."""
    found = await parts.registry.alias(node, add=changes.add, remove=changes.remove)
    return parts.node_view(found)


@router.post("/api/nodes/{node}/replace")
async def replace_board(parts: Parts, node: str, replacement: Replacement) -> Answer:
    """Another board is to bear this name; with an authority the answer has its token."""
    name = parts.commandable(node)
    answer: Answer = {"node": name, "certificates": 0, "token": None}
    if parts.identity is not None:
        answer["certificates"] = await parts.identity.revocations.retire(name)
    await parts.registry.replaced(name)
    parts.wanted.changed()
    if parts.identity is not None:
        (made,) = await parts.identity.tokens.create(
            node=name, labels={}, ttl_s=replacement.ttl_s, count=1
        )
        answer["token"] = made
    return answer


@router.get("/api/running")
async def list_running(
    parts: Parts, group: Annotated[str, Query(max_length=256)] = ""
) -> list[Answer]:
    """What runs where, and what is to."""
    labels = parse_group(group)
    nodes = [node for node in parts.registry.nodes.values() if belongs(node.labels, labels)]
    async with parts.database.read() as session:
        rows = await session.scalars(select(WantedRow))
        wanted = {(row.node, row.model): row.release for row in rows}
    titles = {release.id: release.title for release in await parts.releases.list_all()}
    return running(nodes, wanted, titles)
