"""What a broker still has after it was killed: plant, have it killed, verify.

Only a person can kill the broker or pull its plug, so this is two commands with a file between
them. It cannot see whether the broker was killed in between, unless the broker tells its age.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import msgspec

from shoal_broker.doctor.client import NO_CBOR, ProbeClient, Target, connected
from shoal_broker.doctor.errors import DoctorError, DoctorFileError
from shoal_broker.doctor.finding import Finding, Report
from shoal_broker.doctor.identities import Identities, Identity, check_unused
from shoal_broker.durable import write_durably
from shoal_contract.access import Role
from shoal_contract.messages import CHUNK_BYTES

MESSAGES = 40
SMALL_BYTES = 64
SESSION_EXPIRY_S = 86_400
MARKER = b"marker"
# Mosquitto's; it is renewed every 10 s unless configured otherwise.
UPTIME_TOPIC = "$SYS/broker/uptime"
UPTIME_STALE_S = 15
ASIDE = "-uptime"
LOST_NOTE = (
    "for a fleet: senders send readings and commands again until they have a receipt, so nothing "
    "is lost, only repeated; presence and wanted state are said anew"
)


class Planted(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="shoal-doctor plant 1"):
    """What waits on the broker: digests only, no secret."""

    host: str
    port: int
    prefix: str
    waiting: str
    kept: str
    planted_unix_s: float
    messages: list[str]
    """The sha256 of each message for the session that is away, in order."""
    retained: str
    """The sha256 of the retained message."""


@dataclass(frozen=True, slots=True)
class Parties:
    """Who sends and who is away, and the topics between them."""

    sender: Identity
    away: Identity
    waiting: str
    kept: str

    @classmethod
    def of_target(cls, target: Target) -> Self:
        """On topics of the doctor's own."""
        return cls(
            Identity(Role.CONTROLLER, None, target),
            Identity(Role.NODE, None, target),
            target.topic("waiting"),
            target.topic("kept"),
        )

    @classmethod
    def of_identities(cls, identities: Identities) -> Self:
        """A controller and a node, where access rules leave no other topics."""
        topics, node_id = identities.topics, identities.node_id
        return cls(
            identities.controller, identities.node, topics.commands(node_id), topics.wanted(node_id)
        )


