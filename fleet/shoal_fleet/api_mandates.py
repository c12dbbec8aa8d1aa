"""The part of the HTTP API that is about mandates: who may command nodes, and what may run there."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from shoal_contract import envelope
from shoal_contract.messages import Mandate
from shoal_fleet.clock import now_ms
from shoal_fleet.controller import Controller
from shoal_fleet.errors import NotFoundError
from shoal_fleet.mandates import Given, Surface, parse_key

Answer = dict[str, Any]
Patterns = Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=64)]
LONGEST_S = 400 * 86400


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewMandate(_Body):
    """A mandate for the holder of a public key; without `for_s` it does not end."""

    key: str = Field(max_length=64)
    ops: Patterns
    groups: Patterns
    may_delegate: bool = False
    for_s: float | None = Field(default=None, gt=0, le=LONGEST_S)


class NewSurface(_Body):
    """What may run on the nodes of a group; `approved` null: everything that is not denied."""

    approved: Patterns | None = None
    denied: Patterns = []


async def _controller(request: Request) -> Controller:
    controller: Controller = request.app.state.controller
    return controller


Parts = Annotated[Controller, Depends(_controller)]
router = APIRouter()


@router.get("/api/mandates")
async def list_mandates(parts: Parts) -> Answer:
    """Every mandate, every group's surface, and which nodes hold what they were told."""
    return {
        "mandates": [_view(given) for _, given in sorted(parts.mandates.given.items())],
        "surfaces": {
            group: {"approved": surface.approved, "denied": surface.denied}
            for group, surface in sorted(parts.mandates.surfaces.items())
        },
        "nodes": await parts.policies.states(),
    }


@router.put("/api/mandates/{name}")
async def grant(parts: Parts, name: str, body: NewMandate) -> Answer:
    """Give a mandate, or change it."""
    until_ms = 0 if body.for_s is None else now_ms() + round(body.for_s * 1000)
    mandate = Mandate(
        parse_key(body.key), name[:65], body.ops, body.groups, body.may_delegate, until_ms
    )
    return _view(await parts.mandates.grant(mandate))


@router.delete("/api/mandates/{name}")
async def revoke(parts: Parts, name: str) -> Answer:
    """Take a mandate away for good."""
    return _view(await parts.mandates.revoke(name))


@router.put("/api/surfaces/{group}")
async def set_surface(parts: Parts, group: str, body: NewSurface) -> Answer:
    """Say what may run on the nodes of a group at all."""
    approved = None if body.approved is None else tuple(body.approved)
    await parts.mandates.set_surface(group, Surface(approved, tuple(body.denied)))
    return {"group": group, "approved": body.approved, "denied": body.denied}


@router.get("/api/surfaces/{group}")
async def read_surface(parts: Parts, group: str) -> Answer:
    """What may run on the nodes of a group at all."""
    surface = parts.mandates.surfaces.get(group)
    if surface is None:
        raise NotFoundError(f"nothing was said of the group {group!r}")
    return {"group": group, "approved": surface.approved, "denied": surface.denied}


def _view(given: Given) -> Answer:
    mandate = given.mandate
    return {
        "name": mandate.name,
        "key": envelope.key_text(mandate.key),
        "ops": mandate.ops,
        "groups": mandate.groups,
        "may_delegate": mandate.may_delegate,
        "until_ms": mandate.until_ms or None,
        "made_ms": given.made_ms,
        "revoked_ms": given.revoked_ms,
    }
