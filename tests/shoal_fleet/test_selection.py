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
    order = stratify(nodes.items(), seed=seed)
    assert sorted(order) == sorted(nodes)


@given(NODES, st.text(max_size=4))
def test_the_first_nodes_are_of_different_hardware(nodes, seed):
    strata = len(set(nodes.values()))
    order = stratify(nodes.items(), seed=seed)
    assert len({nodes[node] for node in order[:strata]}) == strata


def test_another_seed_gives_another_order():
    nodes = [(f"n{index}", "pi") for index in range(20)]
    assert stratify(nodes, seed="a") != stratify(nodes, seed="b")
    assert stratify(nodes, seed="a") == stratify(reversed(nodes), seed="a")
