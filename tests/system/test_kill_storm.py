"""Commands and samples while the broker and the agents are killed: nothing lost, nothing done twice."""

import pytest
from tests.support.killed_programs import BROKERS
from tests.support.mosquitto import Mosquitto
from tests.support.storm import Storm

pytestmark = pytest.mark.system

SHORT_COMMANDS, SHORT_KILLS = 120, 3
FULL_COMMANDS = 1000
# With the controller killed as often, each round takes its start-up, too.
CONTROLLER_KILLS = 20


async def account_of(kind, folder, *, commands, kills, kill_controller=False):
    if kind != "embedded" and Mosquitto.found() is None:
        pytest.skip("mosquitto is not installed")
    async with Storm.open(kind, folder) as storm:
        await storm.blow(commands=commands, rounds=kills, kill_controller=kill_controller)
        account = await storm.account(kind)
    print(account)
    assert (account.commands, account.broker_kills, account.agent_kills) == (commands, kills, kills)
    return account


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", BROKERS)
async def test_every_command_ends_once_and_no_sample_is_lost_in_a_short_storm(kind, tmp_path):
    account = await account_of(kind, tmp_path, commands=SHORT_COMMANDS, kills=SHORT_KILLS)
    assert not account.broken, account


@pytest.mark.timeout(300)
async def test_nothing_is_lost_when_the_controller_is_killed_with_the_others(tmp_path):
    account = await account_of("embedded", tmp_path, commands=60, kills=1, kill_controller=True)
    assert account.controller_kills == 1
    assert not account.broken, account


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kill_controller", [False, True], ids=["", "controller-too"])
@pytest.mark.parametrize("kind", BROKERS)
async def test_every_command_ends_once_and_no_sample_is_lost_in_the_full_storm(
    kind, kill_controller, tmp_path, request
):
    kills = request.config.getoption("--storm-kills")
    account = await account_of(
        kind,
        tmp_path,
        commands=FULL_COMMANDS,
        kills=min(kills, CONTROLLER_KILLS) if kill_controller else kills,
        kill_controller=kill_controller,
    )
    assert not account.broken, account
