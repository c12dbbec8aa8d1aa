"""The part of the HTTP API that is about who the boards are: tokens, who waits, who is out."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from shoal_fleet.errors import RequestError
from shoal_fleet.identity.assembly import Identity
from shoal_fleet.identity.tokens import MAX_COUNT

Answer = dict[str, Any]
LONGEST_S = 365 * 86400


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewTokens(_Body):
    """Tokens to make; `node`: the only id that may use it."""

    node: str | None = Field(default=None, max_length=63)
    labels: dict[str, str] = Field(default_factory=dict, max_length=64)
    ttl_s: float = Field(default=86400.0, gt=0, le=LONGEST_S)
    count: int = Field(default=1, ge=1, le=MAX_COUNT)


class Decision(_Body):
    """About a board that waits; `fingerprint`: the beginning of its key's sha256."""

    fingerprint: str | None = Field(default=None, max_length=128)


class NewRevocation(_Body):
    """Why a node is taken out."""

    reason: str = Field(default="", max_length=200)


async def _identity(request: Request) -> Identity:
    identity: Identity | None = request.app.state.controller.identity
    if identity is None:
        raise RequestError("this controller has no authority: set [identity] (shoal ca init)")
    return identity


Parts = Annotated[Identity, Depends(_identity)]
router = APIRouter()


@router.get("/api/authority")
async def read_authority(parts: Parts) -> Answer:
    """The authority's certificate and pin, and how the door is used."""
    return {
        "ca_pin": parts.authority.pin,
        "certificate": parts.authority.pem.decode("ascii"),
        "door_port": parts.door.port,
        "issued": dict(parts.enrolment.stats.issued),
        "refused": dict(parts.enrolment.stats.refused),
    }


@router.post("/api/tokens", status_code=201)
async def create_tokens(parts: Parts, new: NewTokens) -> list[Answer]:
    """Make tokens; their texts are told this once."""
    return await parts.tokens.create(
        node=new.node, labels=new.labels, ttl_s=new.ttl_s, count=new.count
    )


@router.get("/api/tokens")
async def list_tokens(parts: Parts) -> list[Answer]:
    """Every token that is remembered, without its text."""
    return await parts.tokens.list_all()


@router.delete("/api/tokens/{token}")
async def revoke_token(parts: Parts, token: str) -> Answer:
    """Make a token worthless."""
    return await parts.tokens.revoke(token)


@router.get("/api/pending")
async def list_pending(parts: Parts) -> list[Answer]:
    """Boards that wait for a person."""
    return await parts.pending.list_all()


@router.post("/api/pending/{node}/accept")
async def accept(parts: Parts, node: str, decision: Decision) -> Answer:
    """Let a board have its certificate."""
    return await parts.pending.accept(node, decision.fingerprint)


@router.post("/api/pending/{node}/reject")
async def reject(parts: Parts, node: str, decision: Decision) -> list[Answer]:
    """Tell a board that it is not wanted."""
    return await parts.pending.reject(node, decision.fingerprint)


@router.post("/api/nodes/{node}/revoke")
async def revoke(parts: Parts, node: str, revocation: NewRevocation) -> Answer:
    """Take a node out of the fleet, at once."""
    return await parts.revocations.revoke(node, revocation.reason)
