import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_agent.peers import announcement
from shoal_agent.peers.errors import WireError
from shoal_agent.peers.peer import Peer

NAMES = st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True)


NAME = announcement.instance_name(node="a", root="shoal")


def entries(**changes: bytes | None) -> dict[bytes, bytes | None]:
    good = {"v": b"1", "root": b"shoal", "node": b"a", "role": b"node", "models": b"digits,meter"}
    return {key.encode(): value for key, value in {**good, **changes}.items()}


def parse(found: dict, **changes: object) -> Peer | None:
    where = {"root": "shoal", "address": "192.168.1.7", "port": 4711, **changes}
    return announcement.parse(where.pop("name", NAME), found, **where)


def test_an_announcement_gives_the_neighbour():
    models = frozenset({"digits", "meter"})
    assert parse(entries()) == Peer("a", "192.168.1.7", 4711, "node", models)


@given(st.lists(NAMES, max_size=80))
def test_what_is_built_is_parsed_and_every_entry_fits_into_its_255_bytes(models):
    built = announcement.build(node="a", root="shoal", role="upstream", models=models)
    found = {key.encode(): value.encode() for key, value in built.items()}
    assert all(len(key) + 1 + len(value) <= 255 for key, value in found.items())
    peer = parse(found)
    assert peer is not None
    assert peer.role == "upstream"
    assert peer.models <= set(models)
    assert not models or peer.models


def test_another_fleets_node_is_nobody():
    assert parse(entries(root=b"other")) is None


def test_nodes_with_and_without_tls_do_not_see_each_other():
    built = announcement.build(node="a", root="shoal", role="node", models=[], tls=True)
    found = {key.encode(): value.encode() for key, value in built.items()}
    assert parse(found) is None
    assert parse(entries(), tls=True) is None
    assert parse(found, tls=True) is not None


@pytest.mark.parametrize(
    ("found", "where"),
    [
        (entries(v=b"2"), {}),
        (entries(v=None), {}),
        (entries(node=b"Not A Node"), {}),
        (entries(node=b"b"), {}),
        (entries(node=b"\xff"), {}),
        (entries(role=b"king"), {}),
        (entries(models=b"a/b"), {}),
        (entries(models=b"a,#"), {}),
        (entries(models=b",".join([b"m"] * 65)), {}),
        (entries(models=b"m" * 300), {}),
        ({}, {}),
        (entries(), {"name": announcement.instance_name(node="b", root="shoal")}),
        (entries(), {"address": None}),
        (entries(), {"address": "224.0.0.1"}),
        (entries(), {"address": "0.0.0.0"}),
        (entries(), {"address": "255.255.255.255"}),
        (entries(), {"port": 0}),
        (entries(), {"port": None}),
        (entries(), {"port": 70000}),
    ],
)
def test_a_hostile_announcement_is_refused(found, where):
    with pytest.raises(WireError):
        parse(found, **where)


@given(
    st.dictionaries(
        st.sampled_from([b"v", b"root", b"node", b"role", b"models"]),
        st.one_of(st.none(), st.binary(max_size=260)),
    )
)
def test_any_txt_record_gives_a_neighbour_nobody_or_one_error(found):
    with contextlib.suppress(WireError):
        parse(found)


def test_the_same_node_id_in_another_fleet_has_another_name_that_fits_a_dns_label():
    names = {announcement.instance_name(node="a" * 63, root=root) for root in ("shoal", "demo")}
    assert len(names) == 2
    assert all(len(name.split(".")[0]) <= 63 for name in names)
