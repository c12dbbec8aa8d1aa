"""The process in which a board asks for its certificate: `python -m shoal_agent.identity.child`, one attempt, then gone.

X.509 and its library live here and not in the agent. A Task comes on stdin, an Outcome goes to stdout. Killed at any
moment it leaves a directory that the next one goes on with (`store`).
"""

import contextlib
import signal
import sys
from pathlib import Path
from typing import Final

import msgspec

from shoal_agent.errors import DoorNotTrustedError, DoorUnreachableError, IdentityError
from shoal_agent.identity import certificates, line
from shoal_agent.identity.address import DoorAddress
from shoal_agent.identity.store import AUTHORITY, KEY, IdentityStore
from shoal_agent.identity.task import Outcome, Task
from shoal_broker.durable import sync_directory
from shoal_contract import enrolment as wire
from shoal_contract.enrolment import EnrolAnswer, EnrolRefusal, EnrolRequest
from shoal_contract.errors import ContractError, KeyTextError

DEADLINE_S: Final = 60
MAX_TASK_BYTES: Final = 65536
MAX_TOKEN_BYTES: Final = 256
_OK: Final = 200
_ACCEPTED: Final = 202


def main() -> None:
    """One attempt, within the deadline: whoever drips is not listened to for longer."""
    signal.alarm(DEADLINE_S)
    task = msgspec.json.decode(sys.stdin.buffer.read(MAX_TASK_BYTES), type=Task)
    outcome = attempt(task)
    sys.stdout.buffer.write(msgspec.json.encode(outcome) + b"\n")
    sys.stdout.buffer.flush()


def attempt(task: Task) -> Outcome:
    """Ask once; what comes of it is on the disk when this returns."""
    store = IdentityStore(Path(task.state_dir))
    try:
        with store.locked():
            store.recover()
            return _attempt(task, store)
    except DoorNotTrustedError as exc:
        return Outcome(kind="not_trusted", reason=str(exc))
    except DoorUnreachableError as exc:
        return Outcome(kind="unreachable", reason=str(exc))
    except (IdentityError, ContractError) as exc:
        return Outcome(kind="unusable", reason=str(exc))
    except OSError as exc:
        return Outcome(kind="unusable", reason=f"{exc.filename or store.folder}: {exc.strerror}")


def _attempt(task: Task, store: IdentityStore) -> Outcome:
    door = DoorAddress.parse(task.url)
    authority = _authority(task, store, door)
    key = _asking_key(store)
    key_text = wire.sha256_text(certificates.digest_of(key))
    csr = certificates.request(key, task.node)
    known_key, signature = _vouching(store, task.node, csr)
    token = _token(task)
    request = EnrolRequest(
        node=task.node,
        csr=csr,
        token=token,
        known_key=known_key,
        signature=signature,
        hardware=task.hardware[:200],
    )
    anchor = certificates.read_certificate(authority)
    # Before its own authority existed it cannot be: such a clock says nothing about others' certificates.
    is_lost_in_time = task.now_ms < certificates.begins_ms(anchor)
    status, body = line.ask(
        door, authority, wire.encode(request), whatever_the_time=is_lost_in_time
    )
    if status not in {_OK, _ACCEPTED}:
        return _refused(status, body, key_text)
    answer = _answer(body)
    if answer.state == "pending":
        return Outcome(
            kind="pending", key=key_text, retry_s=answer.retry_s, door_ms=answer.at_ms,
            reason="a person must accept this board (shoal nodes accept)",
        )  # fmt: skip
    certificate = answer.certificate.encode()
    facts = certificates.check_issued(
        certificates.read_certificate(certificate), authority=anchor, key=key, node=task.node
    )
    store.adopt(certificate, authority, facts)
    if token:
        _burn(task)
    return Outcome(
        kind="issued", key=key_text, door_ms=answer.at_ms, not_after_ms=facts.not_after_ms
    )


def _authority(task: Task, store: IdentityStore, door: DoorAddress) -> bytes:
    """The certificate of the authority that this board was told to trust."""
    try:
        pin = None if task.ca_pin is None else wire.parse_sha256(task.ca_pin)
    except KeyTextError as exc:
        raise IdentityError(f"ca_pin: {exc}") from exc
    if task.ca_file is not None:
        given = Path(task.ca_file).read_bytes()
        if pin is not None and not _is_pinned(given, pin):
            raise IdentityError(f"ca_file {task.ca_file} is not the authority of ca_pin")
        return _only(given)
    if pin is None:
        raise IdentityError("ca_pin or ca_file: one of them must say which authority is trusted")
    stored = store.read(AUTHORITY)
    if stored is not None and _is_pinned(stored, pin):
        return _only(stored)
    fetched = line.fetch_authority(door)
    if not _is_pinned(fetched, pin):
        raise DoorNotTrustedError(
            f"the authority of {door.host}:{door.port} is not the one that ca_pin names"
        )
    return _only(fetched)


def _only(pem: bytes) -> bytes:
    """That one certificate, whatever stands around it."""
    return certificates.pem_of(certificates.read_certificate(pem))


def _is_pinned(pem: bytes, pin: bytes) -> bool:
    try:
        found = certificates.read_certificate(pem)
    except IdentityError:
        return False
    return certificates.pin_of(found) == pin


def _asking_key(store: IdentityStore) -> certificates.PrivateKey:
    """The key that asked before, or a new one; on the disk before anybody hears of it."""
    pem = store.next_key()
    if pem is not None:
        try:
            return certificates.read_key(pem)
        except IdentityError:
            store.forget_next_key()
    key = certificates.make_key()
    store.keep_next_key(certificates.key_pem(key))
    return key


def _vouching(store: IdentityStore, node: str, csr: bytes) -> tuple[bytes, bytes]:
    """The key in use signs for the new one, where there is one."""
    pem, facts = store.read(KEY), store.facts()
    if pem is None or facts is None or facts.node != node:
        return b"", b""
    try:
        key = certificates.read_key(pem)
    except IdentityError:
        return b"", b""
    return certificates.digest_of(key), certificates.sign(key, wire.proof(node, csr))


def _token(task: Task) -> str:
    if task.token_file is None:
        return ""
    try:
        with Path(task.token_file).open("rb") as file:
            return file.read(MAX_TOKEN_BYTES).decode("ascii", "replace").strip()[:64]
    except FileNotFoundError:
        # It was used and removed, or there never was one.
        return ""


def _burn(task: Task) -> None:
    """A used token is of no use to anybody; one that cannot be removed does no harm."""
    if task.token_file is not None:
        path = Path(task.token_file)
        with contextlib.suppress(OSError):
            path.unlink()
            sync_directory(path.parent)


def _answer(body: bytes) -> EnrolAnswer:
    try:
        return wire.decode(body, EnrolAnswer, max_bytes=wire.MAX_ANSWER_BYTES)
    except ContractError as exc:
        raise DoorUnreachableError("the answer is not that of an enrolment door") from exc


def _refused(status: int, body: bytes, key_text: str) -> Outcome:
    try:
        refusal = wire.decode(body, EnrolRefusal, max_bytes=wire.MAX_ANSWER_BYTES)
    except ContractError as exc:
        raise DoorUnreachableError(f"no enrolment door: status {status}") from exc
    return Outcome(
        kind="refused",
        key=key_text,
        reason="".join(char for char in refusal.error if char.isprintable())[:300],
        why=refusal.why[:40],
        retry_s=refusal.retry_s,
        door_ms=refusal.at_ms,
    )


if __name__ == "__main__":
    main()
