"""A whole agent: what it says when it cannot start, what it answers over MQTT, and what it never loads."""

import asyncio
import io
import json
import signal
import socket
import tarfile
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.shoal_agent.until import until
from tests.support.board import NODE, Board, short_folder
from tests.support.hub import Hub, Release
from tests.support.programs import Program

from shoal_agent import app
from shoal_agent.config import load
from shoal_agent.errors import ConfigError
from shoal_broker.bus_errors import StoreError
from shoal_broker.logs import RecentLines
from shoal_broker.server import Broker, BrokerConfig
from shoal_contract import messages
from shoal_contract.messages import InferReply, InferRequest
from shoal_fleet import digits

LISTING_AGENT = Path(__file__).parents[1] / "support" / "listing_agent.py"
# PyNaCl: only where [trust] names keys.
NEVER_IN_THE_CORE = (
    "numpy",
    "onnxruntime",
    "onnx",
    "typer",
    "zstandard",
    "PIL",
    "av",
    "fastapi",
    "nacl",
    # X.509 lives in a child, also of an agent that enrols (tests/system/test_enrolment.py).
    "cryptography",
    # Installed here, not on a board; structlog and msgspec would load them for nothing.
    "rich",
    "pygments",
    "greenlet",
    "typing_extensions",
)
# What an agent without metrics, peers and another transport than the codec does without.
NEVER_IN_AN_IDLE_AGENT = (
    *NEVER_IN_THE_CORE,
    "prometheus_client",
    "aiomqtt",
    "paho",
    "zeroconf",
    "ifaddr",
    "importlib.metadata",
    "email",
    "http",
    "html",
    "csv",
    "zipfile",
    "tarfile",
    "tempfile",
    "wsgiref",
    "socketserver",
    "urllib.request",
    "multiprocessing",
    "concurrent.futures.process",
    "shoal_agent.local_api",
    "h11",
    "websockets",
)


@pytest.fixture
def board():
    with short_folder() as folder:
        yield Board(folder)


@pytest.fixture
async def broker():
    async with Broker.open(BrokerConfig(host="127.0.0.1", port=0)) as broker:
        yield broker


