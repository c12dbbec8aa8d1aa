"""What the clients of `talkers` may say, as Hypothesis' strategies."""

from hypothesis import strategies as st
from tests.support.mqtt_rules import NEVER

NAMES = st.sampled_from("abcd")
WHICH = st.integers(0, 3)
SOME_QOS = st.sampled_from((1, 2, 0, 2))
EXPIRIES = st.sampled_from((5, NEVER, 0, 2))
INTERVALS = st.sampled_from((None, None, None, 1, 3, 0))
SHARES = {"$share/g/#": 11, "$share/g/top": 12, "$share/h/top/+": 13, "$share/h/#": 14}
"""With an identifier each, so that what is heard tells where it comes from."""
# More often what meets: the rest is what the rules of matching are about.
TOPICS = st.sampled_from((*("top", "top/u") * 4, "top/u/v", "/top", "top/", "w/a", "w/b", "$x/top"))
FILTERS = st.sampled_from(
    ("#", "top", "top/#", "+/#") * 2
    + ("top/+", "top/u", "+", "+/u", "/+", "w/#", "$x/top", "top/u/#", *SHARES)
)
WORDS = st.fixed_dictionaries(
    {
        "topic": TOPICS,
        "qos": SOME_QOS,
        "retain": st.booleans(),
        "empty": st.sampled_from((False, False, False, True)),
        "expiry_s": INTERVALS,
        "properties": st.sampled_from(((), (("k", "v"), ("k", "ü")))),
    }
)
SPEECHES = st.lists(WORDS, min_size=1, max_size=5)
ALIASES = st.sampled_from((None, 1))
WANTED = st.lists(
    st.tuples(FILTERS, SOME_QOS, st.booleans(), st.booleans(), st.integers(0, 2)),
    min_size=1,
    max_size=2,
)
HELLOS = st.fixed_dictionaries(
    {
        "clean": st.sampled_from((False, False, True)),
        "expiry_s": EXPIRIES,
        "receive_max": st.sampled_from((2, 1, 3, 65_535)),
        "topic_alias_max": st.sampled_from((0, 2)),
        "keep_alive_s": st.sampled_from((0, 3)),
        "will": st.none() | st.tuples(st.sampled_from((0, 1, 4)), WORDS),
        "wanted": WANTED,
    }
)
