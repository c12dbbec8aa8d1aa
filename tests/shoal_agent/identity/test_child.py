"""A board's attempt at a real door: whom it trusts, what it stores, and what a kill leaves."""

import asyncio
import json
import ssl
import stat
import sys
from pathlib import Path

import msgspec
import pytest
from tests.support.enrolling import DAY_MS, an_authority
from tests.support.enrolment_door import open_door

from shoal_agent.identity import attempt as attempting
from shoal_agent.identity import child
from shoal_agent.identity.store import CERTIFICATE, KEY, Facts, IdentityStore
from shoal_agent.identity.task import Outcome
from shoal_fleet.clock import now_ms

KILLER = Path(__file__).parents[2] / "support" / "killed_enrolment.py"


@pytest.fixture
async def door(tmp_path):
    async with open_door(tmp_path) as door:
        yield door


async def ask(task) -> Outcome:
    return await asyncio.to_thread(child.attempt, task)


def store_of(task) -> IdentityStore:
    return IdentityStore(Path(task.state_dir))


def facts_of(task) -> Facts:
    facts = store_of(task).facts()
    assert facts is not None
    return facts


async def test_with_a_token_a_board_gets_a_key_and_its_certificate_and_forgets_the_token(door):
    token = await door.token_file()
    task = door.task(token_file=str(token))
    outcome = await ask(task)
    assert (outcome.kind, outcome.reason) == ("issued", "")
    store = store_of(task)
    assert sorted(path.name for path in store.current.iterdir()) == [
        "ca.pem", "cert.pem", "facts.json", "key.pem",
    ]  # fmt: skip
    assert store.current.readlink() == Path("0001")
    assert stat.S_IMODE((store.current / KEY).stat().st_mode) == 0o600
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    assert facts_of(task).node == "press-4"
    assert facts_of(task).not_after_ms == outcome.not_after_ms
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_cert_chain(store.current / CERTIFICATE, store.current / KEY)
    assert not token.exists()


async def test_it_renews_with_a_new_key_and_keeps_the_one_before(door):
    task = door.task(token_file=str(await door.token_file()))
    await ask(task)
    keys = [facts_of(task).key]
    for _ in range(3):
        assert (await ask(task)).kind == "issued"
        keys.append(facts_of(task).key)
    assert len(set(keys)) == 4
    names = sorted(path.name for path in store_of(task).folder.iterdir())
    assert names == ["0003", "0004", "current", "lock"]
    assert store_of(task).current.readlink() == Path("0004")


async def test_without_a_token_it_waits_with_one_key_until_it_is_accepted(door):
    task = door.task()
    first = await ask(task)
    second = await ask(task)
    assert (first.kind, second.kind) == ("pending", "pending")
    assert first.key == second.key
    (row,) = await door.pending.list_all()
    assert (row["fingerprint"], row["hardware"]) == (first.key, "a simulated board")
    await door.pending.accept("press-4", None)
    assert (await ask(task)).kind == "issued"
    assert f"sha256:{facts_of(task).key}" == first.key


async def test_a_wrong_pin_is_found_out_before_anything_is_said(door, tmp_path):
    stranger = an_authority(tmp_path / "stranger")
    token = await door.token_file()
    outcome = await ask(door.task(ca_pin=stranger.pin, token_file=str(token)))
    assert outcome.kind == "not_trusted"
    assert "not the one that ca_pin names" in outcome.reason
    assert token.exists()
    assert sum(door.enrolment.stats.issued.values()) == 0


async def test_a_door_of_another_authority_or_another_name_is_not_trusted(door, tmp_path):
    # It shows the certificate that was pinned, as anybody can, but has none of that authority.
    stranger = an_authority(tmp_path / "stranger")
    task = door.task(ca_pin=None, ca_file=str(tmp_path / "stranger" / "ca.crt"))
    outcome = await ask(task)
    assert outcome.kind == "not_trusted"
    assert "not accepted" in outcome.reason
    outcome = await ask(door.task(ca_file=task.ca_file))
    assert (outcome.kind, "is not the authority of ca_pin" in outcome.reason) == ("unusable", True)
    elsewhere = door.url.replace("localhost", "127.1")
    outcome = await ask(door.task(url=elsewhere))
    assert (outcome.kind, "127.1" in outcome.reason) == ("not_trusted", True)
    assert stranger.pin != door.authority.pin


async def test_an_expired_authority_is_not_trusted(tmp_path):
    expired = an_authority(tmp_path / "ca", at_ms=now_ms() - 3653 * DAY_MS)
    async with open_door(tmp_path, authority=expired) as door:
        outcome = await ask(door.task(token_file=str(await door.token_file())))
    assert (outcome.kind, "expired" in outcome.reason) == ("not_trusted", True)


