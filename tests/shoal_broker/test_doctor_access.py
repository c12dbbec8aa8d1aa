"""The doctor walks the access rules of a mosquitto with rendered rules, right and wrong ones."""

import argparse
import asyncio
import contextlib
import json

import pytest
import structlog.testing
from tests.shoal_broker.render.rendered_mosquitto import Authority, RenderedMosquitto
from tests.shoal_broker.render.tls_client import connected
from tests.support.embedded import tls_of
from tests.support.mosquitto import Mosquitto

from shoal_broker import cli as broker_cli
from shoal_broker.doctor import cli as doctor
from shoal_broker.server import Broker, BrokerConfig
from shoal_broker.server.access_rules import AccessRules, Rule
from shoal_contract.access import TABLE
from shoal_contract.topics import Channel, Topics

needs_mosquitto = [
    pytest.mark.system,
    pytest.mark.skipif(
        Mosquitto.found() is None, reason="mosquitto is not installed (apt-get install mosquitto)"
    ),
]
CONTROLLER, NODE = "shoal-doctor", "doctor-1"
TOPICS = Topics("acme/plant-1")


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


class Examined:
    """A broker with rendered rules, `changed` where a test says so, and what the doctor prints."""

    def __init__(self, folder, authority, capsys, changes=()):
        self.authority = authority
        self.capsys = capsys
        self.broker = RenderedMosquitto(
            folder / "etc", authority, "--root", TOPICS.root,
            "--controller", "shoal-controller", "--controller", CONTROLLER,
        )  # fmt: skip
        acl = folder / "etc" / "shoal.acl"
        for old, new in changes:
            assert old in acl.read_text()
            acl.write_text(acl.read_text().replace(old, new))
        self.identities = folder / "identities.toml"
        self.identities.write_text(tables_of(authority))

    def diagnose(self, *arguments):
        self.capsys.readouterr()
        code = run(
            "--port", str(self.broker.port), "--ca-file", f"{self.authority.folder}/ca.crt",
            "--identities", str(self.identities), *arguments,
        )  # fmt: skip
        return code, self.capsys.readouterr().out


def tables_of(authority):
    tables = [f'root = "{TOPICS.root}"\n']
    for table, name in (("controller", CONTROLLER), ("node", NODE)):
        cert_file, key_file = authority.issue(name)
        tables.append(
            f'[{table}]\nname = "{name}"\ncert_file = "{cert_file}"\nkey_file = "{key_file}"\n'
        )
    return "\n".join(tables)


def run(*arguments):
    parser = argparse.ArgumentParser()
    doctor.add_parser(parser.add_subparsers(required=True))
    parsed = parser.parse_args(["doctor", *arguments])
    return parsed.func(parsed)


def found(out, ok):
    """(role, family, whose, access, verdict) of the findings that are `ok`."""
    return {
        tuple(probe["facts"][key] for key in ("role", "family", "whose", "access", "verdict"))
        for probe in json.loads(out)["probes"]
        if probe["ok"] is ok and "verdict" in probe["facts"]
    }


