"""The core against a small model of MQTT's rules, whatever clients do."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from tests.shoal_broker.server.talkers import Talkers


def explore(conversations: int, **options) -> None:
    run_state_machine_as_test(
        Talkers,
        settings=settings(
            max_examples=conversations,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            **options,
        ),
    )


def test_every_client_hears_what_the_rules_say():
    # The same conversations every time; others are found by the long-winded ones.
    explore(60, derandomize=True)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_every_client_hears_what_the_rules_say_in_many_conversations():
    explore(600)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_client_hears_what_the_rules_say_in_very_many_conversations():
    explore(20_000)
