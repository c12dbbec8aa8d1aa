"""A broker bridged to another: what crosses, what waits, what is stopped. Upstream ours and Mosquitto."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import msgspec
import pytest
from tests.shoal_broker.render.rendered_mosquitto import Authority
from tests.support.bridged_brokers import bridge, client, until
from tests.support.embedded import tls_of
from tests.support.mosquitto import Mosquitto, free_port
from tests.support.tcp_proxy import TcpProxy
from tests.support.tls_listener import client_files

from shoal_broker.codec import ConnectPacket, PacketReader, PublishPacket, QoS, encode
from shoal_broker.errors import BrokerError
from shoal_broker.link import Properties
from shoal_broker.server import Broker, BrokerConfig
from shoal_broker.server.access_rules import AccessRules, Site
from shoal_broker.server.bridge.bridge import Lost
from shoal_broker.server.config import Listener
from shoal_broker.server.passwords import set_password

ANYBODY = Listener(port=0, no_auth=True)


@pytest.fixture(params=["ours", pytest.param("mosquitto", marks=pytest.mark.system)])
async def upstream(request, tmp_path):
    if request.param == "mosquitto" and Mosquitto.found() is None:
        pytest.skip("mosquitto is not installed (apt-get install mosquitto)")
    opened = (
        Mosquitto.open(tmp_path)
        if request.param == "mosquitto"
        else Broker.open(BrokerConfig(port=0))
    )
    async with opened as running:
        yield running


@asynccontextmanager
async def gateway(*bridges, **settings):
    async with Broker.open(BrokerConfig(port=0, bridges=bridges, **settings)) as broker:
        yield broker


async def stands(broker):
    await until(lambda: all(each.is_connected for each in broker.bridges))


async def test_messages_cross_both_ways_with_their_prefixes_and_all_they_carry(upstream):
    table = bridge(upstream.port, ("n/#", "both", "here/", "there/"), ("only/in", "in"))
    properties = Properties(payload_format=1, content_type="c", user=(("a", "b"), ("a", "c")))
    async with (
        gateway(table) as broker,
        client(broker.port, "l", "here/#", "only/in") as (local, got_here),
        client(upstream.port, "r", "there/#", "only/in") as (remote, got_there),
    ):
        await stands(broker)
        carried = {
            "properties": properties,
            "response_topic": "here/n/r",
            "correlation": b"\0",
            "expiry_s": 500,
        }
        await local.publish("here/n/1", b"out", durable=False, retain=True, **carried)
        await got_there.wait_payload(b"out")
        (out,) = got_there.got
        assert (out.topic, out.qos, out.retain) == ("there/n/1", 1, True)
        assert (out.response_topic, out.correlation) == ("there/n/r", b"\0")
        assert 490 < out.message_expiry_s <= 500
        assert (out.properties.payload_format, out.properties.content_type) == (1, "c")
        assert out.properties.user[:2] == (("a", "b"), ("a", "c"))
        await remote.publish("there/n/2", b"in", durable=False, qos=0)
        await remote.publish("only/in", b"only", durable=False)
        await got_here.wait_payload(b"only")
        await got_here.wait_payload(b"in")
        (came,) = (each for each in got_here.got if each.payload == b"in")
        assert (came.topic, came.qos, came.retain) == ("here/n/2", 0, False)
        await local.publish("only/in", b"stays", durable=False)
        await local.publish("here/n/3", b"last", durable=False)
        await got_there.wait_payload(b"last")
        assert got_there.payloads == [b"out", b"last"]
        assert [p for p in got_here.payloads if p in (b"out", b"last", b"stays")] == []


async def test_a_request_through_the_bridge_gets_its_reply(upstream):
    table = bridge(upstream.port, ("ask/#", "out", "", "site7/"), ("answers/#", "in", "", "site7/"))
    async with (
        gateway(table) as broker,
        client(broker.port, "asker", "answers/#") as (asker, replies),
        client(upstream.port, "service", "site7/ask/#") as (service, requests),
    ):
        await stands(broker)
        await asker.publish(
            "ask/time", b"?", durable=False, response_topic="answers/asker", correlation=b"7"
        )
        await requests.wait_payload(b"?")
        (request,) = requests.got
        assert request.response_topic == "site7/answers/asker"
        await service.publish(
            request.response_topic, b"noon", durable=False, correlation=request.correlation
        )
        await replies.wait_payload(b"noon")
        assert (replies.got[0].topic, replies.got[0].correlation) == ("answers/asker", b"7")


@pytest.mark.parametrize("durable", [False, True])
async def test_what_is_published_during_a_cut_crosses_afterwards_in_order(
    upstream, tmp_path, durable
):
    keys = {"queue_file": str(tmp_path / "queue.db")} if durable else {}
    async with TcpProxy.open(upstream.port) as line:
        table = bridge(line.port, ("t/#", "out"), **keys)
        async with (
            gateway(table) as broker,
            client(broker.port, "l") as (local, _),
            client(upstream.port, "r", "t/#") as (_, got),
        ):
            await stands(broker)
            for n in range(300):
                if n in (50, 150):
                    await line.cut()
                if n == 100:
                    await line.heal()
                await local.publish(f"t/{n % 3}", b"%d" % n, durable=False)
            await until(lambda: not broker.bridges[0].is_connected)
            if durable:
                await local.publish("t/0", b"noise", durable=False, qos=0)
                await until(lambda: broker.bridges[0].lost[Lost.OFFLINE_QOS0] == 1)
            await until(lambda: broker.bridges[0].waiting.messages >= 150)
            await line.heal()
            await got.wait_payload(b"299")
            # At least once, in order: a repeat repeats in its place.
            first_times = list(dict.fromkeys(got.payloads))
            assert first_times == [b"%d" % n for n in range(300)]
            await until(lambda: not broker.bridges[0].waiting.messages)


async def test_a_queue_file_survives_the_broker(upstream, tmp_path):
    table = bridge(free_port(), ("t/#", "out"), queue_file=str(tmp_path / "queue.db"))
    async with gateway(table) as broker, client(broker.port, "l") as (local, _):
        for n in range(50):
            await local.publish(
                "t",
                b"%d" % n,
                durable=False,
                response_topic="t/r",
                properties=Properties(content_type="c"),
            )
        await until(lambda: broker.bridges[0].waiting.messages == 50)
        broker.abort()
    table = bridge(upstream.port, ("t/#", "out"), queue_file=str(tmp_path / "queue.db"))
    async with client(upstream.port, "r", "t/#") as (_, got), gateway(table):
        await got.wait_payload(b"49")
        assert got.payloads == [b"%d" % n for n in range(50)]
        assert {(m.response_topic, m.properties.content_type) for m in got.got} == {("t/r", "c")}


async def test_a_durable_broker_keeps_what_waits_for_its_bridge(tmp_path, upstream):
    ways = (("t/#", "out"),)
    settings = {"durable_dir": tmp_path / "kept"}
    away = gateway(bridge(free_port(), *ways), **settings)
    async with away as broker, client(broker.port, "l") as (local, _):
        for n in range(50):
            await local.publish("t", b"%d" % n, durable=False)
        broker.abort()
    async with (
        client(upstream.port, "r", "t/#") as (_, got),
        gateway(bridge(upstream.port, *ways), **settings),
    ):
        await got.wait_payload(b"49")
        assert list(dict.fromkeys(got.payloads)) == [b"%d" % n for n in range(50)]


async def test_nobody_is_let_in_before_the_bridge_takes_what_he_says():
    port = free_port()
    config = BrokerConfig(port=port, bridges=(bridge(free_port(), ("t/#", "out")),))
    said = PublishPacket("t/1", b"early", qos=QoS.AT_LEAST_ONCE, packet_id=1)

    async def come_in_as_soon_as_possible():
        while True:
            with suppress(ConnectionRefusedError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                break
            await asyncio.sleep(0)
        writer.write(encode(ConnectPacket("early")) + encode(said))
        return writer

    knocking = asyncio.create_task(come_in_as_soon_as_possible())
    async with Broker.open(config) as broker:
        writer = await knocking
        await until(lambda: broker.bridges[0].waiting.messages == 1)
        writer.close()


async def test_a_bridge_shows_its_certificate_and_has_the_rights_of_its_site(tmp_path):
    authority = Authority(tmp_path / "authority")
    files = client_files(authority, "site-7")
    access = AccessRules(site=(Site(name="site-7", nodes=("n1",)),))
    table = bridge(
        1,
        ("shoal/n/+/r", "out"),
        ("shoal/n/+/c", "in"),
        client_id="site-7",
        ca_file=files.ca_file,
        cert_file=files.cert_file,
        key_file=files.key_file,
    )
    async with Broker.open(
        BrokerConfig(port=0, tls=tls_of(authority), access=access, more_listeners=(ANYBODY,))
    ) as upstream:
        table = msgspec.structs.replace(table, port=upstream.port)
        async with (
            gateway(table) as broker,
            client(broker.port, "l", "shoal/#") as (local, here),
            client(upstream.ports[1], "r", "shoal/#", "$SYS/broker/connection/#") as (
                remote,
                there,
            ),
        ):
            await there.wait_payload(b"1")
            await local.publish("shoal/n/n2/r", b"not its node", durable=False)
            await local.publish("shoal/n/n1/r", b"its node", durable=False)
            await there.wait_payload(b"its node")
            assert there.payloads == [b"1", b"its node"]
            assert broker.bridges[0].lost[Lost.REFUSED] == 1
            await remote.publish("shoal/n/n2/c", b"not its node", durable=False)
            await remote.publish("shoal/n/n1/c", b"its node", durable=False)
            await here.wait_payload(b"its node")
            assert here.payloads == [b"its node"]


async def test_what_does_not_fit_the_queue_or_gets_too_old_is_counted(tmp_path):
    table = bridge(
        free_port(),
        ("t/#", "out"),
        queue_file=str(tmp_path / "queue.db"),
        max_queued_messages=10,
        max_queued_bytes=100_000,
        max_age_s=3_600,
    )
    async with gateway(table) as broker, client(broker.port, "l") as (local, _):
        (up,) = broker.bridges
        for n in range(25):
            await local.publish("t", b"%d" % n, durable=False)
        await local.publish("t", b"x" * 100_000, durable=False)
        await until(lambda: up.counters.messages_out == 25 and up.lost[Lost.TOO_LARGE] == 1)
        assert up.waiting.messages == 10
        assert up.lost[Lost.QUEUE_FULL] == 15
        now_ms = up._outbox.clock_ms()
        up._outbox.clock_ms = lambda: now_ms + 3_601_000
        assert await up._outbox.take(max_rows=10, max_bytes=1 << 20) == []
        assert up.lost[Lost.EXPIRED] == 10


async def test_what_upstream_refuses_is_counted_and_blocks_nothing(tmp_path):
    async with (
        Broker.open(BrokerConfig(port=0, max_packet_bytes=1_000)) as upstream,
        client(upstream.port, "r", "t/#") as (_, got),
    ):
        for number, keys in enumerate(({}, {"queue_file": str(tmp_path / "queue.db")})):
            async with (
                gateway(bridge(upstream.port, ("t/#", "out"), **keys)) as broker,
                client(broker.port, "l") as (local, _),
            ):
                await stands(broker)
                await local.publish("t/1", b"x" * 2_000, durable=False)
                await local.publish("t/2", b"fits %d" % number, durable=False)
                await got.wait_payload(b"fits %d" % number)
                lost = broker.bridges[0].lost
                assert lost[Lost.TOO_LARGE] + lost[Lost.REFUSED] == 1
        assert got.payloads == [b"fits 0", b"fits 1"]


async def test_retained_messages_stay_retained_and_are_told_again_to_a_broker_that_forgot(tmp_path):
    port = free_port()
    async with AsyncExitStack() as first:
        upstream = await first.enter_async_context(Broker.open(BrokerConfig(port=port)))
        async with gateway(bridge(port, ("t/#", "both"))) as broker:
            await stands(broker)
            async with client(broker.port, "l") as (local, _):
                await local.publish("t/kept", b"kept", durable=False, retain=True)
                await local.publish("t/gone", b"gone", durable=False, retain=True)
                await local.publish("t/gone", b"", durable=False, retain=True)
            await until(lambda: broker.bridges[0].counters.messages_out == 3)
            async with client(port, "r", "t/#") as (_, got):
                await got.wait_payload(b"kept")
                assert [(m.topic, m.retain) for m in got.got] == [("t/kept", True)]
            upstream.abort()
            await first.aclose()
            await until(lambda: not broker.bridges[0].is_connected)
            async with (
                Broker.open(BrokerConfig(port=port)) as again,
                client(again.port, "late", "t/#") as (_, got),
            ):
                await got.wait_payload(b"kept")
                assert [(m.topic, m.retain) for m in got.got] == [("t/kept", True)]


async def test_both_ends_know_whether_the_bridge_stands(upstream):
    topic = "$SYS/broker/connection/up/state"
    async with TcpProxy.open(upstream.port) as line:
        async with (
            client(upstream.port, "r", topic) as (_, there),
            gateway(bridge(line.port, ("t/#", "out"))) as broker,
            client(broker.port, "l", topic) as (_, here),
        ):
            await there.wait_payload(b"1")
            await here.wait_payload(b"1")
            await line.cut()
            await there.wait_payload(b"0")
            await here.wait(lambda sink: sink.payloads[-1] == b"0")
            await line.heal()
            await here.wait(lambda sink: sink.payloads[-1] == b"1")
            await there.wait(lambda sink: sink.payloads[-1] == b"1")
        async with client(upstream.port, "late", topic) as (_, after):
            await after.wait_payload(b"0")
            assert after.got[0].retain


async def test_nobody_else_may_tell_the_state_of_a_bridge_or_take_its_place(upstream):
    async with gateway(bridge(upstream.port, ("t/#", "out"))) as broker:
        await stands(broker)
        async with client(broker.port, "l", "$SYS/broker/connection/#") as (_, got):
            await got.wait_payload(b"1")
        for client_id, code in (("$bridge/up", 0x85), ("other", 0)):
            answers = await refusals(broker.port, client_id)
            assert answers[0] == code
            if not code:
                assert answers[1] == 0x90
        assert broker.bridges[0].is_connected


async def refusals(port, client_id):
    """The reason codes for CONNECT and for a message on the state of the bridge `up`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lie = PublishPacket("$SYS/broker/connection/up/state", b"0", qos=QoS.AT_LEAST_ONCE, packet_id=1)
    writer.write(encode(ConnectPacket(client_id)) + encode(lie))
    packets, codes = PacketReader(), []
    async with asyncio.timeout(5):
        while len(codes) < 2 and (received := await reader.read(1_000)):
            packets.feed(received)
            while (packet := packets.next_packet()) is not None:
                codes.append(int(packet.reason_code))
    writer.transport.abort()
    return codes


