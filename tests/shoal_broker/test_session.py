import asyncio
import socket
import subprocess
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import structlog.testing
from tests.shoal_broker.render.rendered_mosquitto import Authority
from tests.support.mosquitto import Mosquitto
from tests.support.tcp_proxy import TcpProxy
from tests.support.tls_listener import client_files, tls_listener

from shoal_broker import aiomqtt_transport, codec_transport
from shoal_broker.bus_errors import (
    AnswerTimeoutError,
    BusError,
    MessageTooLargeError,
    NotConnectedError,
    StoreError,
    TopicError,
)
from shoal_broker.link import Properties
from shoal_broker.outbox import Lane, Outbox, OutboxMessage, insert
from shoal_broker.server import Broker, BrokerConfig
from shoal_broker.session import (
    Inbound,
    Redeliver,
    Session,
    SessionConfig,
    SideBySide,
    Will,
)
from shoal_broker.store import Store

DEADLINE_S = 10


@dataclass
class RunningBroker:
    """The broker under a test; `restart` aborts it and starts an empty one on the same port."""

    kind: str
    folder: Path
    port: int = 0
    extra: str = ""
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def start(self) -> None:
        if self.kind == "mosquitto":
            opened = Mosquitto.open(self.folder, port=self.port, extra=self.extra)
        else:
            opened = Broker.open(BrokerConfig(host="127.0.0.1", port=self.port))
        self._broker = await self._stack.enter_async_context(opened)
        self.port = self._broker.port

    async def stop(self) -> None:
        self._broker.abort()
        await self._stack.aclose()

    async def restart(self) -> None:
        await self.stop()
        await self.start()


# What `config` says unless a test says otherwise.
QUICK = {"backoff_initial_s": 0.02, "backoff_max_s": 0.1, "connect_timeout_s": 5.0}


@pytest.fixture(params=["aiomqtt", "codec"])
def transport(request, monkeypatch):
    monkeypatch.setitem(QUICK, "transport", request.param)
    return request.param


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


BROKERS = ["embedded", pytest.param("mosquitto", marks=pytest.mark.system)]
# The core of it runs over TLS always, the rest when there is time.
over_tls_too = pytest.mark.parametrize(
    "broker", [*BROKERS, pytest.param("mosquitto-tls", marks=pytest.mark.system)], indirect=True
)


@pytest.fixture(
    params=[
        *BROKERS,
        pytest.param("mosquitto-tls", marks=[pytest.mark.system, pytest.mark.long]),
    ]
)
async def broker(request, tmp_path, transport, monkeypatch):
    if request.param != "embedded" and Mosquitto.found() is None:
        pytest.skip("mosquitto is not installed (apt-get install mosquitto)")
    running = RunningBroker(request.param.partition("-")[0], tmp_path)
    if request.param == "mosquitto-tls":
        authority = request.getfixturevalue("authority")
        running.extra = tls_listener(authority)
        monkeypatch.setitem(QUICK, "tls", client_files(authority))
    await running.start()
    yield running
    await running._stack.aclose()


def config(port: int, client_id: str = "node-1", **given) -> SessionConfig:
    return SessionConfig(host="127.0.0.1", port=port, client_id=client_id, **QUICK | given)


@asynccontextmanager
async def connected(port: int, client_id: str = "node-1", *, given=None, **options):
    async with Session.open(config(port, client_id, **given or {}), **options) as session:
        await session.wait_connected(DEADLINE_S)
        yield session


class Sink:
    """A subscriber that keeps what it got and lets a test wait for a count of it."""

    def __init__(self) -> None:
        self.got: list[Inbound] = []
        self._arrived = asyncio.Event()

    async def __call__(self, inbound: Inbound) -> None:
        self.got.append(inbound)
        self._arrived.set()

    @property
    def payloads(self) -> list[bytes]:
        return [inbound.payload for inbound in self.got]

    async def wait(self, count: int) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while len(self.got) < count:
                self._arrived.clear()
                await self._arrived.wait()


async def send(port: int, topic: str, *payloads: bytes, **options) -> None:
    async with connected(port, "sender") as sender:
        for payload in payloads:
            await sender.publish(topic, payload, durable=False, **options)


async def until(true) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not true():  # noqa: ASYNC110 - counters have no event
            await asyncio.sleep(0.005)