async def test_a_door_that_speaks_older_tls_only_gets_nothing(door, tmp_path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(tmp_path / "door.pem")
    heard = []

    async def accept(reader, writer):
        heard.append(await reader.read(100))
        writer.close()

    async with await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        outcome = await ask(door.task(url=f"https://localhost:{port}"))
    assert outcome.kind in {"not_trusted", "unreachable"}
    assert heard == []


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\0\1\2\3",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100_000,
        b"HTTP/1.1 403 No\r\n\r\nnot json",
        b"HTTP/1.1 500 " + b"x" * 70_000 + b"\r\n\r\n",
        b'HTTP/1.1 200 OK\r\n\r\n{"state":"issued","at_ms":1,"certificate":"x","ca":"y"}',
    ],
)
async def test_what_a_door_may_answer_leaves_a_board_as_it_was(door, tmp_path, answer):
    task = door.task(ca_file=str(tmp_path / "ca" / "ca.crt"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "door.pem")

    async def accept(reader, writer):
        await reader.read(65536)
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        outcome = await ask(door.task(ca_file=task.ca_file, url=f"https://localhost:{port}"))
    assert outcome.kind in {"unreachable", "unusable"}
    assert store_of(task).facts() is None
    assert len(outcome.reason) < 400


async def test_a_certificate_for_another_key_or_name_is_not_taken(door, tmp_path):
    # The door itself is the enemy, as after a break-in.
    theirs = door.task("other", token_file=str(await door.token_file()))
    await ask(theirs)
    certificate = (store_of(theirs).current / CERTIFICATE).read_text()
    body = json.dumps(
        {"state": "issued", "at_ms": 1, "certificate": certificate, "ca": "ignored"}
    ).encode()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "door.pem")

    async def accept(reader, writer):
        await reader.read(65536)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + body)
        await writer.drain()
        writer.close()

    ca_file = str(tmp_path / "ca" / "ca.crt")
    async with await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context) as server:
        url = f"https://localhost:{server.sockets[0].getsockname()[1]}"
        outcome = await ask(door.task(ca_file=ca_file, url=url))
    assert (outcome.kind, outcome.reason) == ("unusable", "the certificate is for another key")
    assert store_of(door.task()).facts() is None


async def test_a_clock_before_the_authority_was_made_does_not_keep_a_board_out(
    tmp_path, monkeypatch
):
    # The fleet lives a year ahead, this machine's OpenSSL does not: the certificates are "not yet valid" to it.
    ahead_ms = now_ms() + 365 * DAY_MS
    monkeypatch.setattr("shoal_fleet.identity.door_certificate.now_ms", lambda: ahead_ms)
    authority = an_authority(tmp_path / "ca", at_ms=ahead_ms)
    async with open_door(tmp_path, authority=authority) as door:
        door.at_ms = ahead_ms
        token = str(await door.token_file())
        # A clock that is not behind the authority judges, and with OpenSSL's it is refused.
        outcome = await ask(door.task(now_ms=ahead_ms, token_file=token))
        assert (outcome.kind, "not yet valid" in outcome.reason) == ("not_trusted", True)
        stranger = an_authority(tmp_path / "stranger", at_ms=ahead_ms)
        outcome = await ask(
            door.task(ca_pin=None, ca_file=str(tmp_path / "stranger" / "ca.crt"), token_file=token)
        )
        assert (outcome.kind, stranger.pin != authority.pin) == ("not_trusted", True)
        # But one that is wrong for certain does not: only the time is let go, not authority nor name.
        monkeypatch.setattr("shoal_fleet.identity.tokens.now_ms", lambda: ahead_ms)
        outcome = await ask(door.task(token_file=str(await door.token_file())))
        assert outcome.kind == "issued", outcome
        assert outcome.door_ms == ahead_ms


async def test_a_damaged_key_file_is_replaced_and_a_person_decides(door):
    task = door.task(token_file=str(await door.token_file()))
    await ask(task)
    key = store_of(task).current / KEY
    key.write_bytes(bytes(len(key.read_bytes())))
    assert (await ask(task)).kind == "pending"
    # So is the key that asked in vain.
    (store_of(task).folder / "next" / KEY).write_bytes(b"\0" * 100)
    outcome = await ask(task)
    assert outcome.kind == "pending"
    await door.pending.accept("press-4", outcome.key)
    assert (await ask(task)).kind == "issued"


async def test_a_board_that_slept_past_its_certificate_comes_back_and_after_ninety_days_waits(door):
    task = door.task(token_file=str(await door.token_file()))
    await ask(task)
    door.at_ms = now_ms() + 100 * DAY_MS
    assert (await ask(task)).kind == "issued"
    assert door.enrolment.stats.issued["lapsed"] == 1
    door.at_ms = now_ms() + 300 * DAY_MS
    assert (await ask(task)).kind == "pending"


async def test_the_agent_asks_through_a_process_of_its_own(door):
    task = door.task(token_file=str(await door.token_file()))
    assert (await attempting.attempt(task)).kind == "issued"
    refused = await attempting.attempt(door.task("other", token_file=str(await wrong(door))))
    assert (refused.kind, refused.why) == ("refused", "token")


async def wrong(door):
    path = door.folder / "wrong"
    path.write_text("A" * 43)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("renew", [False, True], ids=["the first certificate", "a renewal"])
async def test_killed_at_every_step_a_board_has_a_usable_identity_or_a_clean_start(
    door, tmp_path, monkeypatch, renew
):
    tasks = [
        door.task(f"board-{n}", token_file=str(await door.token_file(name=f"token-{n}")))
        for n in range(80)
    ]
    plan = tmp_path / "plan.json"
    plan.write_text(
        json.dumps({"tasks": [msgspec.to_builtins(task) for task in tasks], "renew": renew})
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(KILLER), str(plan),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    stdout, stderr = await process.communicate()
    assert process.returncode == 0, stderr.decode()
    print(f"killed at {int(stdout)} steps")
    assert int(stdout) >= 15