@pytest.fixture
def taken():
    """A port that somebody listens on."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


@asynccontextmanager
async def agent(board: Board, port: int, more: str = ""):
    config = load(board.agent_toml(port, more=more))
    async with app.running(config, recent=RecentLines(), stop=asyncio.Event()) as running:
        yield running


async def refused(board: Board, error: type[Exception], more: str = "") -> str:
    with pytest.raises(error) as caught:
        async with agent(board, 1, more):
            pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def test_a_state_dir_that_is_a_file_is_a_clear_error(board):
    board.state.write_text("")
    said = await refused(board, ConfigError)
    assert said == f"state_dir {board.state} cannot be used: File exists"


async def test_a_file_in_the_place_of_the_blobs_is_a_clear_error(board):
    board.state.mkdir()
    (board.state / "blobs").write_text("")
    assert "cannot be used" in await refused(board, ConfigError)


async def test_a_journal_that_is_no_database_is_a_clear_error(board):
    board.state.mkdir()
    (board.state / "agent.db").write_bytes(b"no database at all " * 300)
    assert "agent.db" in await refused(board, StoreError)


async def test_two_agents_do_not_share_a_state_dir(board, broker):
    async with agent(board, broker.port):
        assert "another agent runs" in await refused(board, ConfigError)
    async with agent(board, broker.port):
        """And once the first has gone, the next may have it."""


async def test_a_metrics_port_that_is_taken_is_a_clear_error(board, taken):
    said = await refused(board, ConfigError, f"[metrics]\nport = {taken}")
    assert said == f"[metrics] cannot listen on 127.0.0.1:{taken}: Address already in use"


async def test_a_peer_port_that_is_taken_is_a_clear_error(board, taken):
    path = board.agent_toml(1)
    peers = f'enabled = true\nhost = "127.0.0.1"\nport = {taken}\ninterfaces = ["127.0.0.1"]'
    path.write_text(path.read_text().replace("enabled = false", peers))
    with pytest.raises(ConfigError, match=r"\[peers\] cannot listen on 127.0.0.1:"):
        async with app.running(load(path), recent=RecentLines(), stop=asyncio.Event()):
            pass


async def test_a_password_file_that_is_not_there_is_a_clear_error(board):
    path = board.agent_toml(1)
    path.write_text(path.read_text().replace("[broker]", '[broker]\npassword_file = "/no/such"'))
    with pytest.raises(ConfigError, match="password_file /no/such cannot be read"):
        async with app.running(load(path), recent=RecentLines(), stop=asyncio.Event()):
            pass


async def test_an_inference_request_over_mqtt_is_answered_to_its_response_topic(board, broker):
    async with agent(board, broker.port), Hub.open(broker.port, NODE) as hub:
        await hub.until(lambda: bool(hub.presence))
        request = InferRequest(b"12345678", "digits", [b"x"])
        reply = await hub.session.request(
            hub.topics.inference(NODE, "digits"),
            messages.encode(request),
            reply_topic="answers/hub",
            timeout_s=5,
        )
        decoded = messages.decode_as(reply, InferReply)
        assert (decoded.id, decoded.answers) == (b"12345678", [])
        assert "does not run here" in decoded.reason


async def test_the_bundle_for_a_bug_report_says_how_pipelines_stand(board, broker):
    more = '[[pipeline]]\nstream = "climate"\nmodel = "m"\n[pipeline.topic]\nfilter = "z"\nvalues = ["$"]'
    async with agent(board, broker.port, more), Hub.open(broker.port, NODE) as hub:
        await hub.until(lambda: bool(hub.presence))
        await hub.command(messages.Command(b"12345678", "diag.bundle", {}, 1, 1 << 50))
        await hub.until(lambda: bool(hub.results) and hub.results[-1].state.is_final)
    with tarfile.open(fileobj=io.BytesIO(hub.results[-1].result["bundle"])) as archive:
        (name,) = [name for name in archive.getnames() if name.endswith("pipelines.json")]
        (state,) = json.load(archive.extractfile(name))
    assert state == {"stream": "climate", "from_fleet": False, "running": True, "reason": ""}


@pytest.mark.system
@pytest.mark.timeout(60)
async def test_a_running_agent_infers_without_numpy_or_onnxruntime_in_its_own_process(
    board, broker
):
    v1 = Release(digits.release_dir(1))
    async with (
        Hub.open(broker.port, NODE) as hub,
        board.device(rate_hz=40, limit=20),
        board.bridge(),
        board.agent(broker.port, device=True, program=LISTING_AGENT) as process,
    ):
        await hub.want(v1)
        await hub.until(lambda: hub.serving() == v1.id and len(hub.readings) >= 20)
        loaded = await modules_of(process, board)
        assert [name for name in NEVER_IN_THE_CORE if name in loaded] == []
        # It is another process that has them.
        children = children_of(process.pid)
        assert any(loads_onnxruntime(child) for child in children)
        assert await process.end() == 0
        assert not any(is_there(child) for child in children)


@pytest.mark.system
async def test_an_agent_loads_what_its_configuration_needs_and_nothing_else(board, broker):
    async with board.agent(broker.port, program=LISTING_AGENT, transport="codec") as process:
        idle = await modules_of(process, board)
        assert [name for name in NEVER_IN_AN_IDLE_AGENT if name in idle] == []


async def modules_of(process: Program, board: Board) -> set[str]:
    process.signal(signal.SIGUSR1)
    modules = board.folder / "modules"
    await until(modules.exists)
    loaded = set(modules.read_text().split())
    assert {"shoal_agent.app", "structlog", "msgspec"} <= loaded
    return loaded


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def loads_onnxruntime(pid: str) -> bool:
    return "onnxruntime" in Path(f"/proc/{pid}/maps").read_text()


def is_there(pid: str) -> bool:
    return Path(f"/proc/{pid}").exists()