@over_tls_too
async def test_a_message_reaches_its_subscriber_with_all_its_properties(broker):
    sink = Sink()
    async with connected(broker.port, subscriptions={"a/+": sink}):
        await send(broker.port, "a/b", b"\0x", response_topic="r/1", correlation=b"c", expiry_s=60)
        await sink.wait(1)
    inbound = sink.got[0]
    assert (inbound.topic, inbound.payload, inbound.qos) == ("a/b", b"\0x", 1)
    assert (inbound.response_topic, inbound.correlation) == ("r/1", b"c")
    assert inbound.message_expiry_s in (59, 60)


async def test_open_returns_at_once_without_a_broker_and_a_direct_publish_says_so(transport):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with Session.open(config(taken.getsockname()[1])) as session:
            assert not session.connected
            with pytest.raises(NotConnectedError, match="not connected to 127"):
                await session.publish("t", b"", durable=False)
            with pytest.raises(NotConnectedError):
                await session.wait_connected(0.01)


@over_tls_too
async def test_nagle_is_off(broker):
    async with connected(broker.port) as session:
        sock = session._link.socket
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


async def test_a_message_in_work_is_sent_again_when_the_session_dies(broker):
    started = asyncio.Event()

    async def never(inbound: Inbound) -> None:
        started.set()
        await asyncio.Event().wait()

    async with connected(broker.port, subscriptions={"t": never}):
        await send(broker.port, "t", b"1", b"2")
        async with asyncio.timeout(DEADLINE_S):
            await started.wait()
    sink = Sink()
    async with connected(broker.port, subscriptions={"t": sink}) as session:
        await sink.wait(2)
        assert sink.payloads == [b"1", b"2"]
        assert session.stats.handled == 2
    async with connected(broker.port, subscriptions={"t": sink}):
        await send(broker.port, "t", b"3")
        await sink.wait(3)
    assert sink.payloads == [b"1", b"2", b"3"]


