"""The configuration file of `shoal-broker run`: strict, below the options, and read again at SIGHUP."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
from pathlib import Path

import pytest
from tests.shoal_broker.render.rendered_mosquitto import Authority
from tests.shoal_broker.server.test_shell import Raw
from tests.shoal_broker.test_cli import finish, start
from tests.support.tls_listener import client_files

from shoal_broker import cli
from shoal_broker.server import cli as run_command
from shoal_broker.server.access_rules import AccessRules, Policy
from shoal_broker.server.config import BrokerConfig, Listener, Tls
from shoal_broker.server.config_file import load
from shoal_broker.tls import client_context


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    run_command.add_parser(parser.add_subparsers())
    return parser.parse_args(["run", *arguments])


@pytest.fixture
def file(tmp_path):
    def written(text: str) -> Path:
        path = tmp_path / "broker.toml"
        path.write_text(text)
        return path

    return written


def test_an_empty_file_is_the_defaults(file):
    assert load(file("")) == BrokerConfig()


def test_every_table_finds_its_way_into_the_settings(file):
    path = file("""
password_file = "users"
[[listener]]
port = 1884
[[listener]]
host = "0.0.0.0"
port = 8883
cert_file = "b.crt"
key_file = "/etc/b.key"
client_ca_file = "ca.crt"
crl_file = "ca.crl"
[access]
policy = "rules"
[limits]
max_sessions = 7
connect_timeout_s = 3
[metrics]
port = 9000
""")
    beside = path.parent
    tls = Tls(
        cert_file=beside / "b.crt",
        key_file=Path("/etc/b.key"),
        client_ca_file=beside / "ca.crt",
        crl_file=beside / "ca.crl",
    )
    assert load(path) == BrokerConfig(
        port=1884,
        password_file=beside / "users",
        more_listeners=(Listener(host="0.0.0.0", port=8883, tls=tls),),
        access=AccessRules(policy=Policy.RULES),
        max_sessions=7,
        connect_timeout_s=3.0,
        metrics_port=9000,
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("prot = 1", "unknown key `prot`"),
        ("[limits]\nmax_sesions = 1", "[limits] unknown key `max_sesions`"),
        ("[limits]\nmax_sessions = 0", "[limits.max_sessions] Expected `int` >= 1"),
        ('[limits]\nmax_sessions = "many"', "[limits.max_sessions] Expected `int`"),
        ("[[listener]]\nport = 70000", "port] Expected `int` <= 65535"),
        ('[[listener]]\ncert_file = "x"', "TLS needs both"),
        ('[[listener]]\nclient_ca_file = "x"', "client certificates are for TLS"),
        ("listener = []", "serves nobody"),
        ('[[listener]]\nhost = "0.0.0.0"', "can be reached from other machines"),
        ('[access]\npolicy = "closed"', "[access.policy] Invalid enum value 'closed'"),
        ('[access]\nroot = "a b"', "[access] 'a b' cannot be the topic root"),
        ('[[access.rule]]\ntopic = "a/#/b"\naccess = "read"', "'#' stands alone"),
        ('[[access.rule]]\ntopic = "a"\naccess = "delete"', "Invalid enum value 'delete'"),
        ('[access]\ndoors = ["x", "x"]', "x is named twice"),
        ("[limits", "not TOML"),
        ("\x00", "not TOML"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it_and_exit_2(file, capsys, text, told):
    path = file(text)
    assert cli.run(["run", "--config", str(path)]) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith(f"shoal-broker: {path}")
    assert told in complaint
    assert complaint.count("\n") == 1


def test_a_file_that_is_not_there_is_one_line(tmp_path, capsys):
    assert cli.run(["run", "--config", str(tmp_path / "none.toml")]) == 2
    assert capsys.readouterr().err.endswith("none.toml: No such file or directory\n")


def test_options_go_before_the_file(file):
    path = file("""
[[listener]]
host = "::1"
port = 8883
cert_file = "b.crt"
key_file = "b.key"
[access]
operators = ["alice"]
controllers = ["hub"]
[limits]
max_connections = 5
max_packet_bytes = 1000
""")
    config = run_command.settings(
        parsed(
            *("--config", str(path), "--port", "1", "--max-connections", "9", "--tls-key", "k"),
            *("--tls-client-ca", "ca", "--access", "table", "--operator", "bob", "--door", "ha"),
        )
    )
    assert (config.host, config.port) == ("::1", 1)
    assert (config.max_connections, config.max_packet_bytes) == (9, 1000)
    assert config.tls == Tls(
        cert_file=path.parent / "b.crt", key_file=Path("k"), client_ca_file=Path("ca")
    )
    assert config.access == AccessRules(controllers=("hub",), operators=("bob",), doors=("ha",))


@pytest.mark.parametrize("arguments", [["--tls-cert", "x"], ["--tls-client-ca", "x"]])
def test_half_of_tls_on_the_command_line_is_usage(arguments, capsys):
    assert cli.run(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.system
async def test_rules_certificates_and_passwords_are_read_again_at_sighup(file, tmp_path):
    authority = Authority(tmp_path / "authority")
    authority.issue("localhost", "broker")
    other = Authority(tmp_path / "other")
    shutil.copy(authority.folder / "ca.crt", tmp_path / "clients.crt")
    text = """
[[listener]]
port = 0
cert_file = "authority/broker.crt"
key_file = "authority/broker.key"
client_ca_file = "clients.crt"
[access]
policy = "rules"
"""
    rule = '[[access.rule]]\ntopic = "home/#"\naccess = "readwrite"\n'
    path = file(text)
    process = await start("run", "--config", str(path), "--log-format", "json")
    async with asyncio.timeout(15):
        line = (await process.stdout.readline()).decode()
        assert line.endswith(" with TLS\n")
        port = int(line.split()[-3].rpartition(":")[2])

        async def client(files) -> Raw:
            return Raw(
                *await asyncio.open_connection(
                    "127.0.0.1", port, ssl=client_context(files), server_hostname="localhost"
                )
            )

        async def read_again() -> None:
            process.send_signal(signal.SIGHUP)
            while b"files" not in (line := await process.stderr.readline()):
                assert line
            said.append(line.decode())

        said = []
        node = await client(client_files(authority, "node-1"))
        await node.connect("c")
        assert await node.publish("home/lamp") == 0x87
        path.write_text(text + rule)
        await read_again()
        assert await node.publish("home/lamp") == 0x10
        path.write_text(text + "nonsense")
        await read_again()
        assert await node.publish("home/lamp") == 0x10
        path.write_text(text + rule)
        shutil.copy(other.folder / "ca.crt", tmp_path / "clients.crt")
        await read_again()
        theirs = client_files(other, "node-2", ca_file=str(authority.folder / "ca.crt"))
        newcomer = await client(theirs)
        assert int((await newcomer.connect("d")).reason_code) == 0
        for one in (node, newcomer):
            await one.close()
    process.terminate()
    assert (await finish(process))[0] == 0
    assert ["read again" in line for line in said] == [True, False, True]
    assert "broker.toml" in said[1]
