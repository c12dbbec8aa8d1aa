"""The core against a small model of MQTT's rules, whatever clients do; and bugs that it must find."""

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from tests.shoal_broker.server.talkers import Talkers

from shoal_broker.server import lifecycle
from shoal_broker.server.messages import Message
from shoal_broker.server.retained import RetainedStore
from shoal_broker.server.session_life import SessionLife
from shoal_broker.server.sessions import Session
from shoal_broker.server.subscriptions import SharedGroup, SubscriptionTree


def explore(conversations: int, **options) -> None:
    run_state_machine_as_test(
        Talkers,
        settings=settings(
            max_examples=conversations,
            stateful_step_count=40,
            suppress_health_check=list(HealthCheck),
            **options,
        ),
    )


def test_every_client_hears_what_the_rules_say():
    # The same conversations every time; others are found by the long-winded ones.
    explore(50, derandomize=True)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_client_hears_what_the_rules_say_in_many_conversations():
    explore(200)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_every_client_hears_what_the_rules_say_in_very_many_conversations():
    explore(20_000)


def nothing(*_args, **_options) -> None:
    """Instead of what it replaces."""


def who_matches_but_the_last(self, topic, *, match=SubscriptionTree.match):
    subscriptions, groups = match(self, topic)
    return subscriptions[:-1], groups


def absent_members_first(self, *, candidates=SharedGroup.candidates):
    return candidates(self)[::-1]


BUGS = {
    "a subscription is passed over": (SubscriptionTree, "match", who_matches_but_the_last),
    "a share prefers who is away": (SharedGroup, "candidates", absent_members_first),
    "expired messages are delivered": (Message, "has_expired", lambda self, now_s: False),
    "an empty payload clears nothing": (RetainedStore, "clear", nothing),
    "wills are not sent": (SessionLife, "_publish_will", nothing),
    "acknowledgements free no packet id": (Session, "settle", nothing),
    "a QoS 2 message is taken twice": (Session, "is_unreleased", lambda self, packet_id: False),
    "keep alive runs twice as long": (lifecycle, "KEEP_ALIVE_GRACE", 3.0),
}


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("owner", "name", "bug"), BUGS.values(), ids=BUGS)
def test_a_seeded_bug_is_found(owner, name, bug, monkeypatch):
    monkeypatch.setattr(owner, name, bug)
    with pytest.raises(AssertionError):
        explore(5_000, derandomize=True, phases=[Phase.generate], report_multiple_bugs=False)
