"""Area `broker`: the embedded broker alone, beside Mosquitto and amqtt, under one generator.

Which broker gets which load; the loads are broker_loads.py's, what is to be reached broker_goals.py's.
"""

from __future__ import annotations

import contextlib
import shutil
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import broker_goals
import broker_loads
import brokers
import fleet
from broker_loads import Counts
from brokers import LOAD_CORE, Broker
from measure import BenchError, Column, Options, Rounds, Table
from mqtt_bytes import MQTT_311

OURS, MOSQUITTO, AMQTT, FLOOR = broker_goals.OURS, "mosquitto", "amqtt", "codec, no broker"
COLUMNS = (
    Column("per_s", "messages/s"),
    Column("broker_us", "broker us", 1),
    Column("p50_us", "p50 us"),
    Column("p99_us", "p99 us"),
    Column("broker_busy", "broker %", spread=False),
    Column("generator_busy", "generator %", spread=False),
    Column("rss_mib", "MiB", 1, spread=False),
    Column("delivered", "delivered", spread=False),
    Column("sent", "sent", spread=False),
)
FULL = Counts(
    echoes=20_000,
    against_amqtt=20_000,
    durable=5000,
    round_trips=2000,
    publishers=100,
    turns=40,
    subscribers=1000,
    messages=20,
    chunks=3,
    idle=10_000,
    idle_s=3.0,
)
QUICK = Counts(
    echoes=1000,
    against_amqtt=500,
    durable=200,
    round_trips=100,
    publishers=20,
    turns=5,
    subscribers=50,
    messages=5,
    chunks=1,
    idle=200,
    idle_s=1.0,
)
# Before a load is measured, a broker shows with these many messages that it can take it.
TRIAL = 5

Load = Callable[[Broker], Mapping[str, float]]


