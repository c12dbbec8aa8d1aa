"""What the demo does, act by act, as an operator would: through the controller, and at the cable."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from shoal_fleet import digits
from shoal_fleet.client import FleetClient
from shoal_fleet.demo import sizes
from shoal_fleet.demo.audit import accuracy, by_key, percentile
from shoal_fleet.demo.errors import DemoError
from shoal_fleet.demo.facts import Facts, Pair
from shoal_fleet.demo.site import MODEL, Board, Site
from shoal_fleet.release_directory import pack, read_spec

COMMANDS = 100
OFFLINE_S = 5.0
OFFLOADED_READINGS = 60
PATIENCE_S = 90.0
_TAG_HEX = 8
_POLL_S = 0.25


@dataclass(slots=True)
class Progress:
    """What is going on now, for whoever shows it."""

    act: str = ""
    note: str = ""
    acts: list[str] = field(default_factory=list)
    nodes: list[dict[str, Any]] = field(default_factory=list)
    rollout: dict[str, Any] | None = None
    on_begin: Callable[[str], None] | None = None

    def begin(self, act: str) -> None:
        """The last act is done; this one begins."""
        if self.act:
            self.acts.append(self.act)
        self.act, self.note = act, ""
        if act and self.on_begin is not None:
            self.on_begin(act)


class Story:
    """One run of the demo on a site that is up."""

    def __init__(self, site: Site, progress: Progress) -> None:
        self._site = site
        self._progress = progress
        self._client = FleetClient.at(state_dir=site.controller_dir)
        self._labels = [scan.label for scan in digits.held_out()]
        self._began_s = time.monotonic()

    async def tell(self) -> Facts:
        """Play every act and count.

        Raises:
            DemoError: an act did not come to its end.
        """
        site, progress = self._site, self._progress
        progress.begin("waiting for the boards to come online")
        await self._until(lambda: self._online() == len(site.boards))

        progress.begin("rolling out digits 1.0.0")
        v1 = await self._add_release(1)
        await self._roll_out(v1, first_wave=2)
        progress.begin("devices stream digits, boards classify, devices are commanded (v1)")
        await self._until(lambda: self._all_shown(v1))

        progress.begin(f"sending {COMMANDS} commands, one after the other")
        round_trips_ms = await self._command_round_trips()

        progress.begin("rolling out digits 1.1.0 as a delta, in waves")
        v2 = await self._add_release(2)
        rollout = await self._roll_out(v2, first_wave=1)
        waves = _waves(rollout)
        fetched = _fetched(self._nodes(), v2["id"])

        progress.begin(f"{site.far_board.node} is cut off from the broker; its loop goes on")
        offline_s, offline_steps = await self._cut()
        progress.begin(f"{site.far_board.node} is back; what waited arrives")
        await self._until(lambda: self._online() == len(site.boards))

        bare = site.boards[0]
        progress.begin(f"the model is taken away from {bare.node}; its neighbours answer")
        served = await self._take_model_away(bare)
        progress.begin(f"{bare.node} gets its model back")
        await self._want(bare.node, v2["id"])
        await self._until(lambda: self._serving(bare.node) == v2["id"])

        progress.begin("devices stream digits, boards classify, devices are commanded (v2)")
        await self._until(lambda: self._all_shown(v2))

        progress.begin("no more samples; what is on its way arrives; then everything is counted")
        board_pss_bytes = [self._pss_bytes(board) for board in site.boards]
        site.stop_sampling()
        await self._until(self._drained)
        lost, readings, duplicates = await asyncio.to_thread(self._count)
        progress.begin("")
        logs = [board.log for board in site.boards]
        delta = await asyncio.to_thread(self._pair, rollout)
        return Facts(
            nodes=len(site.boards),
            readings=readings,
            lost=lost,
            duplicates=duplicates,
            accuracy_v1=accuracy(logs, self._labels, v1["id"][:_TAG_HEX]),
            accuracy_v2=accuracy(logs, self._labels, v2["id"][:_TAG_HEX]),
            digits_held_out=len(self._labels),
            full_bytes=delta.full_bytes,
            compressed_bytes=delta.compressed_bytes,
            delta_bytes=delta.delta_bytes,
            fetched_bytes=fetched,
            waves=waves,
            command_p50_ms=percentile(round_trips_ms, 0.50),
            command_p99_ms=percentile(round_trips_ms, 0.99),
            commands=len(round_trips_ms),
            offline_s=offline_s,
            offline_loop_steps=offline_steps,
            offloaded=sum(served.values()),
            served_for_others=served,
            board_pss_bytes=int(percentile(board_pss_bytes, 0.5)),
            seconds=time.monotonic() - self._began_s,
        )

    # ------------------------------------------------------------- acts
    async def _add_release(self, version: int) -> dict[str, Any]:
        directory = digits.release_dir(1 if version == 1 else 2)

        def add() -> dict[str, Any]:
            answer: dict[str, Any] = self._client.upload(
                "/api/releases", pack(directory, read_spec(directory))
            )
            return answer

        return await asyncio.to_thread(add)

    async def _roll_out(self, release: dict[str, Any], *, first_wave: int) -> dict[str, Any]:
        body = {"release": release["id"], "first_wave": first_wave, "factor": 2.0}
        started = await asyncio.to_thread(self._client.post, "/api/rollouts", body)

        def done() -> bool:
            rollout = self._client.get(f"/api/rollouts/{started['id']}")
            self._progress.rollout = rollout
            if rollout["status"] == "held" or (rollout["final"] and rollout["status"] != "done"):
                raise DemoError(f"the rollout is {rollout['status']}: {rollout['reason']}")
            return bool(rollout["final"])

        await self._until(done)
        rollout = self._progress.rollout
        self._progress.rollout = None
        if rollout is None:
            raise DemoError("the controller shows no rollout")
        return rollout

    async def _command_round_trips(self) -> list[float]:
        """Milliseconds from the operator's request to the answer of the board, over HTTP and MQTT."""

        def one(node: str) -> float:
            began = time.perf_counter()
            sent = self._client.post("/api/commands", {"node": node, "op": "ping"})
            command = sent
            while not command["final"]:
                command = self._client.wait_for_command(
                    sent["id"], seen=len(command["history"]), timeout_s=10
                )
                if time.perf_counter() - began > PATIENCE_S:
                    raise DemoError(f"{node} does not answer a ping")
            return (time.perf_counter() - began) * 1000

        nodes = [board.node for board in self._site.boards]
        return [
            await asyncio.to_thread(one, nodes[number % len(nodes)]) for number in range(COMMANDS)
        ]

    async def _cut(self) -> tuple[float, int]:
        """Cut the far board's cable for a while; seconds, and steps of its loop in that time."""
        board = self._site.far_board
        begin_s = time.monotonic()
        await self._site.uplink.cut()
        while time.monotonic() - begin_s < OFFLINE_S:
            await asyncio.sleep(_POLL_S)
            self._site.refresh()
            steps = board.log.shown_between(begin_s, time.monotonic())
            self._progress.note = f"{steps} loop steps without the uplink"
        end_s = time.monotonic()
        await self._site.uplink.heal()
        self._site.refresh()
        return end_s - begin_s, board.log.shown_between(begin_s, end_s)

    async def _take_model_away(self, board: Board) -> dict[str, int]:
        """Readings of this board by the nodes that computed them for it."""
        rows = await asyncio.to_thread(self._newest_reading, board.node)
        await self._want(board.node, None)
        await self._until(lambda: self._serving(board.node) is None)
        served: dict[str, int] = {}
        seen = rows

        def enough() -> bool:
            nonlocal served, seen
            page = self._client.get("/api/readings", node=board.node, after=seen, limit=5000)
            if page:
                seen = page[-1]["id"]
            helped = ((row["by"], 1) for row in page if row["by"] != board.node)
            served = by_key([*served.items(), *helped])
            self._progress.note = ", ".join(f"{node} {count}" for node, count in served.items())
            return sum(served.values()) >= OFFLOADED_READINGS

        await self._until(enough)
        return served

    async def _want(self, node: str, release: str | None) -> None:
        await asyncio.to_thread(
            self._client.put, f"/api/nodes/{node}/models/{MODEL}", {"release": release}
        )

    # ------------------------------------------------------------- looking
    async def _until(self, true: Callable[[], bool]) -> None:
        """Wait until `true()` holds. It may ask the controller: it runs in a thread."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not await asyncio.to_thread(true):
            self._site.refresh()
            self._progress.nodes = await asyncio.to_thread(self._nodes)
            if time.monotonic() > deadline_s:
                act, note = self._progress.act, self._progress.note
                raise DemoError(f"not done after {PATIENCE_S:g} s: {act} {note}".rstrip())
            await asyncio.sleep(_POLL_S)
        self._site.refresh()

    def _pss_bytes(self, board: Board) -> int:
        """Memory of a board's agent with its worker, and of its bridge."""
        names = (f"agent-{board.node}", f"bridge-{board.node}")
        return sum(map(self._site.processes.pss_bytes, names))

    def _nodes(self) -> list[dict[str, Any]]:
        nodes: list[dict[str, Any]] = self._client.get("/api/nodes")
        return nodes

    def _online(self) -> int:
        return sum(node["online"] and node["reported"] is not None for node in self._nodes())

    def _serving(self, name: str) -> str | None:
        """The release that a node serves, or None."""
        for node in self._nodes():
            if node["node"] == name and node["reported"] is not None:
                for model in node["reported"]["models"]:
                    if model["model"] == MODEL:
                        return model["release"] or None
        return None

    def _all_shown(self, release: dict[str, Any]) -> bool:
        """Whether every device was shown every held-out digit by this release."""
        self._site.refresh()
        rows = [len(b.log.rows_shown(release["id"][:_TAG_HEX])) for b in self._site.boards]
        self._progress.note = f"{sum(rows)} of {len(rows) * len(self._labels)}"
        return min(rows) == len(self._labels)

    def _drained(self) -> bool:
        """Whether every sample that was taken is answered, and its reading is at the controller."""
        waiting = sum(len(b.log.sampled) - b.log.answered for b in self._site.boards)
        self._progress.note = f"{waiting} samples are on their way"
        if waiting > 0:
            return False
        have = {row["node"]: row["count"] for row in self._summary()["devices"]}
        missing = sum(len(b.log.sampled) - have.get(b.node, 0) for b in self._site.boards)
        self._progress.note = f"{missing} readings are on their way"
        return bool(missing <= 0)

    def _summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = self._client.get("/api/readings/summary")
        return summary

    def _newest_reading(self, node: str) -> int:
        after = 0
        while page := self._client.get("/api/readings", node=node, after=after, limit=5000):
            after = page[-1]["id"]
        return after

    def _count(self) -> tuple[int, int, int]:
        """Lost, distinct and repeated readings: each sample by its number, one by one."""
        have: dict[str, set[int]] = {board.node: set() for board in self._site.boards}
        after = 0
        while page := self._client.get("/api/readings", after=after, limit=5000):
            after = page[-1]["id"]
            for row in page:
                have[row["node"]].add(row["seq"])
        lost = sum(len(set(b.log.sampled) - have[b.node]) for b in self._site.boards)
        return lost, sum(map(len, have.values())), self._summary()["duplicates"]

    def _pair(self, rollout: dict[str, Any]) -> Pair:
        """The delta that the controller offered, against the new model file."""
        model = (digits.release_dir(2) / "model.onnx").read_bytes()
        whole = sizes.compress(model)
        offers = [offer["size_bytes"] for offer in rollout["deltas"]]
        if not offers:
            raise DemoError("the controller offered no delta")
        return Pair("digits", whole.full_bytes, whole.best_bytes, min(offers))


def _waves(rollout: dict[str, Any]) -> list[int]:
    """How many nodes each wave had."""
    waves = by_key((f"{node['wave']:06d}", 1) for node in rollout["nodes"])
    return list(waves.values())


def _fetched(nodes: list[dict[str, Any]], release: str) -> dict[str, int]:
    """Bytes that each board fetched for this release."""
    return {
        node["node"]: model["fetched_bytes"]
        for node in nodes
        if node["reported"] is not None
        for model in node["reported"]["models"]
        if model["target"] == release
    }
