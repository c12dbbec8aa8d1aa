"""The part of the HTTP API that is about pipelines: what is wanted where, and what became of it."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from shoal_contract.pipelines import MAX_PIPELINES
from shoal_fleet.controller import Controller
from shoal_fleet.pipelines import Entry, Target

Answer = dict[str, Any]
Group = Annotated[str | None, Query(max_length=256)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewPipelines(_Body):
    """Pipelines for a node or a group, as the tables of a [[pipeline]] file."""

    node: str | None = None
    group: str | None = Field(default=None, max_length=256)
    pipelines: list[dict[str, Any]] = Field(min_length=1, max_length=MAX_PIPELINES)


async def _controller(request: Request) -> Controller:
    controller: Controller = request.app.state.controller
    return controller


Parts = Annotated[Controller, Depends(_controller)]
router = APIRouter()


@router.get("/api/pipelines")
async def list_pipelines(parts: Parts) -> Answer:
    """What is wanted, and how it stands on each node that has pipelines or is to have some."""
    nodes = {}
    for name, node in sorted(parts.registry.nodes.items()):
        wanted = sorted(parts.pipelines.of(node))
        reported = node.reported
        states = [] if reported is None else reported.pipelines
        if wanted or states:
            nodes[name] = {
                "wanted": wanted,
                "version": 0 if reported is None else reported.pipelines_version,
                "pipelines": parts.pipeline_states(node),
            }
    return {"pipelines": [_view(entry) for entry in parts.pipelines.entries()], "nodes": nodes}


@router.put("/api/pipelines")
async def set_pipelines(parts: Parts, new: NewPipelines) -> Answer:
    """Want these; others of the same node or group stay."""
    target = Target.of(node=new.node, group=new.group)
    members = await parts.set_pipelines(target, new.pipelines)
    streams = [table["stream"] for table in new.pipelines]
    return {"target": target.text, "streams": streams, "nodes": members}


@router.delete("/api/pipelines/{stream}")
async def remove_pipeline(
    parts: Parts, stream: str, node: str | None = None, group: Group = None
) -> Answer:
    """Want this one no more."""
    target = Target.of(node=node, group=group)
    members = await parts.remove_pipeline(target, stream)
    return {"target": target.text, "streams": [stream], "nodes": members}


def _view(entry: Entry) -> Answer:
    return {
        "target": entry.target.text,
        "stream": entry.stream,
        "table": entry.table,
        "changed_ms": entry.changed_ms,
    }
