import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_contract.errors import TopicError
from shoal_contract.topics import Channel, ChunkTopic, GroupTopic, NodeTopic, Topics, UpdateTopic

nodes = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
leaves = st.from_regex(r"[A-Za-z0-9._-]{1,20}", fullmatch=True)


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
