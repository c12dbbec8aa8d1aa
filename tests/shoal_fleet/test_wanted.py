"""What the controller wants of a node goes out signed, and ever newer."""

from shoal_contract import envelope, messages
from shoal_contract.messages import Wanted
from shoal_contract.signatures import Verifier
from shoal_contract.topics import Topics
from shoal_fleet import digits
from shoal_fleet import wanted as wanted_states

TOPIC = Topics().wanted("n0")


async def said(site, node, revision: int = 0) -> tuple[Wanted, bytes]:
    """What the node was told last, once it is newer than `revision`."""
    await site.until(lambda: node.wanted is not None and node.wanted.revision > revision)
    return node.wanted, node.wanted_as_sent


async def test_a_wanted_state_is_signed_for_its_node_and_newer_than_all_before(site, monkeypatch):
    (node,) = await site.nodes(1)
    added = await site.add_release(digits.release_dir(1))
    await site.api.put("/api/nodes/n0/models/digits", json={"release": added["id"]})
    first, data = await said(site, node)
    key = envelope.parse_key(site.controller.issuer.public_key)
    payload, signer = Verifier((key,)).open(data, topic=TOPIC)
    assert (messages.decode_as(payload, Wanted), signer) == (first, key)
    # The time of day: a controller that lost its database is still believed.
    assert 0 <= first.issued_ms - first.revision < 60_000
    # And one whose clock went back.
    monkeypatch.setattr(wanted_states, "now_ms", lambda: 5)
    await site.api.patch("/api/nodes/n0/labels", json={"labels": {"group": "oslo"}})
    second, _ = await said(site, node, first.revision)
    assert second.revision == first.revision + 1


async def test_without_a_key_it_goes_out_as_it_is(quiet_site):
    async with quiet_site.controlled(sign_commands=False) as site:
        (node,) = await site.nodes(1)
        added = await site.add_release(digits.release_dir(1))
        await site.api.put("/api/nodes/n0/models/digits", json={"release": added["id"]})
        _, data = await said(site, node)
        assert not envelope.is_signed(data)
        await site._nodes.aclose()


async def test_a_controller_with_a_new_key_signs_all_that_is_wanted_anew(quiet_site):
    async with quiet_site.controlled() as site:
        (node,) = await site.nodes(1)
        added = await site.add_release(digits.release_dir(1))
        await site.api.put("/api/nodes/n0/models/digits", json={"release": added["id"]})
        first, _ = await said(site, node)
    (site.state_dir / "command-key").unlink()
    async with site.controlled():
        key = envelope.parse_key(site.controller.issuer.public_key)
        verifier = Verifier((key,))
        await site.until(
            lambda: envelope.unpack(node.wanted_as_sent).key_id == envelope.key_id(key)
        )
        payload, _ = verifier.open(node.wanted_as_sent, topic=TOPIC)
        # Not wanted anew, said anew.
        assert messages.decode_as(payload, Wanted).revision == first.revision
        await site._nodes.aclose()
