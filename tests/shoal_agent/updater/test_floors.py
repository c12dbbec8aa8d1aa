"""What has been seen, as pure rules: they only rise, until all keys are others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_agent.updater import floors
from shoal_agent.updater.floors import Floors, older, raised
from shoal_contract.errors import DecodeError

VERSION = st.integers(0, 6)
KEYS = st.lists(st.sampled_from("abc"), min_size=1, max_size=2, unique=True)
SEEN = st.builds(
    Floors,
    root=VERSION,
    timestamp=VERSION,
    snapshot=VERSION,
    issued_s=VERSION,
    timestamp_keys=KEYS,
    roles=st.dictionaries(st.sampled_from(["targets.json", "group-a.json"]), VERSION),
    snapshot_keys=KEYS,
)


@given(SEEN, SEEN)
def test_what_was_seen_is_not_older_than_what_it_raised(before, seen):
    if not older(seen, before):
        after = raised(before, seen)
        assert older(seen, after) == ""


@given(SEEN, st.lists(SEEN, max_size=8))
def test_nothing_gets_lower_while_somebody_still_signs(before, rest):
    held = before
    for seen in rest:
        after = raised(held, seen)
        assert after.root >= held.root
        if set(after.timestamp_keys) & set(held.timestamp_keys):
            assert after.timestamp >= held.timestamp
            assert after.snapshot >= held.snapshot
            assert after.issued_s >= held.issued_s
        if set(after.snapshot_keys) & set(held.snapshot_keys):
            assert all(after.roles[name] >= version for name, version in held.roles.items())
        held = after


@given(SEEN)
def test_they_come_back_from_the_journal_as_they_were(seen):
    assert floors.decode(floors.encode(seen)) == seen


@pytest.mark.parametrize("data", [b"", b"[]", b'{"root": -1}', b'{"root": 1, "more": 2}', b"\xff"])
def test_a_row_that_cannot_be_read_is_an_error(data):
    with pytest.raises(DecodeError):
        floors.decode(data)


def test_a_key_beside_the_old_one_keeps_the_floors():
    """Else the old key's old signatures would count again until the first look."""
    held = Floors(root=1, timestamp=7, timestamp_keys=["a"])
    seen = Floors(root=2, timestamp=3, timestamp_keys=["a", "b"])
    assert "timestamp of version 3 is older than 7" in older(seen, held)
    assert older(Floors(root=2, timestamp=3, timestamp_keys=["b"]), held) == ""
