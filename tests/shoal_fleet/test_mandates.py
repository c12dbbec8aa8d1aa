"""The controller's book of mandates: what it takes, what a node is told of it, and that every node is told."""

import asyncio

import pytest
from tests.support.board import Board, short_folder

from shoal_agent import app as agent_app
from shoal_agent.config import load
from shoal_broker.logs import RecentLines
from shoal_broker.session import Session, SessionConfig
from shoal_contract import envelope, messages
from shoal_contract.messages import Command, Mandate, State
from shoal_contract.signatures import Signer, Verifier
from shoal_contract.topics import Topics
from shoal_fleet.clock import now_ms
from shoal_fleet.database import Database
from shoal_fleet.errors import ConflictError, NotFoundError, RequestError
from shoal_fleet.issuer import Issuer
from shoal_fleet.mandates import MAX_MANDATES, Mandates, Surface
from shoal_fleet.tables import FleetBase

ALICE, BOB = (Signer(bytes([n]) * 32) for n in (2, 3))
TOPICS = Topics()


@pytest.fixture
async def database(tmp_path):
    async with Database.open(tmp_path / "fleet.db", FleetBase) as database:
        yield database


@pytest.fixture
async def book(database):
    return await Mandates.load(database, Issuer(Signer(bytes(32))))


def mandate(name="alice", key=ALICE, ops=("device.*",), groups=("oslo",), **more) -> Mandate:
    return Mandate(key.public_key, name, list(ops), list(groups), **more)


async def test_a_node_is_told_of_mandates_that_reach_it_and_of_every_revoked_key(book):
    await book.grant(mandate())
    await book.grant(mandate("bob", BOB, groups=["bergen"]))
    assert [m.name for m in book.policy(["oslo"]).mandates] == ["alice"]
    assert [m.name for m in book.policy(["bergen"]).mandates] == ["bob"]
    assert book.policy([]).mandates == []
    await book.revoke("alice")
    assert book.policy(["oslo"]).mandates == []
    assert book.policy(["bergen"]).revoked == [ALICE.public_key]


async def test_a_mandate_for_everybodys_group_goes_to_every_node(book):
    await book.grant(mandate(groups=["all"]))
    await book.grant(mandate("bob", BOB, groups=["*"]))
    assert len(book.policy([]).mandates) == 2


async def test_what_is_approved_must_be_so_for_all_nodes_and_for_the_group(book):
    assert book.policy(["oslo"]).approved == ["*"]
    await book.set_surface("*", Surface(("device.*", "ping")))
    await book.set_surface("oslo", Surface(("device.set", "logs.tail"), ("device.get",)))
    assert book.policy(["oslo"]).approved == ["device.set"]
    assert book.policy(["oslo"]).denied == ["device.get"]
    assert book.policy(["bergen"]).approved == ["device.*", "ping"]
    await book.set_surface("oslo", Surface(None))
    assert book.policy(["oslo"]).approved == ["device.*", "ping"]
    await book.set_surface("oslo", Surface(()))
    assert book.policy(["oslo"]).approved == []


async def test_the_book_is_the_same_after_a_restart(book, database):
    await book.grant(mandate(may_delegate=True, until_ms=now_ms() + 60_000))
    await book.grant(mandate("bob", BOB))
    await book.revoke("bob")
    await book.set_surface("oslo", Surface(None, ("agent.restart",)))
    await book.set_surface("bergen", Surface(()))
    again = await Mandates.load(database, Issuer(Signer(bytes(32))))
    assert (again.given, again.surfaces) == (book.given, book.surfaces)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (mandate("no spaces"), "is no name"),
        (mandate(ops=[]), "needs operations and groups"),
        (mandate(groups=[]), "needs operations and groups"),
        (mandate(ops=["device*"]), "is no operation"),
        (mandate(ops=["*.set"]), "is no operation"),
        (mandate(groups=["a/b"]), "group: "),
        (mandate(until_ms=1), "would have ended already"),
        (mandate(ops=[f"op{n}" for n in range(65)]), "more than 64 operations"),
    ],
)
async def test_a_mandate_that_says_nothing_to_nodes_is_refused(book, given, says):
    with pytest.raises(RequestError, match=says):
        await book.grant(given)
    assert book.is_empty()


async def test_a_name_and_a_key_belong_together_for_good(book):
    await book.grant(mandate())
    await book.grant(mandate(ops=["ping"]))
    with pytest.raises(ConflictError, match="has another key"):
        await book.grant(mandate(key=BOB))
    with pytest.raises(ConflictError, match="alice has this key already"):
        await book.grant(mandate("bob", ALICE))
    await book.revoke("alice")
    with pytest.raises(ConflictError, match="was revoked"):
        await book.grant(mandate())
    with pytest.raises(NotFoundError):
        await book.revoke("carol")


async def test_there_are_not_more_mandates_than_a_policy_holds(book):
    for number in range(MAX_MANDATES):
        await book.grant(mandate(f"m{number}", Signer(bytes([number + 1, 9] * 16))))
    with pytest.raises(RequestError, match="revoke some"):
        await book.grant(mandate("one-more"))
    messages.encode(book.policy(["oslo"]))


async def test_without_signatures_there_are_no_mandates(database):
    book = await Mandates.load(database, Issuer(None))
    with pytest.raises(RequestError, match="sign_commands"):
        await book.grant(mandate())


