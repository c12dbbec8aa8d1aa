"""MQTT 5's rules for a broker as a small model: what each client is owed, and whether what it hears is that.

The model is told what clients do and what they hear. It chooses nothing that the standard leaves open
(the order among topics, the member of a share) and knows no bytes, queues, buffers or limits but the
receive maximum. Sections are those of the standard.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

from tests.support.mqtt_rules import (
    NEVER,
    Copy,
    Published,
    RuleBrokenError,
    Session,
    Shared,
    Subscribed,
    Will,
    belongs,
    copy_for,
    hold,
    split_share,
)

KEEP_ALIVE_GRACE = 1.5


class Model:
    """The broker as its clients may know it."""

    def __init__(self, *, max_in_flight: int, now_s: float) -> None:
        self.now_s = now_s
        self.max_in_flight = max_in_flight
        self.sessions: dict[str, Session] = {}
        self.retained: dict[str, Published] = {}
        self.shared: list[Shared] = []
        self._ends_of_shares: Counter[str] = Counter()

    # --- connections

    def connect(
        self,
        client_id: str,
        *,
        clean: bool,
        expiry_s: int,
        receive_max: int,
        will: Will | None,
        keep_alive_s: int = 0,
    ) -> bool:
        """3.1. Returns session present."""
        session = self.sessions.get(client_id)
        if session is not None and session.connected:
            self.leave(client_id)
            session = self.sessions.get(client_id)
        if session is not None and clean:
            self._end(session)
            session = None
        present = session is not None
        if session is None:
            session = self.sessions[client_id] = Session(client_id)
        session.connected, session.stalled = True, False
        session.window = min(receive_max, self.max_in_flight)
        session.expiry_s = expiry_s
        session.keep_alive_s = keep_alive_s
        session.heard_at_s = self.now_s
        session.will = will
        session.ends_at_s = session.will_at_s = math.inf
        for copy in session.sent:
            copy.on_wire = False
        return present

    def leave(self, client_id: str, *, with_will: bool = True, expiry_s: int | None = None) -> None:
        """The connection is gone; `with_will` unless DISCONNECT 0x00 said so."""
        session = self.sessions[client_id]
        session.connected = False
        session.due.clear()
        for shared in self.shared:
            if any(taker is session and not copy.qos for taker, copy in shared.takers):
                shared.may_be_lost = True
        if expiry_s is not None:
            session.expiry_s = expiry_s
        if not with_will:
            session.will = None
        if session.will is not None:
            session.will_at_s = self.now_s + session.will.delay_s
        if session.expiry_s != NEVER:
            session.ends_at_s = self.now_s + session.expiry_s
        self._run_clocks(session)

    def pass_second(self) -> list[str]:
        """Returns whose keep alive ran out (3.1.2.10)."""
        self.now_s += 1
        silent = [
            session.client_id
            for session in self.sessions.values()
            if session.connected
            and session.keep_alive_s
            and self.now_s - session.heard_at_s > session.keep_alive_s * KEEP_ALIVE_GRACE
        ]
        for client_id in silent:
            self.leave(client_id)
        for session in list(self.sessions.values()):
            self._run_clocks(session)
        self.retained = {
            topic: message
            for topic, message in self.retained.items()
            if message.expires_at_s > self.now_s
        }
        return silent

    def lose_power(self, *, will_grace_s: int) -> None:
        """A broker that keeps sessions starts again; all was on its disk (docs/broker.md, Durability)."""
        for session in list(self.sessions.values()):
            for shared in self.shared:
                kept = [
                    (s, c) for s, c in shared.takers if s is not session or (c.qos and s.expiry_s)
                ]
                if len(kept) < len(shared.takers):
                    shared.takers, shared.may_be_lost = kept, True
            if not session.expiry_s:
                del self.sessions[session.client_id]
                for pattern in session.subscriptions:
                    self._left_share(pattern)
                continue
            for pattern, messages in session.found.items():
                session.found[pattern] = [message for message in messages if message.qos]
            if session.connected:
                if session.will is not None:
                    delay_s = max(session.will.delay_s, will_grace_s)
                    session.will = replace(session.will, delay_s=delay_s)
                self.leave(session.client_id)

    def _run_clocks(self, session: Session) -> None:
        # 3.1.3.2.2: the will goes out after its delay or when the session ends, whatever is first.
        if session.connected or session.client_id not in self.sessions:
            return
        if session.ends_at_s <= self.now_s:
            self._end(session)
        elif session.will_at_s <= self.now_s:
            self._send_will(session)

    def _send_will(self, session: Session) -> None:
        will, session.will, session.will_at_s = session.will, None, math.inf
        if will is not None:
            self.publish(will.message)

    def _end(self, session: Session) -> None:
        del self.sessions[session.client_id]
        for pattern in session.subscriptions:
            self._left_share(pattern)
        if session.will_at_s != math.inf:
            self._send_will(session)
        # 4.8.2: what it did not acknowledge goes to another member, but never what was sent at QoS 2.
        orphans = [
            Shared(copy.message, copy.share)
            for copy in session.sent
            if copy.share is not None and copy.qos == 1
        ]
        for shared in self.shared:
            others = [taker for taker in shared.takers if taker[0] is not session]
            if len(others) < len(shared.takers):
                shared.takers = others
                orphans.append(shared)
        for shared in orphans:
            if shared not in self.shared:
                self.shared.append(shared)
            self._offer(shared)

    # --- subscriptions

    def subscribe(self, client_id: str, pattern: str, wanted: Subscribed, handling: int) -> int:
        """3.8. Returns the code for SUBACK."""
        session = self.sessions[client_id]
        is_new = pattern not in session.subscriptions
        session.subscriptions[pattern] = wanted
        is_shared, topic_filter = split_share(pattern)
        if not is_shared and (handling == 0 or (handling == 1 and is_new)):
            session.found[pattern] = [
                message
                for message in self.retained.values()
                if belongs(message.topic, topic_filter)
                and not (wanted.no_local and message.publisher == client_id)
            ]
        return wanted.qos

    def unsubscribe(self, client_id: str, pattern: str) -> int:
        """3.10. Returns the code for UNSUBACK."""
        session = self.sessions[client_id]
        session.found.pop(pattern, None)
        if session.subscriptions.pop(pattern, None) is None:
            return 0x11
        self._left_share(pattern)
        return 0

    def _left_share(self, pattern: str) -> None:
        if not any(pattern in session.subscriptions for session in self.sessions.values()):
            self._ends_of_shares[pattern] += 1

    # --- messages

    def publish(self, message: Published) -> int:
        """3.3. Returns the code for PUBACK."""
        if message.topic.startswith("$"):
            return 0x90
        if message.expiry_s is not None:
            message = replace(message, expires_at_s=self.now_s + message.expiry_s)
        if message.retain:
            self.retained.pop(message.topic, None)
            if message.payload:
                self.retained[message.topic] = message
        matching = [self._matching(session, message) for session in self.sessions.values()]
        for session, (plain, _) in zip(self.sessions.values(), matching, strict=True):
            heard_by = [one for one in plain if not self._is_own(one, message, session)]
            if heard_by:
                session.owe(copy_for(message, heard_by))
        for pattern in {pattern for _, shares in matching for pattern in shares}:
            self.shared.append(Shared(message, (pattern, self._ends_of_shares[pattern])))
            self._offer(self.shared[-1])
        return 0 if any(plain or shares for plain, shares in matching) else 0x10

    def _matching(self, session: Session, message: Published) -> tuple[list[Subscribed], list[str]]:
        """The session's subscriptions to the topic: plain ones, and the patterns of shared ones."""
        plain, shares = [], []
        for pattern, subscribed in session.subscriptions.items():
            is_shared, topic_filter = split_share(pattern)
            if belongs(message.topic, topic_filter):
                if is_shared:
                    shares.append(pattern)
                else:
                    plain.append(subscribed)
        return plain, shares

    def _is_own(self, subscribed: Subscribed, message: Published, session: Session) -> bool:
        return subscribed.no_local and message.publisher == session.client_id

    def receive_qos_2(self, client_id: str, packet_id: int, message: Published) -> int:
        """4.3.3: the first time it is published. Returns the code for PUBREC."""
        session = self.sessions[client_id]
        if packet_id in session.incoming:
            return 0
        code = self.publish(message)
        if code < 0x80:
            session.incoming.add(packet_id)
        return code

    def release(self, client_id: str, packet_id: int) -> int:
        """PUBREL came. Returns the code for PUBCOMP."""
        session = self.sessions[client_id]
        known = packet_id in session.incoming
        session.incoming.discard(packet_id)
        return 0 if known else 0x92

    def _offer(self, shared: Shared) -> None:
        """4.8.2: somebody who is connected, if there is one."""
        pattern, number = shared.share
        members = [s for s in self.sessions.values() if pattern in s.subscriptions]
        asked = [member for member in members if member.connected] or members
        takers = [(s, copy_for(shared.message, [s.subscriptions[pattern]])) for s in asked]
        shared.takers += takers
        # A share that ended meanwhile and was made anew may be taken for another one.
        if not asked or number != self._ends_of_shares[pattern]:
            shared.may_be_lost = True
        if any(not session.connected and not copy.qos for session, copy in takers):
            shared.may_be_lost = True

    # --- what clients say about messages

    def acknowledge(self, client_id: str, packet_id: int) -> None:
        """PUBACK, PUBCOMP, or PUBREC with an error."""
        session = self.sessions[client_id]
        session.sent = [copy for copy in session.sent if copy.packet_id != packet_id]

    def receive(self, client_id: str, packet_id: int) -> bool:
        """PUBREC. Returns whether the broker knows the message."""
        for copy in self.sessions[client_id].sent:
            if copy.packet_id == packet_id and copy.qos == 2:
                copy.received = True
                return True
        return False

    # --- what clients hear

    def hear(self, client_id: str, heard) -> None:
        """A PUBLISH arrived: `heard` has topic, payload, qos, retain, duplicate, packet_id, expiry_s..."""
        session = self.sessions[client_id]
        hold(session.connected, f"{client_id} is sent something after its end")
        if heard.duplicate:
            again = next((c for c in session.sent if not c.on_wire and not c.received), None)
            hold(
                again is not None
                and again.packet_id == heard.packet_id
                and again.is_heard_as(heard, self.now_s),
                f"4.4, 4.6: {heard} is not what {client_id} is to hear again",
            )
            again.on_wire = True
        else:
            copy = self._take(session, heard)
            if copy.qos:
                hold(all(c.on_wire for c in session.sent), "4.4: what was sent before comes first")
                hold(
                    heard.packet_id not in {c.packet_id for c in session.sent},
                    f"2.2.1: packet id {heard.packet_id} is in use",
                )
                copy.packet_id, copy.on_wire = heard.packet_id, True
                session.sent.append(copy)
        # PUBREL does not wait for the window (4.9): there may be more by now, but no further PUBLISH.
        hold(
            not heard.qos or session.in_flight <= session.window,
            f"4.9: {session.in_flight} in flight to {client_id}, who takes {session.window}",
        )

    def hear_release(self, client_id: str, packet_id: int) -> None:
        """A PUBREL arrived."""
        for copy in self.sessions[client_id].sent:
            if copy.packet_id == packet_id and copy.received:
                copy.on_wire = True
                return
        raise RuleBrokenError(f"4.3.3: PUBREL {packet_id} before PUBREC")

    def _take(self, session: Session, heard) -> Copy:
        for pattern, messages in session.found.items():
            subscribed = replace(session.subscriptions[pattern], as_published=True)
            for message in messages:
                copy = copy_for(message, [subscribed])
                if self._is_alive(message) and copy.is_heard_as(heard, self.now_s):
                    messages.remove(message)
                    return copy
        queue = session.waiting if heard.qos else session.due
        ordered = (c for c in queue if c.message.topic == heard.topic and self._is_alive(c.message))
        first = next(ordered, None)
        if first is not None and first.is_heard_as(heard, self.now_s):
            queue.remove(first)
            return first
        for shared in self.shared:
            for taker, copy in shared.takers:
                if (
                    taker is session
                    and self._is_alive(shared.message)
                    and copy.is_heard_as(heard, self.now_s)
                ):
                    self.shared.remove(shared)
                    copy.share = shared.share
                    return copy
        raise RuleBrokenError(f"{session.client_id} is not to hear {heard}; first is {first}")

    def _is_alive(self, message: Published) -> bool:
        return message.expires_at_s > self.now_s

    # --- what must have been heard

    def settle(self) -> None:
        """Everything that can be delivered was."""
        for session in self.sessions.values():
            if not session.connected or session.stalled:
                continue
            left: list[object] = []
            if not session.may_hold_back(1):
                left += [copy for copy in session.sent if not copy.on_wire]
                left += self._alive_of(session.waiting)
                for found in session.found.values():
                    left += self._alive_of(found)
            if not session.may_hold_back(0):
                left += self._alive_of(session.due)
            hold(not left, f"{session.client_id} did not hear {left}")
        for shared in list(self.shared):
            shared.takers = [
                (session, copy)
                for session, copy in shared.takers
                if session.may_hold_back(copy.qos)
            ]
            if not shared.takers or not self._is_alive(shared.message):
                self.shared.remove(shared)
                if self._is_alive(shared.message):
                    hold(shared.may_be_lost, f"4.8.2: nobody heard {shared.message}")

    def _alive_of(self, copies: list) -> list:
        """Forget those that have expired."""
        copies[:] = [c for c in copies if self._is_alive(c.message if isinstance(c, Copy) else c)]
        return copies
