"""The trie of filters and the trie of retained topics agree with the rule of section 4.7."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_broker.codec import PublishPacket
from shoal_broker.server.messages import Message
from shoal_broker.server.retained import LEVEL_BYTES, RetainedStore
from shoal_broker.server.subscriptions import REMEMBERED, Subscription, SubscriptionTree
from shoal_broker.topic_filter import matches

LEVEL = st.sampled_from(["a", "b", "", "$x"])
TOPICS = st.lists(LEVEL, min_size=1, max_size=4).map("/".join).filter(bool)
FILTERS = st.builds(
    lambda levels, end: "/".join([*levels, *end]),
    st.lists(st.one_of(LEVEL, st.just("+")), min_size=0, max_size=4),
    st.sampled_from([[], ["#"]]),
).filter(bool)


@dataclass(frozen=True)
class Listener:
    client_id: str
    connected: bool = True


def subscription(topic_filter, client_id="c", share=None):
    return Subscription(Listener(client_id), topic_filter, share, 1, False, False, [])


def retained(topic):
    return Message(topic, PublishPacket("t", b"x", retain=True), "c", None, 10)


@given(st.lists(FILTERS, max_size=8, unique=True), TOPICS)
@settings(max_examples=400)
def test_a_topic_finds_exactly_the_filters_that_match(filters, topic):
    tree = SubscriptionTree()
    for topic_filter in filters:
        assert tree.add(subscription(topic_filter))
    found, groups = tree.match(topic)
    assert sorted(s.topic_filter for s in found) == sorted(f for f in filters if matches(f, topic))
    assert groups == []


@given(st.lists(TOPICS, max_size=8, unique=True), FILTERS)
@settings(max_examples=400)
def test_a_filter_finds_exactly_the_retained_topics_that_match(topics, topic_filter):
    store = RetainedStore(max_messages=100, max_bytes=10_000)
    for topic in topics:
        assert store.put(retained(topic))
    found = [message.topic for message in store.match(topic_filter)]
    assert sorted(found) == sorted(t for t in topics if matches(topic_filter, t))


@given(st.lists(st.tuples(FILTERS, st.sampled_from("ab"), st.booleans()), max_size=20), TOPICS)
@settings(max_examples=300)
def test_what_was_removed_leaves_no_trace(changes, topic):
    tree, expected = SubscriptionTree(), {}
    for topic_filter, client_id, adds in changes:
        one = subscription(topic_filter, client_id)
        if adds:
            assert tree.add(one) == ((topic_filter, client_id) not in expected)
            expected[topic_filter, client_id] = one
        else:
            tree.remove(one)
            expected.pop((topic_filter, client_id), None)
    assert len(tree) == len(expected)
    found, _ = tree.match(topic)
    assert {(s.topic_filter, s.subscriber.client_id) for s in found} == {
        key for key in expected if matches(key[0], topic)
    }
    for one in expected.values():
        tree.remove(one)
    assert tree._root.empty
    assert tree.size_bytes == 0


@given(st.lists(st.tuples(TOPICS, st.booleans()), max_size=20))
@settings(max_examples=200)
def test_cleared_retained_topics_leave_no_trace(changes):
    store, expected = RetainedStore(max_messages=100, max_bytes=1_000_000), set()
    for topic, keeps in changes:
        if keeps:
            store.put(retained(topic))
            expected.add(topic)
        else:
            store.clear(topic)
            expected.discard(topic)
    assert len(store) == len(expected)
    parts = [topic.split("/") for topic in expected]
    levels = {tuple(part[:depth]) for part in parts for depth in range(1, len(part) + 1)}
    assert store.size_bytes == 10 * len(expected) + LEVEL_BYTES * len(levels)
    for topic in expected:
        store.clear(topic)
    assert store._root.children == {}
    assert store.size_bytes == 0


@pytest.mark.parametrize("topic_filter", ["#", "+/x", "+/#"])
def test_a_leading_wildcard_does_not_see_topics_of_the_server(topic_filter):
    tree = SubscriptionTree()
    tree.add(subscription(topic_filter))
    assert tree.match("$SYS/x") == ([], [])
    assert len(tree.match("sys/x")[0]) == 1


def test_a_tree_of_10_000_filters_answers_from_the_branches_it_needs():
    tree = SubscriptionTree()
    for n in range(10_000):
        tree.add(subscription(f"shoal/n/{n}/c", str(n)))
    tree.add(subscription("shoal/n/+/c", "hub", share="hub"))
    visited = tree._matching_nodes("shoal/n/77/c")
    assert len(visited) == 2
    found, groups = tree.match("shoal/n/77/c")
    assert [s.subscriber.client_id for s in found] == ["77"]
    assert [g.name for g in groups] == ["hub"]


def test_what_a_tree_remembers_is_forgotten_when_a_subscription_changes_and_has_a_bound():
    def wish(topic_filter, qos=1):
        return Subscription(Listener("c"), topic_filter, None, qos, False, False, [])

    tree = SubscriptionTree()
    tree.add(wish("a/+"))
    assert tree.match("a/b") is tree.match("a/b")
    tree.add(wish("a/b"))
    assert len(tree.match("a/b")[0]) == 2
    tree.add(wish("a/b", qos=0))
    assert sorted(one.max_qos for one in tree.match("a/b")[0]) == [0, 1]
    tree.remove(wish("a/b"))
    assert len(tree.match("a/b")[0]) == 1
    for number in range(3 * REMEMBERED // 1000):
        assert tree.match(f"a/{number}" + "x" * 1000)[0]
        assert sum(map(len, tree._found)) <= REMEMBERED
    assert not tree.match("a/" + "x/" * REMEMBERED)[0]