class TestMosquitto:
    pytestmark = needs_mosquitto

    def test_rendered_rules_hold_and_what_cannot_be_told_is_said(self, tmp_path, authority, capsys):
        examined = Examined(tmp_path, authority, capsys)
        with examined.broker.running():
            code, out = examined.diagnose("--json")
        assert code == 0
        assert found(out, False) == set()
        untold = {
            (role, channel.name.lower(), "another node's", "read", "not told")
            for role in ("controller", "node")
            for channel in (Channel.RESULTS, Channel.PRESENCE, Channel.STATE, Channel.TELEMETRY)
        }
        assert found(out, None) == untold
        told = [probe for probe in json.loads(out)["probes"] if probe["ok"] is True]
        # Reading and writing of seven channels of two nodes and three families of the fleet.
        cells = 2 * (7 * 2 + len(TABLE) - 7)
        assert [probe["means"] for probe in told] == [f"{cells - 4} of {cells} hold"] * 2

    def test_a_rule_too_wide_and_one_too_narrow_are_found(self, tmp_path, authority, capsys):
        root = TOPICS.root
        wide = (f"pattern write {root}/n/%u/s", f"pattern write {root}/n/+/s")
        narrow = (f"pattern read {root}/n/%u/w\n", "")
        examined = Examined(tmp_path, authority, capsys, [wide, narrow])
        with examined.broker.running():
            code, out = examined.diagnose("--json")
            assert code == 1
            assert found(out, False) == {
                # A pattern of mosquitto is for every user.
                ("controller", "state", "the node's own", "write", "too wide"),
                ("controller", "state", "another node's", "write", "too wide"),
                ("node", "state", "another node's", "write", "too wide"),
                ("node", "wanted", "the node's own", "read", "too narrow"),
            }
            code, lines = examined.diagnose()
        assert code == 1
        failed = [line for line in lines.splitlines() if line.startswith("FAIL")]
        assert len(failed) == 4
        assert "too wide: write another node's state" in lines
        assert "too narrow: read the node's own wanted" in lines

    def test_a_node_that_may_read_everything_is_found(self, tmp_path, authority, capsys):
        root = TOPICS.root
        wide = (f"pattern read {root}/n/%u/c", f"pattern read {root}/#")
        examined = Examined(tmp_path, authority, capsys, [wide])
        with examined.broker.running():
            code, out = examined.diagnose("--json")
        assert code == 1
        wrong = found(out, False)
        assert ("node", "commands", "another node's", "read", "too wide") in wrong
        assert ("node", "state", "the node's own", "read", "too wide") in wrong
        assert {access for _, _, _, access, _ in wrong} == {"read"}

    def test_durability_is_told_within_the_rules(self, tmp_path, authority, capsys):
        examined = Examined(tmp_path, authority, capsys)
        file = tmp_path / "planted.json"
        with examined.broker.running():
            code, out = examined.diagnose("--plant", str(file))
            assert code == 0, out
            with connected(examined.broker.port, authority, CONTROLLER):
                pass  # mosquitto saves in the turn of its loop behind a change
            examined.broker.kill()
        with examined.broker.running():
            code, out = examined.diagnose("--verify", str(file))
            assert code == 0, out
            assert "40 of 40 acknowledged messages survived" in out
            # Nothing is left that would be in the way of the next look.
            code, out = examined.diagnose()
        assert code == 0, out

    def test_an_identity_in_use_is_left_alone(self, tmp_path, authority, capsys):
        examined = Examined(tmp_path, authority, capsys)
        command = TOPICS.commands(NODE)
        with examined.broker.running():
            port = examined.broker.port
            with connected(port, authority, NODE, keep_session=True) as node:
                node.subscribe(command)
            with connected(port, authority, CONTROLLER) as controller:
                assert controller.publish(command, b"waits") == 0
            code, out = examined.diagnose()
            assert code == 1
            assert "the node identity is in use" in out
            with connected(port, authority, NODE, keep_session=True) as node:
                assert node.session_present
                with connected(port, authority, CONTROLLER) as controller:
                    controller.publish(command, b"marker")
                assert [message.payload for message in node.until(b"marker")] == [b"waits"]


@contextlib.asynccontextmanager
async def cutting_off(broker_port):
    """The port of a broker that ends a connection where another one says "not authorised"."""

    async def judged(broker, client):
        while True:
            head = await broker.readexactly(2)
            assert head[1] < 0x80, "a packet longer than any of the doctor's"
            body = await broker.readexactly(head[1])
            if head[0] >> 4 == 4 and body[2:3] == b"\x87":
                return
            client.write(head + body)

    async def forwarded(client, broker):
        while piece := await client.read(4096):
            broker.write(piece)

    async def serve(reader, writer):
        broker_reader, broker_writer = await asyncio.open_connection("127.0.0.1", broker_port)
        ways = {
            asyncio.create_task(judged(broker_reader, writer)),
            asyncio.create_task(forwarded(reader, broker_writer)),
        }
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        for end in (writer, broker_writer):
            end.transport.abort()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.system
