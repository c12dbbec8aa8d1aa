"""The parts of a running controller, and what takes several of them. Put together in `app`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shoal_broker.session import Session
from shoal_contract.errors import ContractError
from shoal_contract.topics import check_leaf
from shoal_fleet.alarms import Alarms
from shoal_fleet.audience import Audience
from shoal_fleet.commands import Commands
from shoal_fleet.config import FleetConfig
from shoal_fleet.database import Database
from shoal_fleet.deltas import Deltas
from shoal_fleet.errors import ConflictError, RequestError
from shoal_fleet.freezes import Freezes
from shoal_fleet.identity.assembly import Identity
from shoal_fleet.identity.inventory import Inventory
from shoal_fleet.inbox import Inbox
from shoal_fleet.issuer import Issuer
from shoal_fleet.json_door import JsonDoor
from shoal_fleet.mandates import Mandates
from shoal_fleet.orders import Orders
from shoal_fleet.pipeline_check import PipelineCheck
from shoal_fleet.pipelines import Pipelines, Table, Target
from shoal_fleet.plain import plain
from shoal_fleet.policies import Policies
from shoal_fleet.publisher import Publisher
from shoal_fleet.readings import Readings
from shoal_fleet.receipts import Receipts
from shoal_fleet.registry import Node, Registry
from shoal_fleet.releases import Release, Releases
from shoal_fleet.rollout_plans import RolloutPlans
from shoal_fleet.rollout_state import Options
from shoal_fleet.rollout_views import RolloutViews
from shoal_fleet.rollouts import Rollouts
from shoal_fleet.selection import GROUP_LABEL
from shoal_fleet.trust.distribution import Distribution
from shoal_fleet.update_costs import UpdateCosts
from shoal_fleet.wanted import WantedStates


@dataclass(frozen=True, slots=True, kw_only=True)
class Controller:
    """Everything that the API speaks to."""

    config: FleetConfig
    version: str
    database: Database
    session: Session
    inbox: Inbox
    door: JsonDoor
    registry: Registry
    alarms: Alarms
    issuer: Issuer
    orders: Orders
    commands: Commands
    readings: Readings
    receipts: Receipts
    releases: Releases
    deltas: Deltas
    wanted: WantedStates
    publisher: Publisher
    rollouts: Rollouts
    rollout_views: RolloutViews
    rollout_plans: RolloutPlans
    freezes: Freezes
    mandates: Mandates
    policies: Policies
    pipelines: Pipelines
    pipeline_check: PipelineCheck
    update_costs: UpdateCosts
    distribution: Distribution
    inventory: Inventory
    identity: Identity | None

    async def node(self, name: str) -> dict[str, Any]:
        """A node with what it is to run.

        Raises:
            NotFoundError: no such node.
        """
        node = self.registry.get(name)
        wanted = await self.wanted.of(name)
        name = node.name
        return {
            **self.node_view(node),
            "wanted": {model: release.hex() for model, release in wanted.items()},
            "held": (await self.held()).get(name, {}),
        }

    async def held(self) -> dict[str, dict[str, str]]:
        """Node -> model -> why the board would refuse what is wanted of it, or what an open rollout has for it."""
        listed = await self.distribution.listed()
        if listed is None:
            return {}
        found: dict[str, dict[str, str]] = {}
        meant = await self.wanted.everything() + [
            (name, opened.release.name, opened.release.id)
            for opened in self.rollouts.open.values()
            for name in opened.roster.members
            if opened.waits(name)
        ]
        for name, model, release in meant:
            node = self.registry.nodes.get(name)
            group = None if node is None else node.labels.get(GROUP_LABEL)
            if why := listed.why_not(model, release, group):
                found.setdefault(name, {})[model] = f"{release.hex()[:12]}: {why}"
        return found

    async def label(self, name: str, changes: Mapping[str, str | None]) -> Node:
        """Set labels, or take away those whose value is None.

        Raises:
            NotFoundError: no such node.
            RequestError: no label, or too many.
        """
        old = self.registry.get(name)
        name = old.name
        before, had = old.labels.get(GROUP_LABEL), self.pipelines.of(old)
        node = await self.registry.label(name, changes)
        if node.labels.get(GROUP_LABEL) != before:
            await self.wanted.regroup(name)
            self.policies.wake()
        elif self.pipelines.of(node) != had:
            await self.wanted.regroup(name)
        return node

    def is_revoked(self, name: str) -> bool:
        """Whether the node was taken out of the fleet."""
        return self.inventory.is_revoked(name)

    def commandable(self, name: str) -> str:
        """The node's name.

        Raises:
            NotFoundError: no such node.
            ConflictError: it was revoked.
        """
        node = self.registry.get(name)
        name = node.name
        if self.is_revoked(name):
            raise ConflictError(f"{name} was revoked: nothing is asked of it")
        return node.name

    def members(self, audience: Audience) -> list[str]:
        """The nodes that are meant now.

        Raises:
            RequestError: nobody is.
        """
        found = audience.among(
            node for name, node in self.registry.nodes.items() if not self.is_revoked(name)
        )
        return sorted(node.name for node in found)

    def node_view(self, node: Node) -> dict[str, Any]:
        """A node as the API shows it; numbers that it does not know are null."""
        reported = node.reported
        view: dict[str, Any] = {
            "node": node.name,
            "online": node.online,
            "silent": node.name in self.alarms.silent,
            "labels": dict(node.labels),
            "aliases": self.registry.aliases.of(node.name),
            "first_seen_ms": node.first_seen_ms,
            "last_seen_ms": self.registry.last_seen_ms[node.name],
            "identity": self.inventory.view(node.name),
            "reported": None,
        }
        if reported is not None:
            view["reported"] = {
                "version": reported.version,
                "at_ms": reported.at_ms,
                "role": reported.role,
                "devices": reported.devices,
                "peers": reported.peers,
                "wanted_revision": reported.wanted_revision,
                "pipelines_version": reported.pipelines_version,
                "pipelines": self.pipeline_states(node),
                "hardware": plain(
                    {
                        field: getattr(reported.hardware, field)
                        for field in reported.hardware.__struct_fields__
                    }
                ),
                "models": [
                    {
                        "model": state.model,
                        "release": state.release.hex(),
                        "version": state.version,
                        "target": state.target.hex(),
                        "phase": state.phase.name.lower(),
                        "reason": state.reason,
                        "fetched_bytes": state.fetched_bytes,
                        "model_file": state.model_file.hex(),
                        "residence": state.residence,
                        "resident_bytes": state.resident_bytes,
                        "peak_bytes": state.peak_bytes,
                        "p95_us": state.p95_us,
                    }
                    for state in reported.models
                ],
            }
        return view

    async def roll_out(
        self, release: Release, audience: Audience, options: Options, *, by: str = ""
    ) -> int:
        """Begin a rollout; its id.

        Raises:
            RequestError: nobody is meant, a pipeline there could not read the release, or it is not signed.
            ConflictError: another rollout of this model is open, or the release waits for one that waits for it.
        """
        members = [node for node in self.registry.nodes.values() if audience.has(node)]
        await self.pipeline_check.check_release(release, members)
        groups = {node.labels.get(GROUP_LABEL) for node in members}
        await self.distribution.check_listed(release, groups)
        return await self.rollouts.start(release, audience, options, by=by)

    async def set_pipelines(self, target: Target, tables: Sequence[Table]) -> list[str]:
        """Let the target's nodes run these, beside what they have; the nodes that are told.

        Raises:
            NotFoundError: no such node.
            RequestError: one of them cannot run there.
        """
        members = self._meant(target)
        parsed = await self.pipeline_check.check(tables, members)
        named = {one.stream: table for one, table in zip(parsed, tables, strict=True)}
        for node in members:
            self.pipelines.with_tables(node, target, named)
        names = [node.name for node in members]
        async with self.pipelines.changing() as session:
            await self.pipelines.set(session, target, named)
            await self.wanted.say_anew(session, names)
        self.wanted.changed()
        return names

    async def remove_pipeline(self, target: Target, stream: str) -> list[str]:
        """Let the target's nodes run this no more; the nodes that are told.

        Raises:
            NotFoundError: no such node, or no such pipeline.
        """
        members = [node.name for node in self._meant(target)]
        async with self.pipelines.changing() as session:
            await self.pipelines.remove(session, target, stream)
            await self.wanted.say_anew(session, members)
        self.wanted.changed()
        return members

    def pipeline_states(self, node: Node) -> list[dict[str, Any]]:
        """Every pipeline of the node, as it says."""
        return [
            {
                "stream": state.stream,
                "from_fleet": state.from_fleet,
                "running": state.running,
                "reason": state.reason,
            }
            for state in (node.reported.pipelines if node.reported else [])
        ]

    def _meant(self, target: Target) -> list[Node]:
        if target.node is not None:
            return [self.registry.get(target.node)]
        return [node for _, node in sorted(self.registry.nodes.items()) if target.has(node)]

    async def want(self, name: str, model: str, release: Release | None) -> dict[str, Any]:
        """Let a node run this release of a model, or take the model away; no rollout is involved.

        Raises:
            NotFoundError: no such node.
            RequestError: the release is of another model, a pipeline there could not read it, or it is not signed
                for the node's group.
            ConflictError: a rollout waits for this node.
        """
        node = self.registry.get(name if release is None else self.commandable(name))
        try:
            check_leaf(model)
        except ContractError as exc:
            raise RequestError(str(exc)) from exc
        if release is not None and release.name != model:
            raise RequestError(f"{release.title} is not a release of {model}")
        if release is not None:
            await self.pipeline_check.check_release(release, [node])
            await self.distribution.check_listed(release, [node.labels.get(GROUP_LABEL)])
            # Told before the delta is built, which may take long, and looked at again behind it.
            async with self.rollouts.unclaimed(name, model):
                pass
            state = node.model(model)
            if state is not None and state.model_file:
                await self.deltas.ensure({state.model_file: 1}, release.model_file)
        async with self.rollouts.unclaimed(name, model), self.database.write() as session:
            if release is None:
                await self.wanted.want_none(session, name, model)
            else:
                await self.wanted.want(session, name, model, release.id, rollout=None)
        self.wanted.changed()
        await self.rollouts.observe(name)
        return await self.node(name)
