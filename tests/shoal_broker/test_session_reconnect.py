"""A session connects anew when it is told to: with the files as they are then, and without a will or a lost message."""

import asyncio
import shutil

import pytest
from tests.shoal_broker.render.rendered_mosquitto import Authority
from tests.support.embedded import tls_of

from shoal_broker.link import SessionConfig
from shoal_broker.outbox import Outbox
from shoal_broker.server import Broker, BrokerConfig
from shoal_broker.session import Session, Will
from shoal_broker.store import Store
from shoal_broker.tls import TlsFiles, _together
from shoal_contract.topics import Topics

DEADLINE_S = 10
WILL, WORD = Topics().presence("node-1"), Topics().telemetry("node-1", "word")


@pytest.fixture(params=["aiomqtt", "codec"])
def transport(request):
    return request.param


async def until(true) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not true():  # noqa: ASYNC110 - counters have no event
            await asyncio.sleep(0.005)


async def test_it_shows_the_certificate_that_lies_there_now(tmp_path, transport):
    authority = Authority(tmp_path / "ca")
    for number, issue in enumerate(("first", "second"), start=1):
        certificate, key = authority.issue("node-1", issue)
        folder = tmp_path / f"000{number}"
        folder.mkdir()
        shutil.copy(certificate, folder / "cert.pem")
        shutil.copy(key, folder / "key.pem")
    current = tmp_path / "current"
    current.symlink_to("0001")
    files = TlsFiles(
        ca_file=f"{authority.folder}/ca.crt",
        cert_file=str(current / "cert.pem"),
        key_file=str(current / "key.pem"),
    )
    config = BrokerConfig(host="127.0.0.1", port=0, tls=tls_of(authority))
    wills, lost = [], []
    async with (
        Broker.open(config) as broker,
        Store.open(tmp_path / "outbox.db") as store,
        Session.open(
            SessionConfig(
                host="localhost", port=broker.port, client_id="shoal-controller",
                tls=TlsFiles(ca_file=files.ca_file, cert_file=authority.issue("shoal-controller")[0],
                             key_file=authority.issue("shoal-controller")[1]),
            ),
            subscriptions={
                WILL: lambda inbound: take(wills, inbound),
                WORD: lambda inbound: take(lost, inbound),
            },
        ) as watcher,
        Session.open(
            SessionConfig(
                host="localhost", port=broker.port, client_id="node-1", transport=transport,
                tls=files, backoff_initial_s=0.02,
            ),
            outbox=await Outbox.load(store),
            will=Will(WILL, b"gone"),
        ) as mine,
    ):  # fmt: skip
        await watcher.wait_connected(DEADLINE_S)
        await mine.wait_connected(DEADLINE_S)
        (current.with_name("link")).symlink_to("0002")
        (current.with_name("link")).rename(current)
        for number in range(10):
            await mine.publish(WORD, b"%d" % number)
        await mine.reconnect()
        for number in range(10, 20):
            await mine.publish(WORD, b"%d" % number)
        await until(lambda: mine.stats.connects == 2 and mine.connected)
        await until(lambda: set(lost) == {b"%d" % number for number in range(20)})
        assert wills == []
        assert mine.stats.identity_refused == mine.stats.tls_files_unusable == 0


async def take(into, inbound):
    into.append(inbound.payload)


async def test_without_a_connection_it_is_nothing(transport):
    config = SessionConfig(host="127.0.0.1", port=1, client_id="a", transport=transport)
    async with Session.open(config) as session:
        await session.reconnect()
        assert session.stats.connects == 0


def test_key_and_certificate_behind_a_link_are_read_from_one_place(tmp_path):
    (tmp_path / "0001").mkdir()
    (tmp_path / "current").symlink_to("0001")
    files = TlsFiles(
        ca_file="/ca.pem",
        cert_file=str(tmp_path / "current" / "cert.pem"),
        key_file=str(tmp_path / "current" / "key.pem"),
    )
    found = _together(files)
    assert found.cert_file == str(tmp_path / "0001" / "cert.pem")
    assert found.key_file == str(tmp_path / "0001" / "key.pem")
    apart = TlsFiles(
        ca_file="/ca.pem", cert_file=files.cert_file, key_file=str(tmp_path / "key.pem")
    )
    assert _together(apart) == apart
    assert _together(TlsFiles(ca_file="/ca.pem")) == TlsFiles(ca_file="/ca.pem")
