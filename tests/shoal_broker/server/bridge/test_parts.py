"""What a bridge decides without a connection: its table, its routes, what goes round, how old a queue is."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_broker.errors import ConfigError
from shoal_broker.link import Properties
from shoal_broker.server import config_file
from shoal_broker.server.bridge import hops
from shoal_broker.server.bridge.ages import Ages
from shoal_broker.server.bridge.routes import inward, outward, reply_topic
from shoal_broker.server.bridge.table import BridgedTopics, BridgeTable, check_names
from shoal_contract import toml

EXAMPLE = b"""
name = "hq"
host = "mqtt.example.org"
port = 8883
client_id = "site-7"
ca_file = "ca.crt"
queue_file = "/var/lib/shoal/bridge-hq.db"
max_age_s = 86400

[[topic]]
filter = "n/+/t/#"
direction = "out"
local_prefix = "shoal/"
remote_prefix = "sites/7/"

[[topic]]
filter = "n/+/c"
direction = "both"
qos = 0
"""


def topics(*lines):
    return [
        BridgedTopics(
            filter=line[0], direction=line[1], local_prefix=line[2], remote_prefix=line[3]
        )
        for line in lines
    ]


def table(**changes):
    keys = {"name": "hq", "host": "::1", "topic": [{"filter": "a", "direction": "out"}]} | changes
    return msgspec.convert(keys, BridgeTable)


def test_a_table_is_read_and_its_session_is_that_of_every_broker_table(tmp_path):
    found = toml.decode(EXAMPLE, BridgeTable, source="broker.toml")
    assert found.upstream_id == "site-7"
    assert [topic.qos for topic in found.topic] == [1, 0]
    (tmp_path / "secret").write_text("pass\n")
    plain = table(password_file=str(tmp_path / "secret"), username="u")
    session = plain.session(plain.upstream_id)
    assert (session.client_id, session.username, session.password) == ("hq", "u", "pass")
    assert session.transport == "codec"


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"name": "a/b"}, "name 'a/b'"),
        ({"topic": []}, "nothing would go over it"),
        ({"transport": "aiomqtt"}, "no transport but 'codec'"),
        ({"max_age_s": 5}, "limit of the queue_file"),
        ({"max_queued_messages": 5}, "limit of the queue_file"),
        ({"topic": [{"filter": "a", "direction": "out"}] * 2}, "'a' goes out twice"),
        ({"topic": [{"filter": "a", "direction": "in"}] * 2}, "'a' comes in twice"),
        ({"topic": [{"filter": "a/#/b", "direction": "in"}]}, "'#' stands alone"),
        ({"topic": [{"filter": "", "direction": "in"}]}, "1 to 65535 bytes"),
        ({"topic": [{"filter": "a", "direction": "in", "local_prefix": "+/"}]}, "be a prefix"),
        ({"topic": [{"filter": "$share/g/a", "direction": "in"}]}, "no \\$share"),
        ({"topic": [{"filter": "$SYS/#", "direction": "out"}]}, "give a remote_prefix"),
        ({"topic": [{"filter": "$SYS/#", "direction": "in"}]}, "give a local_prefix"),
    ],
)
def test_a_table_that_cannot_work_is_refused(changes, what):
    with pytest.raises(ConfigError, match=what):
        table(**changes)


def test_a_bridge_to_another_machine_is_encrypted_or_says_that_it_is_not():
    with pytest.raises(ConfigError, match=r"\[bridge\] the broker hq.example is another machine"):
        table(host="hq.example")
    table(host="hq.example", plaintext=True)
    table(host="hq.example", ca_file="ca.crt")


def test_two_bridges_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="hq: two bridges"):
        check_names([table(), table()])


def test_prefixes_are_exchanged_and_single_topics_renamed():
    bridged = topics(("n/#", "both", "here/", "there/"), ("", "out", "old/name", "new"))
    out, single = outward(bridged)
    (back,) = inward(bridged)
    assert (out.source_filter, out.target("here/n/1")) == ("here/n/#", "there/n/1")
    assert (back.source_filter, back.target("there/n/1")) == ("there/n/#", "here/n/1")
    assert (single.source_filter, single.target("old/name")) == ("old/name", "new")


def test_a_reply_topic_is_that_from_which_the_reply_finds_back():
    back = inward(topics(("r/#", "in", "site/", "hq/7/"), ("#", "in", "", "rest/")))
    assert reply_topic("site/r/1", back) == "hq/7/r/1"
    assert reply_topic("elsewhere", back) == "rest/elsewhere"
    assert reply_topic("elsewhere", back[:1]) == "elsewhere"
    assert reply_topic(None, back) is None


def test_a_message_crosses_to_each_broker_once_and_keeps_what_it_carries():
    given = Properties(payload_format=1, content_type="t", user=(("a", "b"),))
    assert hops.may_cross(given, "A", "B")
    at_b = hops.leaving(given, "A")
    assert at_b == Properties(
        payload_format=1, content_type="t", user=(("a", "b"), ("shoal-via", "A"))
    )
    assert hops.may_cross(at_b, "B", "C")
    at_c = hops.leaving(at_b, "B")
    assert not hops.may_cross(at_c, "C", "A")
    assert not hops.may_cross(at_c, "B", "D")
    assert hops.may_cross(None, "A", "B")
    assert hops.leaving(None, "A") == Properties(user=(("shoal-via", "A"),))


def test_what_no_id_stops_is_stopped_by_its_hops():
    properties = None
    for n in range(hops.MAX_HOPS):
        assert hops.may_cross(properties, f"here {n}", f"there {n}")
        properties = hops.leaving(properties, f"here {n}")
    assert not hops.may_cross(properties, "x", "y")


@given(st.sampled_from(["ring", "star", "all"]), st.integers(2, 5), st.integers(0, 4))
def test_in_any_web_of_bridges_a_message_comes_to_an_end_and_never_back(kind, size, start):
    links = {(0, n) for n in range(1, size)}
    if kind == "ring":
        links = {(n, (n + 1) % size) for n in range(size)}
    elif kind == "all":
        links = {(a, b) for a in range(size) for b in range(size) if a < b}
    ways = [*links, *((b, a) for a, b in links)]
    start %= size
    travelling, arrivals = [(start, None)], []
    while travelling:
        here, properties = travelling.pop()
        for source, target in ways:
            if source == here and hops.may_cross(properties, str(here), str(target)):
                arrivals.append(target)
                travelling.append((target, hops.leaving(properties, str(here))))
    assert start not in arrivals
    assert set(arrivals) == set(range(size)) - {start}


def test_an_upstream_broker_is_who_it_says_or_its_address():
    assert hops.upstream_id((("x", "y"), ("shoal-broker", "me")), "h", 1) == "me"
    assert hops.upstream_id((), "h", 1) == hops.upstream_id((), "h", 1)
    assert hops.upstream_id((), "h", 1) != hops.upstream_id((), "h", 2)


def test_the_age_of_a_queue_is_that_of_its_oldest_message():
    ages = Ages(waiting=2, now_s=100)
    assert ages.oldest_s(put=0, waiting=2, now_s=103) == 3
    ages.look(put=3, waiting=5, now_s=105)
    ages.look(put=3, waiting=5, now_s=106)
    assert ages.oldest_s(put=3, waiting=5, now_s=110) == 10
    assert ages.oldest_s(put=3, waiting=3, now_s=110) == 5
    assert ages.oldest_s(put=4, waiting=1, now_s=110) == 0
    ages.look(put=4, waiting=1, now_s=111)
    assert ages.oldest_s(put=4, waiting=1, now_s=115) == 4
    assert ages.oldest_s(put=4, waiting=0, now_s=115) == 0


def test_the_brokers_file_has_bridges_and_looks_for_their_files_beside_it(tmp_path):
    path = tmp_path / "broker.toml"
    path.write_text(
        "[[bridge]]\nname = 'hq'\nhost = 'h'\nqueue_file = 'queue.db'\nca_file = '/etc/ca.crt'\n"
        "[[bridge.topic]]\nfilter = 'a'\ndirection = 'out'\n"
    )
    (found,) = config_file.load(path).bridges
    assert (found.queue_file, found.ca_file) == (str(tmp_path / "queue.db"), "/etc/ca.crt")
    assert isinstance(found, BridgeTable)
    path.write_text(path.read_text().replace("filter = 'a'", "filter = '#/a'"))
    with pytest.raises(ConfigError, match=r"broker.toml: .*'#' stands alone"):
        config_file.load(path)
    path.write_text("[[bridge]]\nname = 'hq'\nhost = 'h'\nqos = 1\n")
    with pytest.raises(ConfigError, match=r"broker.toml: \[bridge\[0\]\] unknown key `qos`"):
        config_file.load(path)
