"""Clients that do whatever Hypothesis says, before the core and before the model of MQTT's rules at once."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from tests.shoal_broker.server.desk import Desk
from tests.shoal_broker.server.talk import (
    ALIASES,
    EXPIRIES,
    FILTERS,
    HELLOS,
    NAMES,
    SHARES,
    SPEECHES,
    WANTED,
    WHICH,
)
from tests.shoal_broker.server.talker import Talker
from tests.support.mqtt_model import Model
from tests.support.mqtt_rules import NEVER, Published, Subscribed, Will

from shoal_broker import codec
from shoal_broker.codec import (
    ConnAckPacket,
    ConnectPacket,
    DisconnectPacket,
    DisconnectReasonCode,
    Packet,
    PingReqPacket,
    PingRespPacket,
    PubAckPacket,
    PubCompPacket,
    PublishPacket,
    PubRecPacket,
    PubRelPacket,
    QoS,
    RetainHandling,
    SubAckPacket,
    SubscribePacket,
    TopicFilter,
    UnsubAckPacket,
    UnsubscribePacket,
)

QUALITIES = (QoS.AT_MOST_ONCE, QoS.AT_LEAST_ONCE, QoS.EXACTLY_ONCE)
HANDLINGS = (
    RetainHandling.SEND_ALWAYS,
    RetainHandling.SEND_IF_SUBSCRIPTION_NOT_EXISTS,
    RetainHandling.SEND_NEVER,
)
MAX_IN_FLIGHT = 4
MAX_UNRELEASED = 5


class Talkers(RuleBasedStateMachine):
    """The rules say what a client does; after each, everybody heard what the model says, no more, no less."""

    def __init__(self) -> None:
        super().__init__()
        self.desk = self.new_desk(max_in_flight=MAX_IN_FLIGHT, sys_interval_s=1)
        self.model = Model(max_in_flight=MAX_IN_FLIGHT, now_s=self.desk.now_s)
        self.talkers: dict[str, Talker] = {}
        self.unreleased: dict[str, dict[int, Published]] = {}
        """QoS 2 messages that a client published and did not release, by client and packet id."""
        self.messages = 0

    def new_desk(self, **config) -> Desk:
        return Desk(**config)

    # --- what everybody hears

    def listen_to_the_server(self) -> None:
        """Have the server's own topics announced: nobody else may hear them."""
        self.listener = self.desk.connect("listener")
        self.listener.subscribe("$SYS/broker/uptime")

    def listen(self) -> dict[str, list[Packet]]:
        """Tell the model what was heard; the answers and goodbyes among it, by client."""
        answers = {}
        assert {message.topic for message in self.listener.take()} <= {"$SYS/broker/uptime"}
        for name, talker in self.talkers.items():
            client = talker.client
            for data in client.held:
                client.reader.feed(data)
            client.held.clear()
            for packet in client.take():
                match packet:
                    case PublishPacket():
                        heard = talker.heard(packet)
                        self.model.hear(name, heard)
                        if heard.qos:
                            talker.unanswered.append(heard)
                    case PubRelPacket():
                        self.model.hear_release(name, packet.packet_id)
                        talker.uncompleted.append(packet.packet_id)
                    case _:
                        answers.setdefault(name, []).append(packet)
        self.model.settle()
        return answers

    def nothing_else(self) -> None:
        assert self.listen() == {}

    def one_answer(self, name: str, kind: type[Packet]) -> Packet:
        answers = self.listen()
        assert list(answers) == [name], answers
        (answer,) = answers[name]
        assert isinstance(answer, kind), answer
        return answer

    def gone(self, *names: str) -> None:
        for name in names:
            del self.talkers[name]

    # --- who does something

    def speakers(self) -> list[str]:
        return [name for name, talker in self.talkers.items() if not talker.client.stalled]

    def speaker(self, which: int) -> str:
        names = self.speakers()
        return names[which % len(names)]

    def somebody_speaks(self) -> bool:
        return bool(self.speakers())

    def say(self, name: str, *packets: Packet) -> None:
        self.model.sessions[name].heard_at_s = self.desk.now_s
        self.talkers[name].client.send(*packets)

    def free_id(self, name: str) -> int:
        """As small as possible: ids come back as soon as they may."""
        return next(n for n in range(1, 100) if n not in self.unreleased.get(name, ()))

    def message(self, *, topic: str, empty: bool, **options) -> Published:
        self.messages += 1
        return Published(topic, b"" if empty else b"%d" % self.messages, **options)

    # --- connections

    @initialize(hellos=st.lists(HELLOS, min_size=3, max_size=3))
    def begin(self, hellos) -> None:
        self.listen_to_the_server()
        for name, hello in zip("abc", hellos, strict=True):
            self.connect_as(name, **hello)

    @rule(name=NAMES, hello=HELLOS)
    def connect(self, name, hello) -> None:
        self.connect_as(name, **hello)

    def connect_as(
        self,
        name,
        *,
        clean,
        expiry_s,
        receive_max,
        topic_alias_max=0,
        keep_alive_s=0,
        will=None,
        wanted=None,
    ) -> None:
        before = self.talkers.pop(name, None)
        # With two that fall silent in one second, the order would be the broker's.
        keep_alive_s = keep_alive_s if name == "a" else 0
        last_word, delay_s = None, 0
        if will is not None:
            delay_s, word = will
            last_word = self.message(**{**word, "topic": f"w/{name}"}, publisher=name)
        present = self.model.connect(
            name,
            clean=clean,
            expiry_s=expiry_s,
            receive_max=receive_max,
            keep_alive_s=keep_alive_s,
            will=last_word and Will(last_word, delay_s),
        )
        talker = self.talkers[name] = Talker(self.desk.stranger())
        talker.topic_alias_max = topic_alias_max
        self.say(
            name,
            ConnectPacket(
                name,
                clean_start=clean,
                session_expiry_interval=expiry_s,
                receive_max=receive_max,
                topic_alias_max=topic_alias_max,
                keep_alive=keep_alive_s,
                will=codec.Will(
                    last_word.topic,
                    payload=last_word.payload,
                    qos=QUALITIES[last_word.qos],
                    retain=last_word.retain,
                    will_delay_interval=delay_s,
                    message_expiry_interval=last_word.expiry_s,
                    user_properties=list(last_word.properties),
                )
                if last_word is not None
                else None,
            ),
        )
        welcome = self.one_answer(name, ConnAckPacket)
        assert (int(welcome.reason_code), welcome.session_present) == (0, present)
        if not present:
            self.unreleased.pop(name, None)
        if before is not None:
            for data in before.client.held:
                before.client.reader.feed(data)
            assert before.client.goodbye_code() == 0x8E
        if wanted:
            self.subscribe_as(name, wanted, None)

    @precondition(lambda self: self.talkers)
    @rule(which=WHICH)
    def lose_the_connection(self, which) -> None:
        name = list(self.talkers)[which % len(self.talkers)]
        client = self.talkers[name].client
        self.gone(name)
        self.model.leave(name)
        client.drop()
        self.nothing_else()

    @precondition(lambda self: self.talkers)
    @rule(which=WHICH, hello=HELLOS)
    def lose_the_connection_and_come_back(self, which, hello) -> None:
        name = list(self.talkers)[which % len(self.talkers)]
        self.lose_the_connection(which)
        self.connect_as(name, **{**hello, "clean": False, "wanted": None})

    @precondition(somebody_speaks)
    @rule(which=WHICH, with_will=st.booleans(), expiry_s=st.none() | EXPIRIES)
    def say_goodbye(self, which, with_will, expiry_s) -> None:
        name = self.speaker(which)
        client = self.talkers[name].client
        code = DisconnectReasonCode.NORMAL_DISCONNECTION
        if with_will:
            code = DisconnectReasonCode.DISCONNECT_WITH_WILL_MESSAGE
        # 3.14.2.2.2: a session that was to end with its connection cannot be prolonged.
        is_wrong = bool(expiry_s and not self.model.sessions[name].expiry_s)
        if is_wrong:
            self.model.leave(name)
        else:
            self.model.leave(name, with_will=with_will, expiry_s=expiry_s)
        self.gone(name)
        client.send(DisconnectPacket(reason_code=code, session_expiry_interval=expiry_s))
        assert client.closed
        assert [int(word.reason_code) for word in client.take()] == ([0x82] if is_wrong else [])
        self.nothing_else()

    @precondition(lambda self: self.model.sessions)
    @rule(seconds=st.integers(1, 5))
    def time_passes(self, seconds) -> None:
        for _ in range(seconds):
            silent = self.model.pass_second()
            self.desk.wait(1)
            answers = self.listen()
            assert list(answers) == silent
            for (goodbye,) in answers.values():
                assert int(goodbye.reason_code) == 0x8D
            self.gone(*silent)

    @precondition(somebody_speaks)
    @rule(which=WHICH)
    def ping(self, which) -> None:
        name = self.speaker(which)
        self.say(name, PingReqPacket())
        self.one_answer(name, PingRespPacket)

    @precondition(somebody_speaks)
    @rule(which=WHICH)
    def take_nothing_for_a_while(self, which) -> None:
        name = self.speaker(which)
        self.talkers[name].client.stalled = True
        self.model.sessions[name].stalled = True
        self.nothing_else()

    @precondition(lambda self: any(talker.client.stalled for talker in self.talkers.values()))
    @rule(which=WHICH)
    def take_what_waited(self, which) -> None:
        names = [name for name, talker in self.talkers.items() if talker.client.stalled]
        name = names[which % len(names)]
        self.model.sessions[name].stalled = False
        self.talkers[name].client.resume()
        self.nothing_else()

    # --- subscriptions

    @precondition(somebody_speaks)
    @rule(
        which=WHICH,
        wanted=WANTED,
        identifier=st.sampled_from((None, 1, 300)),
    )
    def subscribe(self, which, wanted, identifier) -> None:
        self.subscribe_as(self.speaker(which), wanted, identifier)

    def subscribe_as(self, name, wanted, identifier) -> None:
        plain = [one for one in wanted if one[0] not in SHARES]
        if plain:
            self.subscribe_to(name, plain, identifier)
        for pattern, qos, _, as_published, handling in wanted:
            if pattern in SHARES:
                # 3.8.3.1: shared and no-local together are a protocol error.
                only = (pattern, qos, False, as_published, handling)
                self.subscribe_to(name, [only], SHARES[pattern])

    def subscribe_to(self, name, wanted, identifier) -> None:
        filters, codes = [], []
        for pattern, qos, no_local, as_published, handling in wanted:
            subscribed = Subscribed(qos, no_local, as_published, identifier)
            codes.append(self.model.subscribe(name, pattern, subscribed, handling))
            filters.append(
                TopicFilter(
                    pattern,
                    max_qos=QUALITIES[qos],
                    no_local=no_local,
                    retain_as_published=as_published,
                    retain_handling=HANDLINGS[handling],
                )
            )
        packet_id = self.free_id(name)
        self.say(name, SubscribePacket(packet_id, filters, subscription_id=identifier))
        answer = self.one_answer(name, SubAckPacket)
        assert answer.packet_id == packet_id
        assert [int(code) for code in answer.reason_codes] == codes

    @precondition(somebody_speaks)
    @rule(which=WHICH, patterns=st.lists(FILTERS, min_size=1, max_size=2))
    def unsubscribe(self, which, patterns) -> None:
        name = self.speaker(which)
        codes = [self.model.unsubscribe(name, pattern) for pattern in patterns]
        packet_id = self.free_id(name)
        self.say(name, UnsubscribePacket(packet_id, patterns))
        answer = self.one_answer(name, UnsubAckPacket)
        assert answer.packet_id == packet_id
        assert [int(code) for code in answer.reason_codes] == codes

    # --- messages

    @precondition(somebody_speaks)
    @rule(which=WHICH, words=SPEECHES, alias=ALIASES)
    def publish(self, which, words, alias) -> None:
        self.speak(self.speaker(which), words, alias)

    # Twice as often as anything else: it is what the rest is about.
    @precondition(somebody_speaks)
    @rule(which=WHICH, words=SPEECHES, alias=ALIASES)
    def publish_more(self, which, words, alias) -> None:
        self.speak(self.speaker(which), words, alias)

    def speak(self, name, words, alias) -> None:
        for word in words:
            self.publish_one(name, self.message(publisher=name, **word), alias)

    def publish_one(self, name, message, alias) -> None:
        topic = message.topic
        if message.qos == 2 and len(self.unreleased.get(name, ())) >= MAX_UNRELEASED:
            return
        packet_id = self.free_id(name) if message.qos else None
        aliases = self.talkers[name].aliases_out
        is_known = alias is not None and aliases.get(alias) == topic
        if alias is not None:
            aliases[alias] = topic
        packet = self.packet(message, packet_id, alias=alias, topic="" if is_known else topic)
        match message.qos:
            case 0:
                self.model.publish(message)
                self.say(name, packet)
                self.nothing_else()
            case 1:
                code = self.model.publish(message)
                self.say(name, packet)
                answer = self.one_answer(name, PubAckPacket)
                assert (answer.packet_id, int(answer.reason_code)) == (packet_id, code)
            case _:
                self.publish_at_qos_2(name, packet_id, message, packet)

    def publish_at_qos_2(self, name, packet_id, message, packet) -> None:
        code = self.model.receive_qos_2(name, packet_id, message)
        self.say(name, packet)
        answer = self.one_answer(name, PubRecPacket)
        assert (answer.packet_id, int(answer.reason_code)) == (packet_id, code)
        if code < 0x80:
            self.unreleased.setdefault(name, {})[packet_id] = message

    def packet(self, message, packet_id, *, topic, alias=None, duplicate=False) -> PublishPacket:
        return PublishPacket(
            topic,
            message.payload,
            qos=QUALITIES[message.qos],
            retain=message.retain,
            packet_id=packet_id,
            duplicate=duplicate,
            topic_alias=alias,
            message_expiry_interval=message.expiry_s,
            user_properties=list(message.properties),
        )

    def speakers_with_unreleased(self) -> list[str]:
        return [name for name in self.speakers() if self.unreleased.get(name)]

    @precondition(speakers_with_unreleased)
    @rule(which=WHICH)
    def publish_at_qos_2_again(self, which) -> None:
        names = self.speakers_with_unreleased()
        name = names[which % len(names)]
        packet_id, message = next(iter(self.unreleased[name].items()))
        packet = self.packet(message, packet_id, topic=message.topic, duplicate=True)
        self.publish_at_qos_2(name, packet_id, message, packet)

    @precondition(speakers_with_unreleased)
    @rule(which=WHICH)
    def release(self, which) -> None:
        names = self.speakers_with_unreleased()
        name = names[which % len(names)]
        packet_id, _ = self.unreleased[name].popitem()
        code = self.model.release(name, packet_id)
        self.say(name, PubRelPacket(packet_id))
        answer = self.one_answer(name, PubCompPacket)
        assert (answer.packet_id, int(answer.reason_code)) == (packet_id, code)

    def speakers_who_owe_answers(self) -> list[str]:
        return [
            name
            for name in self.speakers()
            if self.talkers[name].unanswered or self.talkers[name].uncompleted
        ]

    @precondition(speakers_who_owe_answers)
    @rule(which=WHICH, position=st.sampled_from((0, -1)))
    def acknowledge(self, which, position) -> None:
        names = self.speakers_who_owe_answers()
        self.answer_one(names[which % len(names)], position)

    @precondition(speakers_who_owe_answers)
    @rule()
    def acknowledge_everything(self) -> None:
        while names := self.speakers_who_owe_answers():
            self.answer_one(names[0], 0)

    def answer_one(self, name, position) -> None:
        talker = self.talkers[name]
        if talker.unanswered:
            heard = talker.unanswered.pop(position)
            if heard.qos == 1:
                self.model.acknowledge(name, heard.packet_id)
                self.say(name, PubAckPacket(heard.packet_id))
            else:
                self.model.receive(name, heard.packet_id)
                self.say(name, PubRecPacket(heard.packet_id))
        else:
            packet_id = talker.uncompleted.pop(position)
            self.model.acknowledge(name, packet_id)
            self.say(name, PubCompPacket(packet_id))
        self.nothing_else()

    # --- from time to time

    @precondition(lambda self: len(self.model.sessions) > 1)
    @rule()
    def everybody_comes_back_and_takes_everything(self) -> None:
        """What was only allowed to wait must come now; a new client hears what is retained."""
        for name in list(self.model.sessions):
            talker = self.talkers.get(name)
            if talker is None:
                self.connect_as(name, clean=False, expiry_s=NEVER, receive_max=65_535)
            elif talker.client.stalled:
                self.model.sessions[name].stalled = False
                talker.client.resume()
                self.nothing_else()
        self.acknowledge_everything()
        assert not self.model.shared
