"""The HTTP API of rollouts and freezes. It translates and decides nothing."""

import re
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request
from fastapi import Path as PathField
from pydantic import BaseModel, ConfigDict, Field

from shoal_fleet.access import OPERATOR_HEADER
from shoal_fleet.audience import Audience
from shoal_fleet.controller import Controller
from shoal_fleet.errors import RequestError
from shoal_fleet.rollout_state import USUAL_PRIORITY, Approval, Freeze, Options

_OPERATOR = re.compile(r"[A-Za-z0-9_.@+-]{0,64}")

RolloutId = Annotated[int, PathField(ge=1, le=(1 << 63) - 1)]
Answer = dict[str, Any]


class _Body(BaseModel):
    """A request body; a key that is none is an error."""

    model_config = ConfigDict(extra="forbid")


class NewRollout(_Body):
    """A rollout of a release to a group, or to the nodes for which an expression holds; neither: to every node."""

    release: str
    group: str = Field(default="", max_length=256)
    where: str = Field(default="", max_length=4096)
    first_wave: int | None = Field(default=None, ge=1, le=1_000_000)
    budget: float = Field(default=3.0, gt=0, le=1_000_000)
    factor: float = Field(default=8.0, ge=1, le=100)
    overdue_s: float = Field(default=1800.0, ge=1, le=30 * 86400)
    hold_on_any: bool = False
    window: str = Field(default="", max_length=4096)
    tz: str = Field(default="UTC", max_length=64)
    priority: int = Field(default=USUAL_PRIORITY, ge=0, le=9)
    approval: Approval = Approval.NONE
    overrides_freeze: bool = False

    @property
    def audience(self) -> Audience:
        """Whom it is for."""
        return Audience.parse(group=self.group, where=self.where)

    @property
    def options(self) -> Options:
        """How it goes out."""
        return Options(**self.model_dump(exclude={"release", "group", "where"}))


class StopRollout(_Body):
    """Whether nodes that serve the release go back, too."""

    back: bool = False


class PauseRollout(_Body):
    """Why nobody is to be offered it for now."""

    reason: str = Field(default="", max_length=256)


class NewFreeze(_Body):
    """Why, and until when (Unix milliseconds; null: until it is ended)."""

    reason: str = Field(default="", max_length=256)
    until_ms: int | None = Field(default=None, ge=0, le=1 << 53)


# Asynchronous though they wait for nothing: FastAPI runs what is not in a thread, once a request.
async def _controller(request: Request) -> Controller:
    controller: Controller = request.app.state.controller
    return controller


async def _operator(name: Annotated[str, Header(alias=OPERATOR_HEADER)] = "") -> str:
    if not _OPERATOR.fullmatch(name):
        raise RequestError("an operator's name has at most 64 letters, digits and '_.@+-'")
    return name


Parts = Annotated[Controller, Depends(_controller)]
By = Annotated[str, Depends(_operator)]
router = APIRouter()


@router.post("/api/rollouts", status_code=201)
async def start_rollout(parts: Parts, new: NewRollout, by: By) -> Answer:
    """Begin a rollout."""
    release = await parts.releases.find(new.release)
    rollout = await parts.roll_out(release, new.audience, new.options, by=by)
    return await parts.rollout_views.get(rollout)


@router.post("/api/rollouts/plan")
async def plan_rollout(parts: Parts, new: NewRollout) -> Answer:
    """What would happen; nothing is made and nothing is sent."""
    release = await parts.releases.find(new.release)
    return await parts.rollout_plans.of(release, new.audience, new.options)


@router.get("/api/rollouts")
async def list_rollouts(parts: Parts) -> list[Answer]:
    """Every rollout, newest first."""
    return await parts.rollout_views.list_all()


@router.get("/api/rollouts/{rollout}")
async def read_rollout(parts: Parts, rollout: RolloutId) -> Answer:
    """One rollout with its nodes, decisions and deltas, and what its waiting nodes wait for."""
    return await parts.rollout_views.get(rollout)


@router.post("/api/rollouts/{rollout}/pause")
async def pause_rollout(
    parts: Parts, rollout: RolloutId, by: By, pause: PauseRollout | None = None
) -> Answer:
    """Offer it to nobody for now."""
    await parts.rollouts.pause(rollout, "" if pause is None else pause.reason, by=by)
    return await parts.rollout_views.get(rollout)


@router.post("/api/rollouts/{rollout}/resume")
async def resume_rollout(parts: Parts, rollout: RolloutId, by: By) -> Answer:
    """Go on after a hold or a pause."""
    await parts.rollouts.resume(rollout, by=by)
    return await parts.rollout_views.get(rollout)


@router.post("/api/rollouts/{rollout}/approve")
async def approve_rollout(parts: Parts, rollout: RolloutId, by: By) -> Answer:
    """A second person agrees."""
    await parts.rollouts.approve(rollout, by=by)
    return await parts.rollout_views.get(rollout)


@router.post("/api/rollouts/{rollout}/stop")
async def stop_rollout(
    parts: Parts, rollout: RolloutId, by: By, stop: StopRollout | None = None
) -> Answer:
    """End a rollout."""
    await parts.rollouts.stop(rollout, back=stop is not None and stop.back, by=by)
    return await parts.rollout_views.get(rollout)


@router.post("/api/rollouts/{rollout}/back")
async def take_back_rollout(parts: Parts, rollout: RolloutId, by: By) -> Answer:
    """Every node that serves it goes back to what it had, of a rollout that has ended, too."""
    await parts.rollouts.back(rollout, by=by)
    return await parts.rollout_views.get(rollout)


@router.get("/api/freeze")
async def read_freeze(parts: Parts) -> Answer:
    """Whether the fleet is frozen, why, by whom and until when."""
    return parts.freezes.view()


@router.post("/api/freeze")
async def begin_freeze(parts: Parts, new: NewFreeze, by: By) -> Answer:
    """Freeze the fleet."""
    await parts.rollouts.freeze(Freeze(reason=new.reason, by=by, until_ms=new.until_ms))
    return parts.freezes.view()


@router.delete("/api/freeze")
async def end_freeze(parts: Parts, by: By) -> Answer:
    """Let rollouts go on."""
    await parts.rollouts.thaw(by=by)
    return parts.freezes.view()