def plant(parties: Parties, file: Path) -> Report:
    """Leave messages on the broker and write into `file` what must come back.

    Raises DoctorFileError when there is a file already or it cannot be written, DoctorError when the
    broker does not take everything; nothing is left on the broker then.
    """
    if file.exists():
        raise DoctorFileError(f"{file} is there already: verify it, or name another")
    for identity in (parties.sender, parties.away):
        check_unused(identity)
    target = parties.sender.target
    payloads = [
        _payload(CHUNK_BYTES if n == MESSAGES // 2 else SMALL_BYTES) for n in range(MESSAGES)
    ]
    retained = _payload(CHUNK_BYTES)
    planted = Planted(
        host=target.host,
        port=target.port,
        prefix=target.prefix,
        waiting=parties.waiting,
        kept=parties.kept,
        planted_unix_s=time.time(),
        messages=[_digest(payload) for payload in payloads],
        retained=_digest(retained),
    )
    try:
        # As a Session does it: mosquitto 2.0.11 saves none that began with a clean start.
        with _connected(parties.away, clean=False, session_expiry_s=SESSION_EXPIRY_S) as away:
            away.subscribe(parties.waiting)
        with _connected(parties.sender) as sender:
            sender.publish(parties.kept, retained, retain=True)
            for payload in payloads:
                sender.publish(parties.waiting, payload)
        write_durably(file, msgspec.json.encode(planted) + b"\n")
    except BaseException as exc:
        with contextlib.suppress(DoctorError):
            _clean_up(parties)
        if isinstance(exc, OSError):
            raise DoctorFileError(f"{file} cannot be written: {exc.strerror}") from exc
        raise
    means = (
        f"{MESSAGES} messages for a session that is away and a retained one, all acknowledged; "
        f"written down in {file}"
    )
    finding = Finding("planted", ok=True, means=means, facts={"file": str(file)})
    return Report(
        [finding],
        "now kill the broker with SIGKILL or pull its plug, start it, and within a day: "
        f"shoal-broker doctor --verify {file} (with the same connection options)",
    )


def read_planted(file: Path) -> Planted:
    """What `plant` wrote. Raises DoctorFileError."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Planted)
    except OSError as exc:
        raise DoctorFileError(f"{file} cannot be read: {exc.strerror}") from exc
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise DoctorFileError(f"{file} was not written by doctor --plant: {exc}") from exc


def verify(parties: Parties, planted: Planted, file: Path) -> Report:
    """Count what came back of what was `planted`, and remove it and its `file`.

    The parties have the prefix of `planted`. A broker that says that it was not restarted is left as
    it is: FAIL, and nothing is removed. Raises DoctorFileError for one that it was not planted on.
    """
    target = parties.sender.target
    if (planted.host, planted.port) != (target.host, target.port):
        raise DoctorFileError(
            f"{file} was planted on {planted.host}:{planted.port}, not on {target.host}:{target.port}"
        )
    if (planted.waiting, planted.kept) != (parties.waiting, parties.kept):
        raise DoctorFileError(
            f"{file} was planted on {planted.waiting}: give the --identities it was planted with"
        )
    restarted = _restarted(parties, planted)
    if restarted.ok is False:
        return Report([restarted])
    report = Report([restarted, *_waiting(parties, planted), _kept(parties, planted)])
    _clean_up(parties)
    # A second look would find nothing and call it lost.
    file.unlink(missing_ok=True)
    return report if report.ok else replace(report, note=LOST_NOTE)


def _restarted(parties: Parties, planted: Planted) -> Finding:
    age_s = time.time() - planted.planted_unix_s
    try:
        with _connected(parties.sender) as client:
            client.subscribe(UPTIME_TOPIC)
            client.subscribe(parties.kept + ASIDE)
            client.publish(parties.kept + ASIDE, MARKER)
            uptime_s = float(client.next_message().payload.partition(b" ")[0])
    except (DoctorError, ValueError):
        return Finding("restarted", ok=None, means="this broker does not tell whether it was")
    facts = {"uptime_s": uptime_s, "planted_s_ago": round(age_s, 1)}
    if uptime_s > age_s:
        means = (
            f"no: the broker runs for {uptime_s:.0f} s and this was planted {age_s:.0f} s ago; "
            "kill it first, everything is left as it is"
        )
        return Finding("restarted", ok=False, means=means, facts=facts)
    if uptime_s + UPTIME_STALE_S > age_s:
        return Finding("restarted", ok=None, means="too short ago to tell", facts=facts)
    return Finding("restarted", ok=True, means="since this was planted", facts=facts)


def _waiting(parties: Parties, planted: Planted) -> list[Finding]:
    came: set[str] = set()
    with _connected(parties.away, clean=False, session_expiry_s=SESSION_EXPIRY_S) as away:
        present = away.session_present
        if present:
            with _connected(parties.sender) as sender:
                sender.publish(parties.waiting, MARKER)
            # A session that lost its subscription gets no marker, but may have messages.
            with contextlib.suppress(DoctorError):
                for payload in _until_marker(away):
                    came.add(_digest(payload))
    survived = sum(digest in came for digest in planted.messages)
    expected = len(planted.messages)
    return [
        Finding("session", ok=present, means="survived" if present else "forgotten"),
        Finding(
            "messages",
            ok=survived == expected,
            means=f"{survived} of {expected} acknowledged messages survived",
            facts={"survived": survived, "acknowledged": expected},
        ),
    ]


def _until_marker(client: ProbeClient) -> Iterator[bytes]:
    while (payload := bytes(client.next_message().payload)) != MARKER:
        yield payload


def _kept(parties: Parties, planted: Planted) -> Finding:
    with _connected(parties.sender) as late:
        late.subscribe(parties.kept)
        late.publish(parties.kept, MARKER)
        try:
            message = late.next_message()
            if not message.retain:
                # A broker may send what it retains a moment later.
                message = late.next_message()
        except DoctorError:
            return Finding("retained message", ok=False, means="forgotten")
    ok = _digest(bytes(message.payload)) == planted.retained
    return Finding("retained message", ok=ok, means="survived" if ok else "came back changed")


def _clean_up(parties: Parties) -> None:
    # A clean start without expiry removes what the broker keeps for this client id.
    with _connected(parties.away):
        pass
    with _connected(parties.sender) as sender:
        sender.clear_retained(parties.kept)


def _connected(
    identity: Identity, *, clean: bool = True, session_expiry_s: int = 0
) -> AbstractContextManager[ProbeClient]:
    return connected(
        identity.target,
        identity.role,
        clean=clean,
        session_expiry_s=session_expiry_s,
        client_id=identity.client_id,
    )


def _payload(size_bytes: int) -> bytes:
    return NO_CBOR + secrets.token_bytes(size_bytes - len(NO_CBOR))


def _digest(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()
