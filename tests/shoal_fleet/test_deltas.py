"""The controller's deltas: made in a child for the bases that are out there, and what they would cost."""

import asyncio
import contextlib
import json

import numpy as np
import pytest
from tests.shoal_delta.onnx_files import network

import shoal_delta
from shoal_contract.messages import BlobRef, DeltaOffer
from shoal_fleet import delta_build
from shoal_fleet import deltas as deltas_module
from shoal_fleet.blob_store import BlobStore
from shoal_fleet.child import Ended
from shoal_fleet.database import Database
from shoal_fleet.deltas import Deltas
from shoal_fleet.tables import FleetBase
from shoal_fleet.wanted import MAX_OFFERS, _few

NEW = network(1)
NOISE = np.random.default_rng(1).integers(0, 256, 60_000, dtype=np.uint8).tobytes()


class Shelf:
    """A store with the deltas over it."""

    def __init__(self, store, deltas):
        self.store, self.deltas = store, deltas

    async def add(self, content):
        return (await self.store.add(content)).digest

    async def content(self, offer):
        return await asyncio.to_thread(self.store.path(offer.blob.digest).read_bytes)


@pytest.fixture
async def shelf(tmp_path):
    async with Database.open(tmp_path / "fleet.db", FleetBase) as database:
        store = BlobStore(tmp_path / "blobs", database)
        yield Shelf(store, Deltas(database, store, scratch=tmp_path))


@contextlib.contextmanager
def children(monkeypatch, replacement=None):
    """The arguments of the children that run; `replacement` runs in their stead."""
    real, seen = deltas_module.run_module, []

    async def run(module, *args, timeout_s):
        seen.append(args)
        return await (replacement or real)(module, *args, timeout_s=timeout_s)

    monkeypatch.setattr(deltas_module, "run_module", run)
    yield seen


async def test_deltas_from_all_bases_are_made_in_one_child_those_that_most_have_first(
    shelf, monkeypatch
):
    new = await shelf.add(NEW)
    few, many = await shelf.add(network(2, drift=0.01)), await shelf.add(network(3, drift=0.01))
    noise = await shelf.add(NOISE)
    with children(monkeypatch) as seen:
        await shelf.deltas.ensure({few: 1, many: 50, noise: 9, new: 4, b"?" * 32: 2}, new)
        await shelf.deltas.ensure({few: 1, many: 50, noise: 9}, new)
    (arguments,) = seen
    assert [text.rpartition("=")[2] for text in arguments[2:]] == ["50", "9", "1"]
    offers = {offer.base: offer for offer in await shelf.deltas.offers(new)}
    assert offers.keys() >= {few, many}
    for base in (few, many):
        old = shelf.store.path(base).read_bytes()
        assert shoal_delta.apply(old, await shelf.content(offers[base])) == NEW


async def test_a_delta_that_cannot_pay_is_remembered_as_none(shelf, monkeypatch):
    new = await shelf.add(NOISE)
    old = await shelf.add(NOISE[:100] + NOISE[59_000:] + b"x" * 10)
    with children(monkeypatch) as seen:
        await shelf.deltas.ensure({old: 3}, new)
        await shelf.deltas.ensure({old: 3}, new)
    assert len(seen) == 1
    assert await shelf.deltas.offers(new) == []
    assert (await shelf.deltas.costs({old: 3}, new))[old].delta_bytes is None


async def test_one_base_that_kills_the_child_costs_the_others_nothing(shelf, monkeypatch):
    new, good, bad = (
        await shelf.add(NEW),
        await shelf.add(network(2, drift=0.01)),
        await shelf.add(NOISE),
    )
    real = deltas_module.run_module

    async def dies_of_noise(module, *args, timeout_s):
        if any(bad.hex() in argument for argument in args):
            return Ended(exit_code=-9, stdout=b"", complaint="Killed")
        return await real(module, *args, timeout_s=timeout_s)

    with children(monkeypatch, dies_of_noise) as seen:
        await shelf.deltas.ensure({good: 1, bad: 5}, new)
        assert len(seen) == 3
        await shelf.deltas.ensure({good: 1, bad: 5}, new)
        assert len(seen) == 3
    assert [offer.base for offer in await shelf.deltas.offers(new)] == [good]