async def test_two_bridges_between_the_same_brokers_bring_a_message_once_each_and_never_back(
    upstream,
):
    bridges = [bridge(upstream.port, ("t/#", "both"), name=name) for name in ("one", "two")]
    async with (
        gateway(*bridges) as broker,
        client(broker.port, "l", "t/#") as (local, here),
        client(upstream.port, "r", "t/#") as (remote, there),
    ):
        await stands(broker)
        await local.publish("t/1", b"from here", durable=False)
        await remote.publish("t/2", b"from there", durable=False)
        await until(lambda: there.payloads.count(b"from here") == 2)
        await until(lambda: here.payloads.count(b"from there") == 2)
        # Each bridge was offered what the other had brought, on both sides.
        await until(lambda: sum(each.lost[Lost.LOOP] for each in broker.bridges) == 4)
        assert here.payloads == [b"from there"] * 2
        assert there.payloads == [b"from here"] * 2


async def test_bridges_to_each_other_do_not_play_ping_pong():
    port = free_port()
    async with (
        gateway(bridge(port, ("t/#", "both"), name="a")) as left,
        Broker.open(
            BrokerConfig(port=port, bridges=(bridge(left.port, ("t/#", "both"), name="b"),))
        ) as right,
        client(left.port, "l", "t/#") as (local, here),
        client(port, "r", "t/#") as (_, there),
    ):
        await stands(left)
        await stands(right)
        await local.publish("t/1", b"m", durable=False)
        await until(lambda: there.payloads.count(b"m") == 2)
        await until(
            lambda: sum(each.lost[Lost.LOOP] for each in (*left.bridges, *right.bridges)) == 2
        )
        assert here.payloads == []
        assert there.payloads == [b"m"] * 2


