"""MQTT's rules hold over power cuts: the clients of `talkers`, before a broker that loses all but its disk."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import precondition, rule, run_state_machine_as_test
from tests.shoal_broker.server.durable.durable_desk import DurableDesk
from tests.shoal_broker.server.talkers import MAX_IN_FLIGHT, Talkers

from shoal_broker.server.durable.loading import WILL_GRACE_S


class DurableTalkers(Talkers):
    """As `Talkers`, and now and then the power is cut."""

    def new_desk(self, **config) -> DurableDesk:
        return DurableDesk(**config)

    @precondition(lambda self: self.model.sessions)
    @rule()
    def the_power_is_cut(self) -> None:
        # Whatever was said to clients is on the disk: the shell says nothing before.
        self.desk.commit()
        self.desk = self.desk.after_power_cut(max_in_flight=MAX_IN_FLIGHT, sys_interval_s=1)
        self.talkers.clear()
        self.model.lose_power(will_grace_s=int(WILL_GRACE_S))
        self.listen_to_the_server()
        self.nothing_else()


def explore(conversations: int, **options) -> None:
    run_state_machine_as_test(
        DurableTalkers,
        settings=settings(
            max_examples=conversations,
            stateful_step_count=40,
            suppress_health_check=list(HealthCheck),
            **options,
        ),
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_client_hears_what_the_rules_say_over_power_cuts():
    explore(120)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_every_client_hears_what_the_rules_say_over_very_many_power_cuts():
    explore(10_000)