# ------------------------------------------------------------------ telling nodes
def key(site) -> Verifier:
    return Verifier([envelope.parse_key(site.controller.issuer.public_key)])


async def grant(site, name="alice", signer=ALICE, ops=("*",), groups=("*",), **more):
    body = {"key": envelope.key_text(signer.public_key), "ops": ops, "groups": groups, **more}
    answer = await site.api.put(f"/api/mandates/{name}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def told(site) -> dict:
    return (await site.api.get("/api/mandates")).json()["nodes"]


async def test_every_node_is_told_also_one_that_comes_later(site):
    (first,) = await site.nodes(1, trusts=key(site))
    await grant(site)
    await site.until(lambda: len(first.policies) == 1)
    async with site.node("later", trusts=key(site)) as later:
        await site.until(lambda: len(later.policies) == 1)
        assert [m.name for m in later.policies[0].mandates] == ["alice"]
        await site.until_answer(
            lambda: told(site),
            lambda nodes: (
                {name: node["state"] for name, node in nodes.items()}
                == {"n0": "held", "later": "held"}
            ),
        )


async def test_nobody_is_told_anything_while_there_is_no_mandate(site):
    (node,) = await site.nodes(1, trusts=key(site))
    await site.api.patch("/api/nodes/n0/labels", json={"labels": {"group": "oslo"}})
    assert await told(site) == {}
    assert node.policies == []


async def test_a_node_that_changes_its_group_is_told_anew_with_a_later_version(site):
    (node,) = await site.nodes(1, trusts=key(site))
    await grant(site, groups=["oslo"])
    await site.until(lambda: len(node.policies) == 1)
    assert node.policies[0].mandates == []
    await site.api.patch("/api/nodes/n0/labels", json={"labels": {"group": "oslo"}})
    await site.until(lambda: len(node.policies) == 2)
    assert [m.name for m in node.policies[1].mandates] == ["alice"]
    assert node.policies[1].version > node.policies[0].version


async def test_a_node_that_does_not_take_its_policy_is_listed_with_its_reason(site):
    await site.nodes(1)
    await grant(site)
    found = await site.until_answer(
        lambda: told(site), lambda nodes: nodes.get("n0", {}).get("state") == "refused"
    )
    assert "no [trust] command_keys" in found["n0"]["reason"]


async def test_what_is_wrong_is_one_line_with_a_status(site):
    body = {"key": "short", "ops": ["*"], "groups": ["*"]}
    answer = await site.api.put("/api/mandates/alice", json=body)
    assert (answer.status_code, answer.json()["error"]) == (400, "not a key in base64")
    assert (await site.api.delete("/api/mandates/alice")).status_code == 404
    assert (await site.api.get("/api/surfaces/oslo")).status_code == 404
    wrong = await site.api.put("/api/surfaces/a%2Fb", json={})
    assert wrong.status_code in {400, 404}


async def test_a_real_agent_obeys_the_holder_of_a_mandate_until_it_is_revoked(site):
    with short_folder() as folder:
        board = Board(folder)
        trust = f'[trust]\ncommand_keys = ["{site.controller.issuer.public_key}"]\n'
        config = load(board.agent_toml(site.broker_port, more=trust))
        async with agent_app.running(config, recent=RecentLines(), stop=asyncio.Event()):
            await grant(site, ops=["ping"])
            await site.until_answer(
                lambda: told(site),
                lambda nodes: nodes.get(board.node, {}).get("state") == "held",
            )
            async with asking(site, board.node) as ask:
                assert (await ask("ping")).state is State.SUCCEEDED
                refused = await ask("config.get")
                assert refused.state is State.REFUSED
                assert refused.reason == "the mandate of alice does not include config.get"
                before = (await told(site))[board.node]["version"]
                await site.api.delete("/api/mandates/alice")
                await site.until_answer(
                    lambda: told(site),
                    lambda nodes: (
                        nodes[board.node]["version"] > before
                        and nodes[board.node]["state"] == "held"
                    ),
                )
                with pytest.raises(TimeoutError):
                    await ask("ping", timeout_s=0.5)


class asking:  # noqa: N801 - used like a function
    """`ask(op)`: the final answer of a node to a command that Alice signed, over a client of her own."""

    def __init__(self, site, node: str) -> None:
        self._node = node
        self._answers: asyncio.Queue = asyncio.Queue()
        self._opened = Session.open(
            SessionConfig(host="127.0.0.1", port=site.broker_port, client_id="alice"),
            subscriptions={TOPICS.results(node): self._hear},
        )

    async def __aenter__(self):
        self._session = await self._opened.__aenter__()
        await self._session.wait_connected(5)
        return self._ask

    async def __aexit__(self, *error):
        await self._opened.__aexit__(*error)

    async def _hear(self, message) -> None:
        self._answers.put_nowait(messages.decode(message.payload))

    async def _ask(self, op: str, timeout_s: float = 5):
        number = now_ms().to_bytes(8, "big")
        command = Command(number, op, {}, now_ms(), now_ms() + 5000)
        topic = TOPICS.commands(self._node)
        payload = ALICE.sign(messages.encode(command), topic=topic)
        await self._session.publish(topic, payload, durable=False)
        async with asyncio.timeout(timeout_s):
            while True:
                answer = await self._answers.get()
                if answer.id == number and answer.state.is_final:
                    return answer