async def test_what_a_child_finished_before_it_was_killed_is_kept(shelf, monkeypatch):
    new, one, two = (
        await shelf.add(NEW),
        await shelf.add(network(2, drift=0.01)),
        await shelf.add(network(3, drift=0.01)),
    )
    real, killed = deltas_module.run_module, []

    async def killed_after_the_first(module, *args, timeout_s):
        ended = await real(module, *args, timeout_s=timeout_s)
        if len(args) > 3:
            lines = (delta_build.Path(args[1]) / "settled").read_text().splitlines()
            (delta_build.Path(args[1]) / "settled").write_text(lines[0] + "\n" + lines[1][:-9])
            killed.append(json.loads(lines[0])["base"])
            return Ended(exit_code=None, stdout=b"", complaint="")
        return ended

    with children(monkeypatch, killed_after_the_first) as seen:
        await shelf.deltas.ensure({one: 1, two: 1}, new)
    assert [len(args) - 2 for args in seen] == [2, 1]
    assert killed[0] not in seen[1][2]
    assert {offer.base for offer in await shelf.deltas.offers(new)} == {one, two}


async def test_a_cost_is_an_estimate_until_the_delta_is_made(shelf, monkeypatch):
    new, old = await shelf.add(NEW), await shelf.add(network(2, drift=0.01))
    absent = b"?" * 32
    with children(monkeypatch) as seen:
        guessed = await shelf.deltas.costs({old: 7, absent: 1, new: 3}, new)
        assert await shelf.deltas.costs({old: 1, absent: 1}, new) == guessed
        assert len(seen) == 1
    assert await shelf.deltas.offers(new) == []
    assert not guessed[old].is_exact
    assert guessed[old].make_s > 0
    assert (guessed[absent].delta_bytes, guessed[absent].is_exact) == (None, True)
    await shelf.deltas.ensure({old: 7}, new)
    exact = (await shelf.deltas.costs({old: 7}, new))[old]
    (offer,) = await shelf.deltas.offers(new)
    assert (exact.delta_bytes, exact.is_exact) == (offer.blob.size_bytes, True)
    assert guessed[old].delta_bytes == pytest.approx(exact.delta_bytes, rel=0.1)


async def test_what_cannot_be_estimated_is_said_and_asked_again(shelf, monkeypatch):
    new, old = await shelf.add(NEW), await shelf.add(network(2, drift=0.01))

    async def dies(_module, *_args, timeout_s):
        return Ended(exit_code=-11, stdout=b"", complaint="")

    with children(monkeypatch, dies) as seen:
        for _ in range(2):
            cost = (await shelf.deltas.costs({old: 1}, new))[old]
        assert (cost.delta_bytes, cost.reason) == (None, "it cannot be estimated")
        assert len(seen) == 2


def test_the_child_settles_every_base_and_says_so_line_by_line(tmp_path):
    for name, content in {"new": NEW, "a1": network(2, drift=0.01), "b2": NOISE}.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "out").mkdir()
    new, out = str(tmp_path / "new"), str(tmp_path / "out")
    bases = [f"{tmp_path / 'a1'}=1", f"{tmp_path / 'b2'}=9"]
    assert delta_build.main(["", "--estimate", new, out, *bases]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["settled"]
    assert delta_build.main(["", new, out, *bases]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out/settled").read_text().splitlines()]
    assert {line["base"] for line in lines} == {"a1", "b2"}
    ways = {line["base"]: line["way"] for line in lines}
    assert ways["a1"] == "delta"
    assert shoal_delta.apply(network(2, drift=0.01), (tmp_path / "out/a1").read_bytes()) == NEW


@pytest.mark.parametrize("words", [[], ["new"], ["new", "out", "base"], ["new", "out", "b=x"]])
def test_the_child_says_how_it_is_used(words, capsys):
    assert delta_build.main(["", *words]) == 2
    assert "usage" in capsys.readouterr().err


def test_the_child_ends_with_one_line_when_a_file_is_not_there(tmp_path, capsys):
    assert delta_build.main(["", str(tmp_path / "absent"), str(tmp_path), f"{tmp_path}/b=1"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_node_is_told_of_the_delta_from_what_it_has_however_many_are_smaller():
    blob = BlobRef(b"d" * 32, 9, 9, b"")
    offers = [DeltaOffer(bytes([n]) * 32, b"t" * 32, blob) for n in range(MAX_OFFERS + 4)]
    own = offers[-1].base
    assert [offer.base for offer in _few(offers, {own})] == [
        *(offer.base for offer in offers[: MAX_OFFERS - 1]),
        own,
    ]
    assert _few(offers, set()) == offers[:MAX_OFFERS]
