"""Pipelines that read a camera: generated video over TCP and RTSP on loopback, with the real decoding process."""

import asyncio
import socket

import numpy as np
import pytest
from tests.shoal_agent.until import until
from tests.support import moving_pictures, picture_releases
from tests.support.moving_pictures import RtspServer, VideoServer
from tests.support.pipelined import pipelined

from shoal_agent.inference.errors import NobodyServesError
from shoal_agent.pipelines import pictures
from shoal_broker.server import Broker, BrokerConfig
from shoal_contract.pipelines import CameraTable, PipelineTable

SPECS = {"parts": picture_releases.items()}
RED, BLUE = (200, 20, 20), (20, 20, 200)


@pytest.fixture
async def broker():
    async with Broker.open(BrokerConfig(host="127.0.0.1", port=0)) as broker:
        yield broker


@pytest.fixture(scope="module")
def video() -> bytes:
    return moving_pictures.colours(RED, BLUE, count=15)


def table(url: str, **camera) -> PipelineTable:
    given = {"rate_hz": 100.0, "stall_s": 2.0, "open_timeout_s": 5.0, **camera}
    return PipelineTable(stream="door", model="parts", camera=CameraTable(url=url, **given))


def colour(item: bytes) -> tuple[int, ...]:
    """The mean of each channel."""
    return tuple(np.frombuffer(item, np.uint8).reshape(3, -1).mean(axis=1).round().astype(int))


def is_like(item: bytes, wanted: tuple[int, ...]) -> bool:
    return max(abs(a - b) for a, b in zip(colour(item), wanted, strict=True)) < 25


async def test_pictures_of_a_stream_become_readings_of_what_is_seen_now(broker, video, tmp_path):
    async with VideoServer.open(video) as server:
        url = f"tcp://127.0.0.1:{server.port}"
        async with pipelined(broker, tmp_path, table(url, format="mpegts"), specs=SPECS) as made:
            await until(
                lambda: (
                    any(is_like(item, RED) for item in made.router.asked)
                    and any(is_like(item, BLUE) for item in made.router.asked)
                ),
                timeout_s=45,
            )
            await made.heard(2)
            seqs = [reading.seq for reading in made.readings()]
            assert seqs == list(range(1, len(seqs) + 1))
            assert {reading.device for reading in made.readings()} == {"door"}
            assert made.reason("door") == ""
            steps = dict(made.pipelines[0].stats.steps.quantiles(0.5))
            assert set(steps) >= {"decode", "model", "whole"}


async def test_a_slow_pipeline_gets_the_newest_picture_and_counts_those_it_never_saw(
    broker, video, tmp_path
):
    async with VideoServer.open(video) as server:
        slow = table(f"tcp://127.0.0.1:{server.port}", format="mpegts", rate_hz=4.0)
        async with pipelined(broker, tmp_path, slow, specs=SPECS) as made:
            await until(lambda: made.pipelines[0].stats.passed_over >= 5, timeout_s=45)
            asked = len(made.router.asked)
            # The server sends some 25 a second; four are looked at.
            assert made.pipelines[0].stats.passed_over > asked
            made.router.errors = [NobodyServesError("nobody")]
            await until(lambda: made.pipelines[0].stats.given_up == 1, timeout_s=5)


@pytest.mark.slow
async def test_a_camera_that_stands_still_is_opened_anew_and_says_so(
    broker, video, tmp_path, monkeypatch
):
    monkeypatch.setattr(pictures, "FIRST_RESTART_S", 0.05)
    async with VideoServer.open(video) as server:
        url = f"tcp://127.0.0.1:{server.port}"
        stalling = table(url, format="mpegts", stall_s=0.5, open_timeout_s=1.0)
        async with pipelined(broker, tmp_path, stalling, specs=SPECS) as made:
            await until(lambda: made.pipelines[0].stats.served > 0, timeout_s=45)
            server.sends.clear()
            await until(lambda: made.pipelines[0].stats.source_restarts > 0, timeout_s=10)
            assert made.reason("door")
            seen = len(made.router.asked)
            server.sends.set()
            await until(lambda: len(made.router.asked) > seen, timeout_s=45)
            await until(lambda: made.reason("door") == "", timeout_s=5)
            assert server.connections >= 2


@pytest.mark.slow
async def test_a_camera_that_is_not_there_is_tried_again_and_its_password_is_not_told(
    broker, tmp_path, monkeypatch
):
    monkeypatch.setattr(pictures, "FIRST_RESTART_S", 0.05)
    (tmp_path / "password").write_text("se/cret\n")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"rtsp://127.0.0.1:{unused.getsockname()[1]}/live"
        secret = table(url, username="u", password_file=str(tmp_path / "password"))
        async with pipelined(broker, tmp_path, secret, specs=SPECS) as made:
            await until(lambda: made.pipelines[0].stats.source_restarts >= 2, timeout_s=45)
            assert made.reason("door") == "Connection refused"


def test_name_and_password_are_put_into_the_address(tmp_path):
    (tmp_path / "password").write_text("p@ss/word\n")
    camera = CameraTable(
        url="rtsp://10.0.0.7:554/live?x=1", username="me", password_file=str(tmp_path / "password")
    )
    assert pictures._with_password(camera) == "rtsp://me:p%40ss%2Fword@10.0.0.7:554/live?x=1"


async def test_no_stream_leads_ffmpeg_to_a_file(broker, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "FIRST_RESTART_S", 0.05)
    secret = tmp_path / "secret.ts"
    secret.write_bytes(moving_pictures.colours(RED, count=3))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n"

    async def serve(reader, writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.0 200 OK\r\nContent-Type: application/vnd.apple.mpegurl\r\nContent-Length: {len(playlist)}\r\n\r\n"
        writer.write(head.encode() + playlist.encode())
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/live.m3u8"
        async with pipelined(broker, tmp_path, table(url), specs=SPECS) as made:
            await until(lambda: made.pipelines[0].stats.source_restarts >= 1, timeout_s=10)
            assert made.router.asked == []


async def test_a_camera_is_read_over_rtsp_by_name_and_password(broker, video, tmp_path):
    (tmp_path / "password").write_text("secret\n")
    async with RtspServer.open(video) as server:
        server.password = "me:secret"
        camera = table(
            f"rtsp://127.0.0.1:{server.port}/live",
            username="me",
            password_file=str(tmp_path / "password"),
            options={"rtsp_transport": "tcp"},
            rate_hz=20.0,
        )
        async with pipelined(broker, tmp_path, camera, specs=SPECS) as made:
            await until(lambda: any(is_like(i, BLUE) for i in made.router.asked), timeout_s=45)
        assert {"DESCRIBE", "SETUP", "PLAY"} <= set(server.asked)


@pytest.mark.slow
async def test_a_stream_of_noise_ends_in_a_reason_and_nothing_else(broker, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "FIRST_RESTART_S", 0.05)
    noise = np.random.default_rng(1).bytes(1 << 20)
    async with VideoServer.open(noise, 0.5) as server:
        url = f"tcp://127.0.0.1:{server.port}"
        camera = table(url, stall_s=1.0, open_timeout_s=1.0)
        async with pipelined(broker, tmp_path, camera, specs=SPECS) as made:
            await until(lambda: made.pipelines[0].stats.source_restarts >= 1, timeout_s=45)
            assert made.reason("door")
            assert made.router.asked == []