@pytest.mark.skipif(
    Mosquitto.found() is None, reason="mosquitto is not installed (apt-get install mosquitto)"
)
async def test_a_broker_that_cuts_off_whom_it_refuses_is_walked_to_the_end(tmp_path, capsys):
    broker_cli.run(["render", "mosquitto", "--out", str(tmp_path), "--controller", CONTROLLER])
    identities = tmp_path / "identities.toml"
    identities.write_text(
        f'[controller]\nusername = "{CONTROLLER}"\n[node]\nname = "{NODE}"\nusername = "{NODE}"\n'
    )
    rules = f"allow_anonymous true\nacl_file {tmp_path}/shoal.acl\nuser root"
    async with Mosquitto.open(tmp_path, extra=rules) as broker, cutting_off(broker.port) as port:
        capsys.readouterr()
        arguments = ["--port", str(port), "--identities", str(identities), "--json"]
        code = await asyncio.to_thread(run, *arguments)
    out = capsys.readouterr().out
    assert code == 0, out
    assert found(out, False) == set()
    assert len(found(out, None)) == 8


@pytest.mark.parametrize(
    ("rule", "wrong"),
    [
        (None, set()),
        (
            Rule(user=NODE, topic=f"{TOPICS.root}/n/+/s", access="write"),
            {("node", "state", "another node's", "write", "too wide")},
        ),
    ],
)
async def test_the_embedded_brokers_rules_are_walked(tmp_path, authority, capsys, rule, wrong):
    identities = tmp_path / "identities.toml"
    identities.write_text(tables_of(authority))
    rules = AccessRules(
        root=TOPICS.root, controllers=(CONTROLLER,), rule=() if rule is None else (rule,)
    )
    config = BrokerConfig(port=0, tls=tls_of(authority), access=rules)
    with structlog.testing.capture_logs():
        async with Broker.open(config) as broker:
            code = await asyncio.to_thread(
                run,
                *("--port", str(broker.port), "--ca-file", f"{authority.folder}/ca.crt"),
                *("--identities", str(identities), "--json"),
            )
    out = capsys.readouterr().out
    assert found(out, False) == wrong
    assert code == bool(wrong)
    # What a refused subscription tells of the node, nobody tells of the controller.
    if rule is None:
        assert [role for role, *_ in found(out, None)] == ["controller"] * 4


async def test_a_broker_without_rules_is_found_too_wide(tmp_path, capsys):
    identities = tmp_path / "identities.toml"
    identities.write_text('[controller]\n[node]\nname = "doctor-1"\n')
    # The broker's own log lines would stand between those of the doctor.
    with structlog.testing.capture_logs():
        async with Broker.open(BrokerConfig(host="127.0.0.1", port=0)) as broker:
            arguments = ["--port", str(broker.port), "--identities", str(identities), "--json"]
            assert await asyncio.to_thread(run, *arguments) == 1
    wrong = found(capsys.readouterr().out, False)
    assert ("node", "wanted", "another node's", "write", "too wide") in wrong
    assert ("node", "state", "another node's", "read", "too wide") in wrong
    assert {verdict for *_, verdict in wrong} == {"too wide"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[controller]\n[node]\n", "missing key `name`"),
        ('[controller]\n[node]\nname = "Not A Node"\n', "not a node id"),
        ('[node]\nname = "n"\n', "controller"),
        ('[controller]\n[node]\nname = "n"\npassword = "x"\n', "unknown key"),
        ('root = "a b"\n[controller]\n[node]\nname = "n"\n', "topic root"),
        ('[controller]\npassword_file = "none"\n[node]\nname = "n"\n', "password file"),
        ('[controller]\ncert_file = "x"\n[node]\nname = "n"\n', "cert_file needs ca_file"),
        ("[controller", "identities.toml"),
        ("\x00", "identities.toml"),
    ],
)
def test_an_identities_file_that_cannot_be_used_is_one_line(tmp_path, capsys, text, told):
    identities = tmp_path / "identities.toml"
    identities.write_text(text)
    assert run("--identities", str(identities)) == 2
    out = capsys.readouterr().out
    assert told in out
    assert out.count("\n") == 1


def test_options_of_one_identity_do_not_go_with_a_file_of_two(tmp_path, capsys):
    assert run("--identities", str(tmp_path / "none"), "--username", "me") == 2
    assert "--username" in capsys.readouterr().out
    assert run("--identities", str(tmp_path / "none")) == 2
    assert "cannot be read" in capsys.readouterr().out