CHILD = """
import asyncio, sys
from shoal_broker.session import Session, SessionConfig
from shoal_broker.tls import TlsFiles

async def begin(inbound):
    print(inbound.payload.decode(), flush=True)
    await asyncio.Event().wait()

async def main():
    port, transport, *files = sys.argv[1:]
    tls = TlsFiles(**dict(zip(("ca_file", "cert_file", "key_file"), files))) if files else None
    config = SessionConfig(
        host="127.0.0.1", port=int(port), client_id="node-1", transport=transport, tls=tls
    )
    async with Session.open(config, subscriptions={"t": begin}) as session:
        await session.wait_connected(10)
        print("ready", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.system
async def test_a_message_in_work_is_sent_again_after_kill_9(broker, transport):
    tls = QUICK.get("tls")
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        CHILD,
        str(broker.port),
        transport,
        *((tls.ca_file, tls.cert_file, tls.key_file) if tls else ()),
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(DEADLINE_S):
        await child.stdout.readuntil(b"ready\n")
        await send(broker.port, "t", b"1", b"2", b"3")
        await child.stdout.readuntil(b"1\n")
        child.kill()
        await child.wait()
    sink = Sink()
    async with connected(broker.port, subscriptions={"t": sink}):
        await sink.wait(3)
    assert sink.payloads == [b"1", b"2", b"3"]


@over_tls_too
async def test_a_message_in_work_while_the_line_breaks_is_worked_on_once(broker):
    gate = asyncio.Event()
    got = []

    async def slow(inbound: Inbound) -> None:
        got.append(inbound.payload)
        await gate.wait()

    async with (
        TcpProxy.open(broker.port) as proxy,
        connected(proxy.port, subscriptions={"t": slow}) as session,
    ):
        await send(broker.port, "t", b"1", b"2", b"3")
        await until(lambda: got == [b"1"] and session.stats.received == 3)
        await proxy.cut()
        await proxy.heal()
        await until(lambda: session.stats.recognised == 3)
        gate.set()
        await until(lambda: session.stats.handled == 3)
        assert got == [b"1", b"2", b"3"]
    sink = Sink()
    async with connected(broker.port, subscriptions={"t": sink}):
        await send(broker.port, "t", b"4")
        await sink.wait(1)
    assert sink.payloads == [b"4"]


@pytest.mark.system
async def test_a_refused_identity_is_an_alarm_and_not_a_silent_retry(tmp_path, transport):
    if Mosquitto.found() is None:
        pytest.skip("mosquitto is not installed (apt-get install mosquitto)")
    with structlog.testing.capture_logs() as logs:
        async with Mosquitto.open(tmp_path, extra="allow_anonymous false") as refusing:
            given = config(refusing.port, username="me", password="wrong")
            assert "wrong" not in repr(given)
            async with Session.open(given) as session:
                await until(lambda: session.stats.identity_refused >= 2)
                with pytest.raises(NotConnectedError, match="refuses this identity"):
                    await session.publish("t", b"", durable=False)
    alarms = [entry for entry in logs if entry["event"] == "identity refused"]
    assert alarms[0]["log_level"] == "error"
    assert alarms[0]["reason_code"] == 0x87


async def test_a_message_is_acknowledged_only_after_its_subscriber_returned(broker):
    gate = asyncio.Event()
    got = []

    async def slow(inbound: Inbound) -> None:
        got.append(inbound.payload)
        await gate.wait()

    # The broker may send two without our acknowledgement: a third shows that one was given.
    async with connected(broker.port, given={"receive_maximum": 2}, subscriptions={"t": slow}):
        await send(broker.port, "t", b"1", b"2", b"3")
        await until(lambda: got == [b"1"])
        gate.set()
        await until(lambda: got == [b"1", b"2", b"3"])


@over_tls_too
async def test_a_session_resumes_and_keeps_what_came_while_it_was_away(broker):
    sink = Sink()
    present = []

    async def note(session: Session, session_present) -> None:
        present.append(session_present)

    async with connected(broker.port, subscriptions={"t": sink}, on_connected=note):
        pass
    await send(broker.port, "t", b"1", b"2")
    async with connected(broker.port, subscriptions={"t": sink}, on_connected=note):
        await sink.wait(2)
    assert sink.payloads == [b"1", b"2"]
    assert present == [False, True]


async def test_a_failing_subscriber_is_counted_and_blocks_nobody(broker):
    sink = Sink()

    async def poisoned(inbound: Inbound) -> None:
        if inbound.payload == b"poison":
            raise ValueError("cannot read this")
        await sink(inbound)

    with structlog.testing.capture_logs() as logs:
        async with connected(broker.port, subscriptions={"t": poisoned}) as session:
            await send(broker.port, "t", b"poison", b"good")
            await sink.wait(1)
            assert session.stats.failed == 1
    failed = [entry for entry in logs if entry["event"] == "message failed"]
    assert failed[0]["topic"] == "t"
    assert b"poison" not in failed[0].values()
    again = Sink()
    async with connected(broker.port, subscriptions={"t": again}):
        await send(broker.port, "t", b"next")
        await again.wait(1)
    assert again.payloads == [b"next"]


async def test_redeliver_brings_the_message_again_and_keeps_the_order(broker):
    sink = Sink()
    refusals = 2

    async def not_yet(inbound: Inbound) -> None:
        nonlocal refusals
        if inbound.payload == b"1" and refusals:
            refusals -= 1
            raise Redeliver
        await sink(inbound)

    async with connected(broker.port, subscriptions={"t": not_yet}) as session:
        await send(broker.port, "t", b"1", b"2", b"3")
        await sink.wait(3)
        assert session.stats.redeliver_asked == 2
        assert session.stats.reconnects >= 2
    assert sink.payloads == [b"1", b"2", b"3"]


async def test_a_slow_subscriber_does_not_hold_up_another(broker):
    fast = Sink()
    gate = asyncio.Event()

    async def slow(inbound: Inbound) -> None:
        await gate.wait()

    async with connected(broker.port, subscriptions={"slow": slow, "fast": fast}):
        await send(broker.port, "slow", b"1")
        await send(broker.port, "fast", b"2")
        await fast.wait(1)
        gate.set()


async def test_messages_side_by_side_are_in_work_together_and_each_is_acknowledged_when_done(
    broker,
):
    begun, may_end = Sink(), asyncio.Event()

    async def slow(inbound: Inbound) -> None:
        await begun(inbound)
        await may_end.wait()

    payloads = [bytes([number]) for number in range(8)]
    subscriptions = {"t/#": SideBySide(slow, at_once=4)}
    async with connected(broker.port, subscriptions=subscriptions) as node:
        await send(broker.port, "t/1", *payloads)
        await begun.wait(4)
        assert node.stats.handled == 0
        may_end.set()
        await begun.wait(8)
        await until(lambda: node.stats.handled == 8)
    assert sorted(begun.payloads) == payloads
    again = Sink()
    async with connected(broker.port, subscriptions={"t/#": again}):
        await send(broker.port, "t/1", b"new")
        await again.wait(1)
    assert again.payloads == [b"new"], "nothing was left unacknowledged"


@over_tls_too
async def test_a_flood_is_left_on_the_wire_and_nothing_of_it_is_discarded(
    broker, transport, monkeypatch
):
    for module in (aiomqtt_transport, codec_transport):
        monkeypatch.setattr(module, "READ_AHEAD_MESSAGES", 10)
    gate = asyncio.Event()
    sink = Sink()

    async def gated(inbound: Inbound) -> None:
        await gate.wait()
        await sink(inbound)

    numbers = [b"%03d" % n for n in range(200)]
    async with connected(
        broker.port, given={"receive_maximum": 4}, subscriptions={"t": gated}
    ) as session:
        await send(broker.port, "t", *numbers, qos=0)
        link = session._link
        lean = transport == "codec"
        arrivals = link._arrivals if lean else link._client.arrivals
        # How much is held when the socket is left alone depends on how the bytes came in pieces.
        await until(lambda: not link._is_reading if lean else link._client._paused)
        await send(broker.port, "t", b"last", qos=0)
        assert len(arrivals) <= 10
        gate.set()
        await sink.wait(201)
    assert sink.payloads == [*numbers, b"last"]


async def test_each_matching_subscription_gets_a_message_once(broker):
    sinks = {topic_filter: Sink() for topic_filter in ("a/#", "a/+", "a/b")}
    async with connected(broker.port, subscriptions=sinks):
        await send(broker.port, "a/b", b"1")
        await send(broker.port, "a/c", b"2")
        await sinks["a/#"].wait(2)
        await sinks["a/+"].wait(2)
        await sinks["a/b"].wait(1)
    assert [sink.payloads for sink in sinks.values()] == [[b"1", b"2"], [b"1", b"2"], [b"1"]]


async def test_shared_subscriptions_share_the_messages(broker):
    sinks = [Sink(), Sink()]
    async with AsyncExitStack() as stack:
        for n, sink in enumerate(sinks):
            await stack.enter_async_context(
                connected(broker.port, f"hub-{n}", subscriptions={"$share/hub/t": sink})
            )
        await send(broker.port, "t", *(b"%d" % n for n in range(20)))
        await until(lambda: sum(len(sink.got) for sink in sinks) == 20)
    assert all(sink.got for sink in sinks)


async def test_a_subscription_made_later_survives_a_reconnect_and_one_removed_does_not(broker):
    kept, removed = Sink(), Sink()
    async with (
        TcpProxy.open(broker.port) as proxy,
        connected(proxy.port, subscriptions={"gone": removed}) as session,
    ):
        await session.subscribe("kept", kept)
        await session.unsubscribe("gone")
        await proxy.cut()
        await proxy.heal()
        await until(lambda: session.stats.connects == 2 and session.connected)
        await send(broker.port, "gone", b"1")
        await send(broker.port, "kept", b"2")
        await kept.wait(1)
    assert removed.got == []


async def test_a_message_whose_subscription_is_gone_is_acknowledged_and_counted(broker):
    async with connected(broker.port, subscriptions={"old": Sink()}):
        pass
    await send(broker.port, "old", b"1")
    sink = Sink()
    async with connected(broker.port, subscriptions={"new": sink}) as session:
        await until(lambda: session.stats.unroutable == 1)
    async with connected(broker.port, subscriptions={"new": sink}) as session:
        await send(broker.port, "new", b"2")
        await sink.wait(1)
        assert session.stats.unroutable == 0


@pytest.mark.parametrize("bad", ["", "a/#/b", "a+", "$share/x", "$share//t", "nul\0", "x" * 70_000])
async def test_garbage_is_no_topic_filter(bad):
    with pytest.raises(TopicError):
        async with Session.open(config(1), subscriptions={bad: Sink()}):
            pass


@pytest.mark.parametrize("bad", ["", "a/+", "#", "nul\0", "\ud800"])
async def test_garbage_is_no_topic_to_publish_to(bad):
    async with Session.open(config(1)) as session:
        with pytest.raises(TopicError):
            await session.publish(bad, b"", durable=False)


async def test_a_filter_is_subscribed_to_once():
    async with Session.open(config(1), subscriptions={"t": Sink()}) as session:
        with pytest.raises(TopicError, match="already"):
            await session.subscribe("t", Sink())


async def test_a_request_gets_its_own_reply(broker):
    async with connected(broker.port, "server") as server:

        async def answer(inbound: Inbound) -> None:
            await server.publish(
                inbound.response_topic,
                b"re:" + inbound.payload,
                durable=False,
                correlation=inbound.correlation,
            )

        await server.subscribe("ask", answer)
        async with connected(broker.port, "client") as client:
            replies = await asyncio.gather(
                *(
                    client.request("ask", b"%d" % n, reply_topic="reply/client", timeout_s=5)
                    for n in range(10)
                )
            )
            assert replies == [b"re:%d" % n for n in range(10)]
            with pytest.raises(AnswerTimeoutError, match="no reply within"):
                await client.request("nobody", b"", reply_topic="reply/client", timeout_s=0.05)


@over_tls_too
async def test_a_will_is_published_when_the_line_breaks_and_not_on_a_goodbye(broker):
    sink = Sink()
    will = Will("p/node-1", b"offline")
    async with connected(broker.port, "watcher", subscriptions={"p/+": sink}):
        async with connected(broker.port, will=will):
            pass
        await send(broker.port, "p/other", b"goodbye seen")
        await sink.wait(1)
        assert sink.payloads == [b"goodbye seen"]
        async with TcpProxy.open(broker.port) as proxy, connected(proxy.port, will=will):
            await proxy.cut()
            await sink.wait(2)
    assert sink.payloads[1] == b"offline"


@over_tls_too
async def test_a_half_open_line_is_noticed_and_replaced(broker):
    async with (
        TcpProxy.open(broker.port) as proxy,
        connected(proxy.port, given={"half_open_timeout_s": 0.3}) as session,
    ):
        proxy.stall()
        await until(lambda: not session.connected)
        await proxy.heal()
        await session.wait_connected(DEADLINE_S)
        assert session.stats.reconnects >= 1


async def test_a_quiet_line_is_kept_alive_by_pings(broker):
    async with (
        TcpProxy.open(broker.port) as proxy,
        connected(proxy.port, given={"half_open_timeout_s": 0.2}) as session,
    ):
        quiet_bytes = proxy.forwarded_bytes
        # Five pings and their answers of two bytes each: one silence_s has passed twice over.
        await until(lambda: proxy.forwarded_bytes >= quiet_bytes + 20)
        assert session.stats.reconnects == 0


async def test_a_broker_that_acknowledges_nothing_is_left(broker):
    async with (
        TcpProxy.open(broker.port) as proxy,
        connected(proxy.port, given={"ack_timeout_s": 0.2}) as session,
    ):
        proxy.stall()
        with pytest.raises((AnswerTimeoutError, BusError)):
            await session.publish("t", b"", durable=False, timeout_s=5)
        await until(lambda: not session.connected)
        await proxy.heal()


@over_tls_too
async def test_leaving_ends_soon_when_the_line_is_dead(broker):
    async with TcpProxy.open(broker.port) as proxy:
        loop = asyncio.get_running_loop()
        async with connected(proxy.port, given={"close_timeout_s": 0.1}):
            proxy.stall()
            began_s = loop.time()
        assert loop.time() - began_s < 2


async def test_leaving_does_not_wait_for_the_time_before_the_next_connection(broker, monkeypatch):
    monkeypatch.setattr("shoal_broker.backoff.random.uniform", lambda _low, high: high)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(
            connected(broker.port, given={"backoff_initial_s": DEADLINE_S})
        )
        async with asyncio.timeout(1):
            await stack.aclose()


async def test_an_error_in_the_body_arrives_as_it_is(broker):
    with pytest.raises(LookupError, match="mine"):
        async with connected(broker.port):
            raise LookupError("mine")


async def test_leaving_works_while_the_broker_never_answers(transport):
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        deaf.setblocking(False)
        async with asyncio.timeout(5), Session.open(config(deaf.getsockname()[1])):
            caller, _ = await asyncio.get_running_loop().sock_accept(deaf)
    caller.close()


async def test_a_cancelled_body_leaves_like_any_other(broker):
    inside = asyncio.Event()

    async def body() -> None:
        async with connected(broker.port):
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(body())
    async with asyncio.timeout(DEADLINE_S):
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_direct_publish_above_the_broker_limit_is_refused_before_it_is_sent(broker):
    async with connected(broker.port) as session:
        limit = session._link.greeting.maximum_packet_bytes
        if limit is None:
            with pytest.raises(BusError):
                await session.publish("t", b"", qos=1)  # no outbox: durable is refused
            return
        with pytest.raises(MessageTooLargeError):
            await session.publish("t", b"x" * limit, durable=False)
        assert session.connected


# --- with an outbox


@asynccontextmanager
async def an_outbox(folder: Path, **limits):
    async with Store.open(folder / "outbox.db") as store:
        yield await Outbox.load(store, **limits)


async def test_messages_put_while_offline_arrive_afterwards_in_order(broker, tmp_path):
    sink = Sink()
    async with (
        TcpProxy.open(broker.port) as proxy,
        connected(broker.port, "reader", subscriptions={"t": sink}),
        an_outbox(tmp_path) as outbox,
    ):
        await proxy.cut()
        async with Session.open(config(proxy.port), outbox=outbox) as session:
            for n in range(50):
                await session.publish("t", b"%d" % n)
            assert session.stats.outbox_waiting == 50
            await proxy.heal()
            await sink.wait(50)
    assert sink.payloads == [b"%d" % n for n in range(50)]


@over_tls_too
async def test_nothing_is_lost_while_the_line_breaks_under_200_messages(broker, tmp_path):
    sink = Sink()
    numbers = [b"%03d" % n for n in range(200)]
    async with (
        TcpProxy.open(broker.port) as proxy,
        connected(broker.port, "reader", subscriptions={"t": sink}),
        an_outbox(tmp_path) as outbox,
        connected(proxy.port, outbox=outbox, given={"in_flight_messages": 8}) as session,
    ):
        sending = [asyncio.create_task(session.publish("t", number)) for number in numbers]
        for count in (20, 60, 120):
            await sink.wait(count)
            await proxy.cut()
            await proxy.heal()
        await asyncio.gather(*sending)
        async with asyncio.timeout(DEADLINE_S):
            await outbox.wait_sent()
        await until(lambda: set(sink.payloads) == set(numbers))
        assert session.stats.reconnects >= 3
    # At least once: repeats of what was in flight, in an order that never skips ahead.
    assert list(dict.fromkeys(sink.payloads)) == numbers


async def test_nothing_is_lost_when_the_broker_dies_before_200_messages(broker, tmp_path):
    sink = Sink()
    async with (
        connected(broker.port, "reader", subscriptions={"t": sink}) as reader,
        TcpProxy.open(broker.port) as proxy,
        an_outbox(tmp_path) as outbox,
        connected(proxy.port, outbox=outbox) as session,
    ):
        await proxy.cut()
        await broker.stop()
        await asyncio.gather(*(session.publish("t", b"%03d" % n) for n in range(200)))
        assert len(outbox) == 200
        await broker.start()
        await until(lambda: reader.stats.connects >= 2 and reader.connected)
        await proxy.heal()
        await sink.wait(200)
    assert sink.payloads == [b"%03d" % n for n in range(200)]


async def test_an_outbox_left_behind_is_sent_by_the_next_process(broker, tmp_path):
    async with an_outbox(tmp_path) as outbox, Session.open(config(1), outbox=outbox) as session:
        await session.publish("t", b"1")
        await session.publish("t", b"2")
    sink = Sink()
    async with (
        connected(broker.port, "reader", subscriptions={"t": sink}),
        an_outbox(tmp_path) as outbox,
        connected(broker.port, outbox=outbox),
    ):
        await sink.wait(2)
    assert sink.payloads == [b"1", b"2"]
    async with an_outbox(tmp_path) as outbox:
        assert len(outbox) == 0


async def test_a_row_committed_with_an_effect_is_sent(broker, tmp_path):
    sink = Sink()
    async with (
        connected(broker.port, "reader", subscriptions={"t": sink}),
        an_outbox(tmp_path) as outbox,
        connected(broker.port, outbox=outbox) as session,
    ):
        await outbox.store.write(
            lambda connection: insert(connection, OutboxMessage(topic="t", payload=b"1"))
        )
        session.outbox_changed()
        await sink.wait(1)


async def test_an_urgent_message_overtakes_what_waits(broker, tmp_path):
    sink = Sink()
    async with (
        TcpProxy.open(broker.port) as proxy,
        connected(broker.port, "reader", subscriptions={"t": sink}),
        an_outbox(tmp_path) as outbox,
    ):
        await proxy.cut()
        async with Session.open(config(proxy.port), outbox=outbox) as session:
            for n in range(20):
                await session.publish("t", b"%d" % n, lane=Lane.TELEMETRY)
            await session.publish("t", b"stop", lane=Lane.URGENT)
            await proxy.heal()
            await sink.wait(21)
    assert sink.payloads[0] == b"stop"


@pytest.mark.slow
async def test_a_stop_overtakes_chunks_and_telemetry_that_are_under_way_on_a_slow_line(
    broker, tmp_path
):
    sink = Sink()
    chunk_bytes, budget_bytes = 16 << 10, 64 << 10
    async with (
        TcpProxy.open(broker.port) as line,
        connected(broker.port, "reader", subscriptions={"t/#": sink}),
        an_outbox(tmp_path) as outbox,
        connected(line.port, outbox=outbox, given={"in_flight_bytes": budget_bytes}) as session,
    ):
        line.bytes_per_s = 256 << 10
        chunks = [session.publish("t/b", bytes(chunk_bytes), lane=Lane.BULK) for _ in range(40)]
        readings = [session.publish("t/r", bytes(1 << 10), lane=Lane.TELEMETRY) for _ in range(200)]
        await asyncio.gather(*chunks, *readings)
        await until(lambda: len(sink.got) > 2)
        await session.publish("t/c", b"stop", lane=Lane.URGENT)
        put_at = len(sink.got)
        await until(lambda: b"stop" in sink.payloads)
        overtaken_by = sink.got[put_at : sink.payloads.index(b"stop")]
        assert outbox.stats.done < 240, "the line was not slow: nothing was overtaken"
    # What was in flight already cannot be called back; nothing else is before it.
    assert sum(len(inbound.payload) for inbound in overtaken_by) <= budget_bytes + chunk_bytes


async def test_commands_come_in_their_order_while_the_line_breaks_again_and_again(broker):
    sink = Sink()
    numbers = [b"%03d" % n for n in range(200)]
    async with (
        TcpProxy.open(broker.port) as line,
        connected(line.port, subscriptions={"c": sink}) as node,
        connected(broker.port, "sender") as sender,
    ):
        for n, number in enumerate(numbers):
            await sender.publish("c", number, durable=False)
            # More than had been sent at the cut before: the line has come back meanwhile.
            if n in (20, 60, 120):
                await sink.wait(n // 2 + 10)
                await line.cut()
                await line.heal()
        await until(lambda: set(sink.payloads) == set(numbers))
        assert node.stats.reconnects >= 3
    assert list(dict.fromkeys(sink.payloads)) == numbers


async def test_what_went_into_a_half_open_line_is_sent_again_on_the_next(broker, tmp_path):
    sink = Sink()
    numbers = [b"%03d" % n for n in range(100)]
    async with (
        TcpProxy.open(broker.port) as line,
        connected(broker.port, "reader", subscriptions={"t": sink}),
        an_outbox(tmp_path) as outbox,
        connected(line.port, outbox=outbox, given={"half_open_timeout_s": 0.3}) as session,
    ):
        for number in numbers[:50]:
            await session.publish("t", number)
        await sink.wait(10)
        # The bytes that the line has taken are gone with it.
        line.stall()
        for number in numbers[50:]:
            await session.publish("t", number)
        await until(lambda: not session.connected)
        await line.cut()
        await line.heal()
        async with asyncio.timeout(DEADLINE_S):
            await outbox.wait_sent()
        await until(lambda: set(sink.payloads) == set(numbers))
        assert session.stats.reconnects >= 1
    assert list(dict.fromkeys(sink.payloads)) == numbers


async def limit_pages(store: Store, pages: int) -> None:
    """Let the file grow to so many pages and no further: a full disk, as SQLite sees it."""
    await store.read(lambda db: db.execute(f"PRAGMA max_page_count = {pages}").fetchall())


async def test_a_full_disk_refuses_what_is_new_and_loses_nothing_that_it_took(broker, tmp_path):
    sink = Sink()
    taken, refusals = [], []
    async with (
        TcpProxy.open(broker.port) as line,
        connected(broker.port, "reader", subscriptions={"t": sink}),
        an_outbox(tmp_path) as outbox,
        connected(line.port, outbox=outbox) as session,
    ):
        await line.cut()
        await until(lambda: not session.connected)
        await limit_pages(outbox.store, 60)
        for n in range(100):
            payload = b"%03d" % n + bytes(4096)
            try:
                await session.publish("t", payload)
                taken.append(payload)
            except StoreError as exc:
                refusals.append(str(exc))
        assert taken
        assert refusals
        assert all("the disk is full" in refusal for refusal in refusals)
        assert len(outbox) == len(taken)
        await line.heal()
        await sink.wait(len(taken))
        # What has left makes room, full disk or not.
        async with asyncio.timeout(DEADLINE_S):
            await outbox.wait_sent()
        await until(lambda: not outbox.deletions_due)
        await session.publish("t", b"after")
        await sink.wait(len(taken) + 1)
    assert sink.payloads == [*taken, b"after"]


async def test_a_message_the_broker_will_never_take_does_not_block_the_outbox(broker, tmp_path):
    sink = Sink()
    async with (
        connected(broker.port, "reader", subscriptions={"t": sink}),
        an_outbox(tmp_path) as outbox,
    ):
        await outbox.put(OutboxMessage(topic="no/+/wildcards", payload=b"bad"))
        await outbox.put(OutboxMessage(topic="t", payload=b"good"))
        async with connected(broker.port, outbox=outbox) as session:
            await sink.wait(1)
            await until(lambda: session.stats.outbox_dropped == 1)
    assert sink.payloads == [b"good"]


async def test_retained_state_reaches_a_late_subscriber(broker, tmp_path):
    async with an_outbox(tmp_path) as outbox, connected(broker.port, outbox=outbox) as session:
        await session.publish("s", b"old", retain=True, coalesce_key="s")
        await session.publish("s", b"new", retain=True, coalesce_key="s")
    sink = Sink()
    async with connected(broker.port, "late", subscriptions={"s": sink}):
        await sink.wait(1)
    assert (sink.got[0].payload, sink.got[0].retain) == (b"new", True)


@pytest.mark.parametrize("durable", [False, True])
async def test_a_bridge_gets_and_passes_on_every_property_and_none_of_its_own(
    broker, tmp_path, durable
):
    properties = Properties(
        payload_format=1, content_type="text/plain", user=(("a", "b"), ("a", "\u00e4"))
    )
    bridging = {"is_bridge": True, "transport": "codec"}
    sink = Sink()
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(Store.open(tmp_path / "o.db"))
        sender = await stack.enter_async_context(
            connected(broker.port, "sender", outbox=await Outbox.load(store))
        )
        bridge = await stack.enter_async_context(
            connected(broker.port, "bridge", given=bridging, subscriptions={"t/#": sink})
        )
        await bridge.publish("t/own", b"", durable=False)
        await sender.publish("t/1", b"m", properties=properties, retain=True, durable=durable)
        await sink.wait(1)
        assert sink.got[0].topic == "t/1"
        assert sink.got[0].properties == properties
        assert sink.got[0].retain
        await bridge.ask_again("t/#")
        await sink.wait(2)
        assert (sink.got[1].topic, sink.got[1].retain) == ("t/1", True)


def test_the_session_itself_loads_no_mqtt_library():
    code = (
        "import sys, shoal_broker.session, shoal_broker.outbox;"
        "sys.exit(any(name in sys.modules for name in ('paho', 'aiomqtt', 'mqtt5')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
