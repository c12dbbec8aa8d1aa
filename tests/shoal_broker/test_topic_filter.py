import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_broker.bus_errors import TopicError
from shoal_broker.topic_filter import check_filter, check_topic, matches

LEVELS = st.lists(st.text("ab", max_size=2), min_size=1, max_size=4)


@pytest.mark.parametrize(
    ("topic_filter", "topic", "expected"),
    [
        ("sport/tennis/player1/#", "sport/tennis/player1", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
        ("sport/tennis/+", "sport/tennis/player1/ranking", False),
        ("sport/+", "sport", False),
        ("sport/+", "sport/", True),
        ("+/+", "/finance", True),
        ("+", "/finance", False),
        ("#", "a/b", True),
        ("#", "$SYS/monitor", False),
        ("+/monitor", "$SYS/monitor", False),
        ("$SYS/#", "$SYS/monitor", True),
        ("$share/hub/a/+", "a/b", True),
        ("$share/hub/a/+", "a/b/c", False),
    ],
)
def test_the_examples_of_the_standard_match_as_it_says(topic_filter, topic, expected):
    assert matches(topic_filter, topic) is expected


@given(LEVELS, st.data())
def test_a_level_may_be_replaced_by_plus_and_a_tail_by_hash(levels, data):
    topic = "/".join(levels)
    place = data.draw(st.integers(0, len(levels) - 1))
    plus = "/".join([*levels[:place], "+", *levels[place + 1 :]])
    assert matches(plus, topic)
    assert matches("/".join([*levels[:place], "#"]), topic)
    assert not matches(plus, topic + "/more")
    assert not matches("x/" + plus, topic)


@given(st.text("a/+#$", max_size=8))
def test_whatever_may_be_published_to_may_be_subscribed_to_and_matches_itself(text):
    try:
        check_topic(text)
    except TopicError:
        return
    if not text.startswith("$share/"):
        check_filter(text)
        assert matches(text, text)