@pytest.mark.parametrize(("direction", "copies"), [("out", 1), ("in", 1), ("both", 2)])
async def test_in_a_ring_of_three_brokers_a_message_does_not_go_round(direction, copies):
    ports = [free_port() for _ in range(3)]
    async with AsyncExitStack() as stack:
        ring = []
        for n in range(3):
            table = bridge(ports[(n + 1) % 3], ("t/#", direction), name=f"b{n}")
            config = BrokerConfig(port=ports[n], bridges=(table,))
            ring.append(await stack.enter_async_context(Broker.open(config)))
        ends = [
            await stack.enter_async_context(client(port, f"c{n}", "t/#"))
            for n, port in enumerate(ports)
        ]
        for broker in ring:
            await stands(broker)
        await ends[0][0].publish("t", b"m", durable=False)
        for _, sink in ends[1:]:
            await until(lambda sink=sink: len(sink.got) == copies)
        # What comes last is stopped where it would close the ring.
        stops = {"out": 1, "in": 1, "both": 2}[direction]
        await until(lambda: sum(b.bridges[0].lost[Lost.LOOP] for b in ring) == stops)
        assert [len(sink.got) for _, sink in ends] == [0, copies, copies]


@pytest.mark.system
@pytest.mark.skipif(Mosquitto.found() is None, reason="mosquitto is not installed")
async def test_a_bridge_of_mosquitto_works_with_our_broker_as_its_upstream(tmp_path):
    port = free_port()
    bridging = f"""allow_anonymous true
connection site
address 127.0.0.1:{port}
bridge_protocol_version mqttv50
remote_clientid site-7
cleansession false
restart_timeout 1
topic t/# both 1 here/ there/
"""
    async with (
        Broker.open(BrokerConfig(port=port)) as upstream,
        client(port, "r", "there/#", "$SYS/broker/connection/+/state") as (remote, there),
        Mosquitto.open(tmp_path, extra=bridging) as site,
        client(site.port, "l", "here/#") as (local, here),
    ):
        await there.wait_payload(b"1")
        assert there.got[0].topic == "$SYS/broker/connection/site-7/state"
        await until(lambda: "site-7" in upstream.core.router.sessions)
        await until(lambda: len(upstream.core.router.sessions["site-7"].subscriptions) == 1)
        carried = {"properties": Properties(content_type="c", user=(("a", "b"),))}
        await local.publish("here/t/1", b"up", durable=False, retain=True, **carried)
        await there.wait_payload(b"up")
        assert there.got[-1].topic == "there/t/1"
        assert there.got[-1].properties == carried["properties"]
        await remote.publish("there/t/2", b"down", durable=False)
        await here.wait_payload(b"down")
        assert (here.payloads, there.payloads) == ([b"down"], [b"1", b"up"])
        site.abort()
        await there.wait(lambda sink: sink.payloads[-1] == b"0")


