"""The HTTP API: JSON under /api, errors as {"error": "one line"}. It translates and decides nothing."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from shoal_broker.bus_errors import BusError
from shoal_fleet import api_mandates, api_pipelines, api_registry, api_rollouts, metrics
from shoal_fleet.access import Door
from shoal_fleet.audience import Audience
from shoal_fleet.controller import Controller
from shoal_fleet.errors import FleetError, RequestError
from shoal_fleet.identity import api as api_identity
from shoal_fleet.orders import Order
from shoal_fleet.plain import plain
from shoal_fleet.quality_gate import MAX_DROP
from shoal_fleet.release_judging import Gate
from shoal_fleet.releases import Release

MAX_WAIT_S = 60.0

Wait = Annotated[float, Query(ge=0, le=MAX_WAIT_S)]
Where = Annotated[str, Query(max_length=4096)]
Limit = Annotated[int, Query(ge=1, le=5000)]
Answer = dict[str, Any]


def build(controller: Controller, *, token: str) -> FastAPI:
    """The application; every path but /metrics asks for the token."""
    app = FastAPI(title="Shoal", version=controller.version, docs_url=None, redoc_url=None)
    app.state.controller = controller
    app.include_router(api_registry.router)
    app.include_router(router)
    app.include_router(api_mandates.router)
    app.include_router(api_identity.router)
    app.include_router(api_pipelines.router)
    app.include_router(api_rollouts.router)
    app.add_exception_handler(FleetError, _on_fleet_error)
    app.add_exception_handler(BusError, _on_bus_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_middleware(Door, token=token)
    return app


class _Body(BaseModel):
    """A request body; a key that is none is an error."""

    model_config = ConfigDict(extra="forbid")


class LabelChanges(_Body):
    """Labels to set; null takes one away."""

    labels: dict[str, str | None] = Field(max_length=64)


class NewCommand(_Body):
    """A command for a node or a group. `publish` false: it is recorded, and somebody else sends it."""

    node: str | None = None
    group: str | None = Field(default=None, max_length=256)
    where: str | None = Field(default=None, max_length=4096)
    publish: bool = True
    op: str = Field(min_length=1, max_length=64)
    args: dict[str, Any] = Field(default_factory=dict)
    expires_s: float = Field(default=60.0, gt=0, le=30 * 86400)
    priority: int = Field(default=4, ge=0, le=9)


class WantedRelease(_Body):
    """The release that a node is to run; null takes the model away."""

    release: str | None


# Asynchronous though it waits for nothing: FastAPI runs what is not in a thread, once a request.
async def _controller(request: Request) -> Controller:
    controller: Controller = request.app.state.controller
    return controller


Parts = Annotated[Controller, Depends(_controller)]
router = APIRouter()


@router.get("/metrics")
async def read_metrics(parts: Parts) -> PlainTextResponse:
    """Figures for Prometheus, without the token."""
    return PlainTextResponse(await metrics.render(parts), media_type=CONTENT_TYPE_LATEST)


@router.get("/api/status")
async def read_status(parts: Parts) -> Answer:
    """How the controller itself is."""
    return {
        "version": parts.version,
        "broker": f"{parts.config.broker.host}:{parts.config.broker.port}",
        "broker_connected": parts.session.connected,
        "broker_error": parts.session.last_error,
        "command_key": parts.issuer.public_key,
        "nodes": len(parts.registry.nodes),
        "nodes_online": sum(node.online for node in parts.registry.nodes.values()),
        "nodes_silent": sorted(parts.alarms.silent),
        "trust_alarms": list(parts.distribution.alarms),
        "received": dict(parts.inbox.received),
        "malformed": dict(parts.inbox.malformed),
        "unknown_kinds": parts.inbox.unknown_kinds,
        "readings_stored": parts.readings.stats.stored,
        "readings_duplicate": parts.readings.stats.duplicates,
        "commands": await parts.commands.counts(),
        "chunk_bytes_sent": parts.publisher.sent_bytes,
        "chunks_resent": parts.publisher.resent_chunks,
        "outbox_waiting": parts.session.stats.outbox_waiting,
    }


# ------------------------------------------------------------------ nodes
@router.get("/api/nodes")
async def list_nodes(parts: Parts, where: Where = "") -> list[Answer]:
    """Every node by name, or those for which a label expression holds."""
    audience = Audience.parse(where=where)
    nodes = sorted(parts.registry.nodes.items())
    held = await parts.held()
    return [
        {**parts.node_view(node), "held": held.get(name, {})}
        for name, node in nodes
        if audience.has(node)
    ]


@router.get("/api/nodes/{node}")
async def read_node(parts: Parts, node: str) -> Answer:
    """One node with what it is to run."""
    return await parts.node(node)


@router.patch("/api/nodes/{node}/labels")
async def change_labels(parts: Parts, node: str, changes: LabelChanges) -> Answer:
    """Set or take away labels."""
    return parts.node_view(await parts.label(node, changes.labels))


@router.put("/api/nodes/{node}/models/{model}")
async def want_release(parts: Parts, node: str, model: str, wanted: WantedRelease) -> Answer:
    """Let one node run a release, without a rollout."""
    release = None if wanted.release is None else await parts.releases.find(wanted.release)
    return await parts.want(node, model, release)


# ------------------------------------------------------------------ commands
@router.post("/api/commands", status_code=201)
async def send_command(parts: Parts, new: NewCommand) -> Answer:
    """Send a command; returns once it is recorded and in the outbox."""
    if sum(one is not None for one in (new.node, new.group, new.where)) != 1:
        raise RequestError("a command is for a node or for a group")
    order = Order(new.op, new.args, expires_s=new.expires_s, priority=new.priority)
    if new.node is None:
        if not new.publish:
            raise RequestError("only a command for one node can be sent by somebody else")
        audience = Audience.parse(group=new.group or "", where=new.where or "")
        if new.where is not None and not audience.is_settled:
            raise RequestError("the expression is empty: --group all means every node")
        members = parts.members(audience)
        return await parts.commands.get(await parts.orders.send_to_many(audience, members, order))
    node = parts.commandable(new.node or "")
    ordered = await parts.orders.send(node, order, publish=new.publish)
    command = await parts.commands.get(ordered.id)
    if not new.publish:
        command |= {"topic": ordered.topic, "payload": ordered.payload.hex()}
    return command


@router.get("/api/commands")
async def list_commands(parts: Parts, node: str | None = None, limit: Limit = 50) -> list[Answer]:
    """The newest commands."""
    if node is not None:
        parts.registry.get(node)
    return await parts.commands.list_newest(node=node, limit=limit)


@router.get("/api/commands/{command}")
async def read_command(
    parts: Parts,
    command: str,
    wait_s: Wait = 0.0,
    seen: int | None = None,
    progress: int | None = None,
) -> Answer:
    """One command; `wait_s` waits for its end, more than `seen` history entries, or other `progress`."""
    return await parts.commands.get(
        _command_id(command), wait_s=wait_s, seen=seen, progress=progress
    )


@router.post("/api/commands/{command}/cancel")
async def cancel_command(parts: Parts, command: str, wait_s: Wait = 10.0) -> Answer:
    """Ask the node to stop a command, and wait for its answer."""
    return await parts.commands.cancel(_command_id(command), wait_s=wait_s)


# ------------------------------------------------------------------ releases
@router.post("/api/releases", status_code=201)
async def add_release(
    parts: Parts,
    request: Request,
    max_drop: Annotated[float, Query(ge=0, le=1)] = MAX_DROP,
    force: Annotated[str | None, Query(min_length=1, max_length=256)] = None,
) -> Answer:
    """Take in a release: the body is a tar of its directory. `force`: why the quality gate is overruled."""
    release, figures = await parts.releases.add(request.stream(), Gate(max_drop, force))
    return {**_release_view(release), "check": plain(figures)}


@router.get("/api/releases")
async def list_releases(parts: Parts) -> list[Answer]:
    """Every release."""
    return [_release_view(release) for release in await parts.releases.list_all()]


@router.get("/api/releases/{release}")
async def read_release(parts: Parts, release: str) -> Answer:
    """One release, by `name@version` or the beginning of its id."""
    return _release_view(await parts.releases.find(release))


@router.get("/api/releases/{release}/report")
async def read_report(parts: Parts, release: str) -> dict[str, str]:
    """The texts of the report that came with a release, by file name."""
    return await parts.releases.report(await parts.releases.find(release))


@router.get("/api/releases/{release}/cost")
async def read_cost(
    parts: Parts,
    release: str,
    group: Annotated[str, Query(max_length=256)] = "",
    where: Where = "",
) -> Answer:
    """What bringing a release to some of the nodes would cost, by what their boards have now."""
    audience = Audience.parse(group=group, where=where)
    return await parts.update_costs.of(await parts.releases.find(release), audience)


# ------------------------------------------------------------------ readings
@router.get("/api/readings/summary")
async def summarise_readings(parts: Parts) -> Answer:
    """What came from each device, and what is missing."""
    return await parts.readings.summary()


@router.get("/api/readings")
async def list_readings(
    parts: Parts,
    node: str | None = None,
    device: str | None = None,
    after: Annotated[int, Query(ge=0, le=(1 << 63) - 1)] = 0,
    limit: Limit = 100,
) -> list[Answer]:
    """Readings in the order of arrival; `after` is the `id` of the last one that is known."""
    rows = await parts.readings.page(node=node, device=device, after=after, limit=limit)
    return [plain(row) for row in rows]


def _command_id(text: str) -> bytes:
    try:
        command = bytes.fromhex(text)
    except ValueError:
        command = b""
    if len(command) != 8:  # noqa: PLR2004 - the contract's CommandId
        raise RequestError(f"{text[:40]!r} is not a command id: 16 hexadecimal digits")
    return command


def _release_view(release: Release) -> Answer:
    return {
        "id": release.id.hex(),
        "name": release.name,
        "version": release.version,
        "title": release.title,
        "description": release.description,
        "size_bytes": release.size_bytes,
        "model_file": release.model_file.hex(),
        "quality": plain(release.quality),
        "added_ms": release.added_ms,
        "files": [
            {"name": entry.name, "size_bytes": entry.size_bytes, "digest": entry.digest.hex()}
            for entry in release.files
        ],
    }


def _on_fleet_error(_request: Request, exc: Exception) -> JSONResponse:
    status = exc.status if isinstance(exc, RequestError) else 500
    return JSONResponse({"error": str(exc)}, status_code=status)


def _on_bus_error(_request: Request, exc: Exception) -> JSONResponse:
    return JSONResponse({"error": str(exc)}, status_code=503)


def _on_http_error(_request: Request, exc: Exception) -> JSONResponse:
    if not isinstance(exc, HTTPException):
        raise exc
    return JSONResponse({"error": str(exc.detail)}, status_code=exc.status_code)


def _on_invalid(_request: Request, exc: Exception) -> JSONResponse:
    if not isinstance(exc, RequestValidationError):
        raise exc
    first = exc.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in {"body", "query", "path"})
    text = f"{where}: {first['msg']}" if where else str(first["msg"])
    return JSONResponse({"error": json.dumps(text)[1:-1]}, status_code=400)
