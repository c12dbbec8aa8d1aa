"""The API over TLS 1.3: from this machine, from another one, renewed, and never in the clear by accident."""

import asyncio
import socket
import ssl
import urllib.parse
from pathlib import Path

import pytest
import structlog.testing
from tests.support.certificates import Registry, replace, unacceptable

from shoal_fleet import api_certificate
from shoal_fleet.api_certificate import PINNED_FILE
from shoal_fleet.app import running
from shoal_fleet.client import FleetClient
from shoal_fleet.config import BrokerTable, FleetConfig, ListenTable, check
from shoal_fleet.errors import ConfigError, ControllerUnreachableError, UsageError

NAMES = "DNS:controller.example,DNS:localhost,IP:127.0.0.1"


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    return Registry(tmp_path_factory.mktemp("registry"))


@pytest.fixture
def installed(tmp_path, registry):
    """Certificate and key where the configuration names them."""
    places = tmp_path / "api.pem", tmp_path / "api.key"
    install(places, registry.certify("controller.example", names=NAMES))
    return places


def content(path: Path | str) -> bytes:
    return Path(path).read_bytes()


def install(places: tuple[Path, Path], pair: tuple[str, str]) -> None:
    for source, place in zip(pair, places, strict=True):
        replace(place, content(source))


def config_of(broker, installed) -> FleetConfig:
    return FleetConfig(
        broker=BrokerTable(port=broker.port),
        listen=ListenTable(port=0, cert_file=str(installed[0]), key_file=str(installed[1])),
    )


def status_by(**options) -> str:
    with FleetClient.at(**options) as client:
        version: str = client.get("/api/status")["version"]
        return version


def somewhere_else(folder: Path, state_dir: Path) -> Path:
    """What an operator on another machine has: a copy of the token."""
    folder.mkdir()
    (folder / "token").write_text((state_dir / "token").read_text())
    return folder


def shown_by(url: str) -> bytes:
    where = urllib.parse.urlsplit(url)
    return ssl.get_server_certificate((where.hostname, where.port)).encode()


async def test_the_command_line_of_this_machine_needs_nothing_but_the_state_directory(
    broker, installed, tmp_path
):
    state = tmp_path / "state"
    async with running(config_of(broker, installed), state) as (_, url):
        assert url.startswith("https://127.0.0.1:")
        assert await asyncio.to_thread(status_by, state_dir=state)
    assert content(state / PINNED_FILE) == content(installed[0])


async def test_an_operator_elsewhere_names_who_vouches_for_the_controller(
    broker, installed, tmp_path, registry
):
    state = tmp_path / "state"
    async with running(config_of(broker, installed), state) as (_, url):
        there = somewhere_else(tmp_path / "there", state)
        named = url.replace("127.0.0.1", "localhost")
        assert await asyncio.to_thread(
            status_by, state_dir=there, url=named, ca_file=registry.ca_file
        )
        with pytest.raises(ControllerUnreachableError, match=r"not accepted: .*--ca-file"):
            await asyncio.to_thread(status_by, state_dir=there, url=named)
        with pytest.raises(UsageError, match="holds no certificate"):
            await asyncio.to_thread(status_by, state_dir=there, url=named, ca_file=there / "token")


@pytest.mark.parametrize(
    "kind", ["expired", "not yet valid", "foreign authority", "self-signed", "for code"]
)
async def test_a_controller_whose_certificate_is_not_good_is_not_believed(
    broker, installed, tmp_path, registry, kind
):
    stranger = Registry(tmp_path / "stranger")
    install(installed, unacceptable(registry, stranger, "localhost")[kind])
    state = tmp_path / "state"
    async with running(config_of(broker, installed), state) as (_, url):
        there = somewhere_else(tmp_path / "there", state)
        named = url.replace("127.0.0.1", "localhost")
        with pytest.raises(ControllerUnreachableError, match="is not accepted"):
            await asyncio.to_thread(status_by, state_dir=there, url=named, ca_file=registry.ca_file)