async def test_a_password_and_a_full_house_do_not_concern_the_bridge_inside(upstream, tmp_path):
    users = tmp_path / "users"
    set_password(users, "u", "p")
    table = bridge(upstream.port, ("t/#", "in"))
    async with gateway(table, password_file=users, max_connections=1) as broker:
        await stands(broker)
        await until(lambda: "$bridge/up" in broker.core.router.sessions)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"password_file": "/nowhere/secret"}, "\\[bridge\\] password_file /nowhere/secret cannot"),
        ({"ca_file": "/nowhere/ca.crt"}, "\\[bridge\\] ca_file"),
        ({"queue_file": "/nowhere/queue.db"}, "bridge up: /nowhere/queue.db"),
    ],
)
async def test_a_bridge_that_cannot_be_built_is_one_clear_error(changes, what):
    with pytest.raises(BrokerError, match=what):
        async with gateway(bridge(1, ("t", "out"), **changes)):
            pass


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.timeout(60)
async def test_a_queue_file_survives_kill_9(tmp_path):
    port, there = free_port(), free_port()
    (tmp_path / "site.toml").write_text(
        f"[[listener]]\nport = {port}\n"
        f"[[bridge]]\nname = 'hq'\nhost = '127.0.0.1'\nport = {there}\nqueue_file = 'queue.db'\n"
        "[[bridge.topic]]\nfilter = 't/#'\ndirection = 'out'\nremote_prefix = 'site7/'\n"
    )
    queued = "$SYS/broker/connection/hq/queued"

    async def start():
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-c", "from shoal_broker.cli import main; main()"),
            *("run", "--config", str(tmp_path / "site.toml")),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert b"listening" in await process.stdout.readline()
        return process

    async with asyncio.timeout(50):
        process = await start()
        async with client(port, "l", queued) as (local, told):
            for n in range(200):
                await local.publish("t/1", b"%d" % n, durable=False)
            await told.wait_payload(b"200")
            process.kill()
            await process.wait()
        async with Broker.open(BrokerConfig(port=there)), client(there, "r", "#") as (_, got):
            process = await start()
            await got.wait_payload(b"199")
            assert list(dict.fromkeys(got.payloads)) == [b"%d" % n for n in range(200)]
            assert {message.topic for message in got.got} == {"site7/t/1"}
            process.terminate()
            # The goodbye of a bridge whose upstream is there takes a moment.
            assert await process.wait() == 0
