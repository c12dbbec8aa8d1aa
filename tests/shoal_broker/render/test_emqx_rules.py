"""The rules for EMQX, read as EMQX documents them: Erlang terms, the first that fits decides.

EMQX itself is not started here. The reader below knows no more of Erlang than such a file needs.
"""

import re
from collections.abc import Iterator

import pytest

from shoal_broker import cli
from shoal_contract.access import TABLE, Access, Door, Fleetwide, Role, access
from shoal_contract.topics import Channel, Topics

TOPICS = Topics("acme")
NAMES = {
    "shoal-controller": Role.CONTROLLER,
    "alice": Role.OPERATOR,
    "grafana": Role.OBSERVER,
    "homeassistant": Role.DOOR,
    "nodered": Role.DOOR,
    "a": Role.NODE,
    "b": Role.NODE,
}
OF_A = {
    Channel.COMMANDS: TOPICS.commands("a"),
    Channel.RESULTS: TOPICS.results("a"),
    Channel.PRESENCE: TOPICS.presence("a"),
    Channel.STATE: TOPICS.state("a"),
    Channel.WANTED: TOPICS.wanted("a"),
    Channel.TELEMETRY: TOPICS.telemetry("a", "readings"),
    Channel.INFERENCE: TOPICS.inference("a", "digits"),
    Fleetwide.GROUP_COMMANDS: TOPICS.group_commands("north"),
    Fleetwide.CHUNKS: TOPICS.chunk(bytes(32), 7),
    Fleetwide.UPDATES: TOPICS.update("timestamp"),
    Door.COMMANDS: TOPICS.door("homeassistant", "a", Channel.COMMANDS),
    Door.RESULTS: TOPICS.door("homeassistant", "a", Channel.RESULTS),
    Door.PRESENCE: TOPICS.door("homeassistant", "a", Channel.PRESENCE),
    Door.STATE: TOPICS.door("homeassistant", "a", Channel.STATE),
    Door.TELEMETRY: TOPICS.door("homeassistant", "a", Channel.TELEMETRY, "readings"),
}
TOKEN = re.compile(r'\s*(?:%[^\n]*\s*)*([{}\[\],.]|"[^"\\\n]*"|[a-z]\w*)')


def tokens(text: str) -> Iterator[str]:
    position, end = 0, len(text.rstrip())
    while position < end:
        found = TOKEN.match(text, position)
        assert found, f"no Erlang term: {text[position : position + 40]!r}"
        yield found[1]
        position = found.end()


def term(stream: Iterator[str], token: str):
    """A term as Python: tuples, lists, texts; atoms keep a ':' before them."""
    if token not in "{[":
        assert token not in "}],.", token
        return token[1:-1] if token.startswith('"') else f":{token}"
    closing, items = {"{": "}", "[": "]"}[token], []
    while True:
        items.append(term(stream, next(stream)))
        after = next(stream)
        if after == closing:
            return tuple(items) if closing == "}" else items
        assert after == ",", after


def rules(text: str) -> list:
    stream, found = tokens(text), []
    for token in stream:
        found.append(term(stream, token))
        assert next(stream) == "."
    return found


def fits(topic_filter: str, topic: str) -> bool:
    wanted, levels = topic_filter.split("/"), topic.split("/")
    if wanted[-1] == "#":
        return True
    return len(wanted) == len(levels) and all(
        w in ("+", level) for w, level in zip(wanted, levels, strict=True)
    )


def allowed(found: list, name: str, action: str, topic: str) -> bool:
    for permission, who, *rest in found:
        match who:
            case (":username", (":re", pattern)):
                meant = re.search(pattern, name) is not None
            case (":username", user):
                meant = user == name
            case ":all":
                meant = True
        if rest:
            actions, filters = rest
            filled = [f.replace("${username}", name) for f in filters]
            meant &= actions in (":all", f":{action}") and any(fits(f, topic) for f in filled)
        if meant:
            return permission == ":allow"
    return False


@pytest.fixture(scope="module")
def acl(tmp_path_factory):
    out = tmp_path_factory.mktemp("emqx")
    arguments = ["--root", "acme", "--operator", "alice", "--observer", "grafana"]
    arguments += ["--door", "homeassistant", "--door", "nodered"]
    arguments += ["--site", "site-1=a", "--site", "site-2"]
    assert cli.run(["render", "emqx", "--out", str(out), *arguments]) == 0
    return (out / "acl.conf").read_text()


def test_it_is_one_closed_term_a_line_and_the_last_denies(acl):
    for line in acl.splitlines():
        if line and not line.startswith("%%"):
            assert line.startswith(("{allow, ", "{deny, "))
            assert len(rules(line)) == 1
    assert rules(acl)[-1] == (":deny", ":all")


@pytest.mark.parametrize(
    "broken", ["{allow, all}", "{allow, all.", '{allow, "a}.', "{allow, ]}.", "allow}."]
)
def test_the_reader_refuses_what_is_not_closed(broken):
    with pytest.raises((AssertionError, StopIteration, RuntimeError)):
        rules(broken)


@pytest.mark.parametrize("family", TABLE)
@pytest.mark.parametrize("name", NAMES)
def test_the_rules_say_what_the_table_says(acl, name, family):
    found, topic = rules(acl), OF_A[family]
    expected = access(NAMES[name], name, topic, TOPICS)
    assert allowed(found, name, "subscribe", topic) is (Access.READ in expected)
    assert allowed(found, name, "publish", topic) is (Access.WRITE in expected)


def test_a_site_speaks_for_its_own_nodes(acl):
    found = rules(acl)
    assert allowed(found, "site-1", "publish", TOPICS.state("a"))
    assert not allowed(found, "site-1", "publish", TOPICS.state("b"))
    assert not allowed(found, "site-1", "publish", TOPICS.state("site-1"))
    assert allowed(found, "site-2", "publish", TOPICS.state("b"))
    assert not allowed(found, "site-2", "publish", TOPICS.wanted("b"))


@pytest.mark.parametrize("name", ["+", "#", "a/b", "Upper", "-a", ""])
def test_a_name_that_is_no_node_id_gets_nothing(acl, name):
    found = rules(acl)
    for topic in OF_A.values():
        assert not allowed(found, name, "publish", topic)
        assert not allowed(found, name, "subscribe", topic)


@pytest.mark.parametrize("name", ["shoal-controller", "alice", "grafana", "nodered"])
def test_a_client_that_is_no_node_cannot_play_a_node_of_its_own_name(acl, name):
    assert not allowed(rules(acl), name, "publish", TOPICS.state("grafana"))
    assert not allowed(rules(acl), name, "publish", f"acme/n/{name}/s")


@pytest.mark.parametrize("wide", ["#", "acme/#", "acme/j/#", "acme/j/+/n/+/r", "acme/n/+/s"])
def test_a_client_of_the_door_cannot_subscribe_to_more_than_its_own(acl, wide):
    assert not allowed(rules(acl), "nodered", "subscribe", wide)


@pytest.mark.parametrize("wide", ["#", "acme/#", "acme/n/+/c", "$SYS/#"])
def test_a_node_cannot_subscribe_to_more_than_its_own(acl, wide):
    assert not allowed(rules(acl), "a", "subscribe", wide)