async def test_a_certificate_of_another_name_and_an_impostor_on_this_machine_are_not_believed(
    broker, installed, tmp_path, registry
):
    install(installed, registry.certify("other.example"))
    state = tmp_path / "state"
    async with running(config_of(broker, installed), state) as (_, url):
        there = somewhere_else(tmp_path / "there", state)
        with pytest.raises(ControllerUnreachableError, match="IP address mismatch"):
            await asyncio.to_thread(status_by, state_dir=there, url=url, ca_file=registry.ca_file)
        # The name does not matter here, the certificate does, even against its own authority.
        assert await asyncio.to_thread(status_by, state_dir=state)
        (state / PINNED_FILE).write_bytes(content(registry.certify("x")[0]))
        with pytest.raises(ControllerUnreachableError, match="is not accepted"):
            await asyncio.to_thread(status_by, state_dir=state)


async def test_tls_1_2_and_plain_words_are_not_spoken(broker, installed, tmp_path, registry):
    def old(port: int) -> str:
        context = ssl.create_default_context(cafile=registry.ca_file)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
            try:
                context.wrap_socket(sock, server_hostname="localhost")
            except (ssl.SSLError, ConnectionError):
                return "refused"
        return "accepted"

    async with running(config_of(broker, installed), tmp_path / "state") as (_, url):
        port = urllib.parse.urlsplit(url).port
        assert await asyncio.to_thread(old, port) == "refused"
        with pytest.raises(ControllerUnreachableError):
            await asyncio.to_thread(
                status_by, state_dir=tmp_path / "state", url=f"http://127.0.0.1:{port}"
            )


async def test_a_renewed_certificate_is_shown_without_a_restart_and_half_a_renewal_is_not(
    broker, installed, tmp_path, registry, monkeypatch
):
    monkeypatch.setattr(api_certificate, "LOOK_EVERY_S", 0.05)
    state, first = tmp_path / "state", content(installed[0])
    second = registry.certify("controller.example", names=NAMES)
    unusable = "tls files unusable, the earlier ones stay"
    with structlog.testing.capture_logs() as logs:
        async with running(config_of(broker, installed), state) as (_, url), asyncio.timeout(45):
            assert await asyncio.to_thread(shown_by, url) == first
            replace(installed[0], content(second[0]))
            while unusable not in {entry["event"] for entry in logs}:  # noqa: ASYNC110 - only looking tells
                await asyncio.sleep(0.01)
            assert await asyncio.to_thread(shown_by, url) == first
            install(installed, second)
            while await asyncio.to_thread(shown_by, url) != content(second[0]):  # noqa: ASYNC110 - only asking tells
                await asyncio.sleep(0.01)
            assert await asyncio.to_thread(status_by, state_dir=state)


def test_the_token_does_not_leave_this_machine_in_the_clear_by_accident(tmp_path):
    (tmp_path / "token").write_text("secret")
    for url in ("http://192.0.2.1:8750", "HTTP://controller.example"):
        with pytest.raises(UsageError, match="in the clear"):
            FleetClient.at(state_dir=tmp_path, url=url)
        FleetClient.at(state_dir=tmp_path, url=url, plaintext=True)
    FleetClient.at(state_dir=tmp_path, url="http://127.0.0.1:1")
    FleetClient.at(state_dir=tmp_path, url="http://localhost:1")


@pytest.mark.parametrize(
    ("listen", "why"),
    [
        ({"host": "0.0.0.0"}, r"host 0\.0\.0\.0 is for other machines"),
        ({"cert_file": "c"}, "key_file is missing"),
        ({"key_file": "k", "plaintext": True}, "cert_file is missing"),
    ],
)
def test_an_api_for_other_machines_speaks_tls_or_says_that_it_does_not(listen, why):
    with pytest.raises(ConfigError, match=why):
        check(FleetConfig(listen=ListenTable(**listen)))
    check(FleetConfig(listen=ListenTable(host="0.0.0.0", plaintext=True)))
    check(FleetConfig(listen=ListenTable(host="0.0.0.0", cert_file="c", key_file="k")))


async def test_a_file_that_cannot_be_used_is_one_error_that_names_it(broker, installed, tmp_path):
    installed[1].write_text("no key")
    with pytest.raises(ConfigError, match=r"^\[listen\] key_file .* holds no private key"):
        async with running(config_of(broker, installed), tmp_path / "state"):
            pass