@dataclass(slots=True)
class _Contenders:
    """What is measured, by name: "load: broker"."""

    running: dict[str, Broker]
    found: dict[str, Callable[[], Mapping[str, float]]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def add(
        self, load: str, names: tuple[str, ...], measure: Load, trial: Load | None = None
    ) -> None:
        """The load for each of these brokers that runs and, if there is a trial, stands it."""
        for name in names:
            broker = self.running.get(name)
            if broker is None:
                continue
            try:
                if trial is not None:
                    trial(broker)
            except BenchError as exc:
                self.skipped.append(f"{load}: {name}: {exc}")
            else:
                self.found[f"{load}: {name}"] = partial(measure, broker)


def run(options: Options, say: Callable[[str], None]) -> Table:
    """Measure the parts that were asked for."""
    skipped: list[str] = []
    counts = _within_the_file_limit(QUICK if options.is_quick else FULL, skipped)
    with contextlib.ExitStack() as stack:
        contenders = _Contenders(_start(stack, options, skipped), skipped=skipped)
        if options.wants("echo"):
            _add_echoes(contenders, counts)
            _add_tls(contenders, stack, counts, options)
        if options.wants("amqtt"):
            for qos in (1, 0):
                load = partial(broker_loads.throughput, qos=qos, level=MQTT_311)
                contenders.add(
                    f"3.1.1, QoS {qos}",
                    (OURS, MOSQUITTO, AMQTT),
                    partial(load, count=counts.against_amqtt),
                    partial(load, count=TRIAL * broker_loads.CLIENTS),
                )
        if options.wants("fanout"):
            both = (OURS, MOSQUITTO)
            for qos in (1, 0):
                load = partial(broker_loads.fan_out, counts=counts, qos=qos)
                contenders.add(f"fan-out, QoS {qos}", both, load)
            contenders.add(
                broker_goals.CHUNK_PUBLISHED,
                both,
                partial(broker_loads.chunk_published, counts=counts),
            )
            contenders.add(
                broker_goals.CHUNK_RETAINED,
                both,
                partial(broker_loads.chunk_retained, counts=counts),
            )
        if options.wants("idle"):
            _add_idle(contenders, counts, options)
        if options.wants("durable"):
            _add_durable(contenders, stack, counts, options)
        rounds = Rounds(options)
        rounds.run(contenders.found, say=say)
    return Table(
        title="broker: loopback, one generator",
        columns=COLUMNS,
        rows=tuple(rounds.row(name, is_ours=name.endswith(OURS)) for name in contenders.found),
        goals=broker_goals.goals(rounds),
        settings=_settings(counts, options),
        notes=broker_goals.notes(rounds),
        skipped=tuple(skipped),
    )


def _start(stack: contextlib.ExitStack, options: Options, skipped: list[str]) -> dict[str, Broker]:
    """The brokers that live for the whole run."""
    running = {OURS: stack.enter_context(brokers.shoal_broker(OURS))}
    if (program := brokers.mosquitto_program()) is not None:
        running[MOSQUITTO] = stack.enter_context(
            brokers.mosquitto(MOSQUITTO, program, options.folder)
        )
    else:
        skipped.append("mosquitto: not installed (apt-get install mosquitto)")
    if options.wants("echo"):
        running[FLOOR] = stack.enter_context(brokers.floor(FLOOR))
    if options.wants("amqtt"):
        if brokers.AMQTT_PROGRAM.exists():
            running[AMQTT] = stack.enter_context(brokers.amqtt(AMQTT, options.folder))
        else:
            skipped.append("amqtt: not installed (tools/setup-peers)")
    return running


def _add_echoes(contenders: _Contenders, counts: Counts) -> None:
    for qos in (1, 0, 2):
        load = partial(broker_loads.echo, qos=qos)
        contenders.add(
            f"QoS {qos}",
            (OURS, MOSQUITTO, FLOOR) if qos == 1 else (OURS, MOSQUITTO),
            partial(load, count=counts.echoes, round_trips=counts.round_trips),
            partial(load, count=TRIAL, round_trips=1),
        )
    contenders.add(
        "many publishers",
        (OURS, MOSQUITTO),
        partial(broker_loads.many_publishers, counts=counts),
    )


def _add_tls(
    contenders: _Contenders, stack: contextlib.ExitStack, counts: Counts, options: Options
) -> None:
    """The same brokers, each a second time, with a certificate."""
    if (openssl := shutil.which("openssl")) is None:
        contenders.skipped.append(f"{broker_goals.TLS}: openssl is not installed")
        return
    files = brokers.certificate(openssl, options.folder)
    ours = ("--tls-cert", files.certificate, "--tls-key", files.key)
    guarded = {OURS: stack.enter_context(brokers.shoal_broker(OURS, options=ours))}
    if (program := brokers.mosquitto_program()) is not None:
        theirs = (f"certfile {files.certificate}", f"keyfile {files.key}", "tls_version tlsv1.3")
        guarded[MOSQUITTO] = stack.enter_context(
            # Started by root it becomes another user, who may not read the key.
            brokers.mosquitto(
                MOSQUITTO, program, options.folder, settings=(brokers.same_user(), *theirs)
            )
        )
    context = ssl.create_default_context(cafile=str(files.certificate))
    for name, broker in guarded.items():
        contenders.found[f"{broker_goals.TLS}: {name}"] = partial(
            broker_loads.echo, broker, counts.echoes, counts.round_trips, qos=1, tls=context
        )


def _add_idle(contenders: _Contenders, counts: Counts, options: Options) -> None:
    program = brokers.mosquitto_program()
    for load, subscribes in ((broker_goals.IDLE, False), (broker_goals.IDLE_SUBSCRIBED, True)):

        def ours(subscribes: bool = subscribes) -> Mapping[str, float]:  # noqa: FBT001 - bound here
            starting = brokers.shoal_broker(OURS, max_connections=counts.idle + 2)
            return broker_loads.idle(starting, counts, subscribes=subscribes)

        def theirs(subscribes: bool = subscribes) -> Mapping[str, float]:  # noqa: FBT001 - bound here
            starting = brokers.mosquitto(MOSQUITTO, program or "", options.folder)
            return broker_loads.idle(starting, counts, subscribes=subscribes)

        contenders.found[f"{load}: {OURS}"] = ours
        if program is not None:
            contenders.found[f"{load}: {MOSQUITTO}"] = theirs


def _add_durable(
    contenders: _Contenders, stack: contextlib.ExitStack, counts: Counts, options: Options
) -> None:
    durable: dict[str, Broker] = {}
    if brokers.we_can("--durable"):
        store = options.folder / "durable"
        store.mkdir()
        durable[OURS] = stack.enter_context(
            brokers.shoal_broker(OURS, options=("--durable", store))
        )
    else:
        contenders.skipped.append(f"{broker_goals.DURABLE}: {OURS} has no --durable")
    if (program := brokers.mosquitto_program()) is not None:
        saved = brokers.every_change_saved(options.folder)
        durable[MOSQUITTO] = stack.enter_context(
            brokers.mosquitto(MOSQUITTO, program, options.folder, settings=saved)
        )
    load = partial(broker_loads.echo, qos=1, is_persistent=True)
    for name, broker in durable.items():
        contenders.found[f"{broker_goals.DURABLE}: {name}"] = partial(
            load, broker, counts.durable, counts.durable // 10
        )


def _within_the_file_limit(counts: Counts, skipped: list[str]) -> Counts:
    allowed = fleet.raise_file_limit(counts.idle)
    if allowed < counts.idle:
        skipped.append(
            f"{counts.idle - allowed:,} of {counts.idle:,} connections: RLIMIT_NOFILE allows no more"
        )
    return replace(
        counts, idle=min(counts.idle, allowed), subscribers=min(counts.subscribers, allowed)
    )


def _settings(counts: Counts, options: Options) -> tuple[str, ...]:
    cores = "one core for everything"
    if LOAD_CORE is not None:
        cores = "cores: brokers on one, generator on another"
    return (
        (
            f"{brokers.mosquitto_version()}, max_inflight_messages {brokers.MOSQUITTO_IN_FLIGHT};"
            f" {brokers.amqtt_version()}, no plugins"
        ),
        "broker %, generator %: of a core while the figures were taken; MiB: resident, at the end",
        f"TCP_NODELAY on every end, no authentication; {cores}",
        *(
            line
            for part, lines in broker_loads.settings(counts).items()
            if options.wants(part)
            for line in lines
        ),
    )
