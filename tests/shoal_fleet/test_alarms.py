import asyncio

from structlog.testing import capture_logs

from shoal_fleet.alarms import Alarms
from shoal_fleet.clock import ListeningTime, now_ms
from shoal_fleet.database import Database
from shoal_fleet.registry import Registry
from shoal_fleet.tables import FleetBase


async def registry_of(database, *names):
    registry = Registry(database)
    for name in names:
        await registry.heard(name, retained=False)
    return registry


async def test_a_silent_node_is_said_once_and_its_return_once(tmp_path):
    async with Database.open(tmp_path / "fleet.db", FleetBase) as database:
        registry = await registry_of(database, "n0", "n1")
        alarms = Alarms(registry, silent_after_s=60, webhook_url=None)
        start = now_ms()
        with capture_logs() as logs:
            alarms.look(start + 59_000)
            alarms.look(start + 62_000)
            alarms.look(start + 90_000)
            registry.last_seen_ms["n0"] = start + 90_000
            alarms.look(start + 91_000)
        said = [(entry["event"], entry["node"]) for entry in logs]
        assert sorted(said) == [
            ("node is back", "n0"),
            ("node is silent", "n0"),
            ("node is silent", "n1"),
        ]
        assert alarms.silent == {"n1"}


async def test_nobody_is_silent_while_nobody_listens(tmp_path, monkeypatch):
    """The broker is away for two hours, or the clock is set: neither is the nodes' silence."""
    async with Database.open(tmp_path / "fleet.db", FleetBase) as database:
        registry = await registry_of(database, "n0")
        alarms = Alarms(registry, silent_after_s=60, webhook_url=None)
        later_ms = now_ms() + 7_200_000
        monkeypatch.setattr("shoal_fleet.alarms.now_ms", lambda: later_ms)
        alarms.look_now()
        assert alarms.silent == set()
        alarms.look(later_ms + 61_000)
        assert alarms.silent == {"n0"}


def test_time_counts_when_somebody_listens_and_the_clocks_agree():
    time = ListeningTime(1_000, 5.0)
    assert time.uncounted_ms(2_000, 6.0, listening=True) == 0
    assert time.uncounted_ms(4_000, 8.0, listening=False) == 2_000
    assert time.uncounted_ms(3_604_500, 8.5, listening=True) == 3_600_000
    assert time.uncounted_ms(5_000, 9.0, listening=True) == -3_600_000


async def test_a_parked_node_may_be_silent(tmp_path):
    async with Database.open(tmp_path / "fleet.db", FleetBase) as database:
        registry = await registry_of(database, "n0")
        await registry.label("n0", {"parked": "yes"})
        alarms = Alarms(registry, silent_after_s=60, webhook_url=None)
        alarms.look(now_ms() + 3_600_000)
        assert alarms.silent == set()


async def test_a_retained_message_is_no_sign_of_life(tmp_path):
    async with Database.open(tmp_path / "fleet.db", FleetBase) as database:
        registry = await registry_of(database, "n0")
        registry.last_seen_ms["n0"] = 5
        await registry.heard("n0", retained=True)
        assert registry.last_seen_ms["n0"] == 5


async def test_the_webhook_gets_the_alarm_as_json(quiet_site):
    got: asyncio.Queue[bytes] = asyncio.Queue()

    async def take(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length")
        )
        got.put_nowait(await reader.readexactly(length))
        writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}/alarm"
        async with (
            quiet_site.controlled(webhook_url=url, silent_after_s=0.5) as site,
            site.node("n0"),
            asyncio.timeout(8),
        ):
            alarm = await got.get()
            assert b'"event":"node is silent"' in alarm
            assert b'"node":"n0"' in alarm
            assert (await site.api.get("/api/status")).json()["nodes_silent"] == ["n0"]
