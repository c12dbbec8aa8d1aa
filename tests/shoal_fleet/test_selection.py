import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_fleet.errors import RequestError
from shoal_fleet.selection import belongs, check_label, parse_group, stratify

NODES = st.dictionaries(st.text("abcdef", min_size=1, max_size=4), st.sampled_from("xyz"))


def test_a_bare_word_names_the_group_label():
    assert parse_group("canary") == {"group": "canary"}


def test_several_labels_must_all_hold():
    group = parse_group("site=oslo, hw=rpi4")
    assert belongs({"site": "oslo", "hw": "rpi4", "line": "2"}, group)
    assert not belongs({"site": "oslo"}, group)


def test_no_expression_names_every_node():
    assert belongs({}, parse_group(""))


@pytest.mark.parametrize("text", ["=x", "site=", "site=oslo,site=bergen", "SITE=x", "a b"])
def test_an_expression_that_names_nothing_is_refused(text):
    with pytest.raises(RequestError):
        parse_group(text)


def test_a_label_that_could_not_be_asked_for_is_refused():
    with pytest.raises(RequestError):
        check_label("site", "oslo,bergen")


@given(NODES, st.text(max_size=4))
def test_every_node_stands_in_the_order_once(nodes, seed):
    order = stratify(((node, (kind,)) for node, kind in nodes.items()), seed=seed)
    assert sorted(order) == sorted(nodes)


@given(NODES, st.text(max_size=4))
def test_the_first_nodes_are_of_different_hardware(nodes, seed):
    strata = len(set(nodes.values()))
    order = stratify(((node, (kind,)) for node, kind in nodes.items()), seed=seed)
    assert len({nodes[node] for node in order[:strata]}) == strata


def test_another_seed_gives_another_order():
    nodes = [(f"n{index}", ("pi",)) for index in range(20)]
    assert stratify(nodes, seed="a") != stratify(nodes, seed="b")
    assert stratify(nodes, seed="a") == stratify(reversed(nodes), seed="a")


def test_within_a_kind_of_hardware_the_sites_take_turns_too():
    nodes = [
        (f"{kind}{site}{index}", (kind, site)) for kind in "ab" for site in "xyz" for index in "12"
    ]
    order = stratify(nodes, seed="s")
    assert {node[0] for node in order[:2]} == {"a", "b"}
    assert {node[:2] for node in order[:6]} == {"ax", "ay", "az", "bx", "by", "bz"}
