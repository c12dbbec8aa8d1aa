import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_contract.errors import TopicError
from shoal_contract.topics import (
    DOOR_CHANNELS,
    Channel,
    ChunkTopic,
    DoorTopic,
    GroupTopic,
    NodeTopic,
    Topics,
    UpdateTopic,
)

nodes = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
leaves = st.from_regex(r"[A-Za-z0-9._-]{1,20}", fullmatch=True)
users = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", fullmatch=True)


@pytest.mark.parametrize(
    ("build", "topic"),
    [
        (lambda t: t.commands("n1"), "shoal/n/n1/c"),
        (lambda t: t.results("n1"), "shoal/n/n1/r"),
        (lambda t: t.presence("n1"), "shoal/n/n1/p"),
        (lambda t: t.state("n1"), "shoal/n/n1/s"),
        (lambda t: t.wanted("n1"), "shoal/n/n1/w"),
        (lambda t: t.telemetry("n1", "digits"), "shoal/n/n1/t/digits"),
        (lambda t: t.inference("n1", "digits"), "shoal/n/n1/i/digits"),
        (lambda t: t.group_commands("oslo"), "shoal/g/oslo/c"),
        (lambda t: t.chunk(b"\xab" * 32, 7), "shoal/b/" + "ab" * 32 + "/7"),
        (lambda t: t.update("timestamp"), "shoal/u/timestamp"),
        (lambda t: t.door("ha", "n1", Channel.COMMANDS), "shoal/j/ha/n/n1/c"),
        (lambda t: t.door("ha", "n1", Channel.TELEMETRY, "digits"), "shoal/j/ha/n/n1/t/digits"),
        (lambda t: t.every_door(Channel.COMMANDS), "shoal/j/+/n/+/c"),
        (lambda t: t.every_door(Channel.TELEMETRY, user="ha"), "shoal/j/ha/n/+/t/+"),
        (lambda t: t.every(Channel.TELEMETRY), "shoal/n/+/t/+"),
        (lambda t: t.every(Channel.STATE), "shoal/n/+/s"),
        (lambda t: t.shared("hub", t.every(Channel.RESULTS)), "$share/hub/shoal/n/+/r"),
    ],
)
def test_the_topic_table(build, topic):
    assert build(Topics()) == topic


@given(nodes, leaves)
def test_what_is_built_is_parsed_back(node, leaf):
    topics = Topics("site/7")
    assert topics.parse(topics.commands(node)) == NodeTopic(node, Channel.COMMANDS)
    assert topics.parse(topics.telemetry(node, leaf)) == NodeTopic(node, Channel.TELEMETRY, leaf)
    assert topics.parse(topics.group_commands(leaf)) == GroupTopic(leaf)
    assert topics.parse(topics.update(leaf)) == UpdateTopic(leaf)


@given(users, nodes, leaves, st.sampled_from(DOOR_CHANNELS))
def test_what_is_built_for_the_door_is_parsed_back(user, node, leaf, channel):
    topics = Topics("site/7")
    given_leaf = leaf if channel is Channel.TELEMETRY else None
    built = topics.door(user, node, channel, given_leaf)
    assert topics.parse(built) == DoorTopic(user, node, channel, given_leaf)


@pytest.mark.parametrize("user", ["", "+", "#", "a/b", "-a", ".a", "$SYS", "ü", "a b", "a" * 65])
def test_a_user_that_could_leave_its_level_is_refused(user):
    with pytest.raises(TopicError):
        Topics().door(user, "n1", Channel.COMMANDS)
    with pytest.raises(TopicError):
        Topics().parse(f"shoal/j/{user}/n/n1/c")


@pytest.mark.parametrize("end", ["w", "i/digits", "t", "c/x", "t/a/b", ""])
def test_what_is_not_in_the_door_is_no_topic_of_it(end):
    with pytest.raises(TopicError):
        Topics().parse(f"shoal/j/ha/n/n1/{end}")


@pytest.mark.parametrize(
    ("channel", "leaf"),
    [
        (Channel.WANTED, None),
        (Channel.INFERENCE, "x"),
        (Channel.TELEMETRY, None),
        (Channel.STATE, "x"),
    ],
)
def test_the_door_has_no_other_channels_or_leaves(channel, leaf):
    with pytest.raises(TopicError):
        Topics().door("ha", "n1", channel, leaf)


@given(st.binary(min_size=32, max_size=32), st.integers(0, (1 << 20) - 1))
def test_chunks_are_parsed_back(digest, index):
    assert Topics().parse(Topics().chunk(digest, index)) == ChunkTopic(digest, index)


@given(st.text(max_size=60))
def test_any_other_text_is_a_topic_error(text):
    with pytest.raises(TopicError):
        Topics().parse("shoal/x/" + text)
    with pytest.raises(TopicError):
        Topics().parse("other/" + text)


@pytest.mark.parametrize("node", ["", "-a", "a-", "A", "a/b", "a+", "#", "ä", "a" * 64, "a b"])
def test_a_name_that_could_leave_its_level_is_refused(node):
    with pytest.raises(TopicError):
        Topics().commands(node)


@pytest.mark.parametrize("index", ["-1", "1048576", "٣", "1e3", "", "99999999"])
def test_a_chunk_index_out_of_range_is_refused(index):
    with pytest.raises(TopicError):
        Topics().parse(f"shoal/b/{'ab' * 32}/{index}")


@pytest.mark.parametrize("root", ["", "a//b", "/a", "a/", "+", "a/b/c/d/e"])
def test_a_root_that_is_none_is_refused(root):
    with pytest.raises(TopicError):
        Topics(root)
