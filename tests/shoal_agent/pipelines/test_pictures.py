"""Pipelines that read picture files, with the real decoding process and a real broker."""

import asyncio
import contextlib
import io
import json
import os
import signal
import struct
import tempfile
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.shoal_agent.until import until
from tests.support import picture_releases
from tests.support.pipelined import RELEASE, pipelined

from shoal_agent.errors import DecoderError
from shoal_agent.inference.errors import NobodyServesError
from shoal_agent.inference.tensors import Tensor
from shoal_agent.pipelines import picture_pipe as pipe
from shoal_agent.pipelines.decoder import Decoder
from shoal_agent.pipelines.images_child import Reader
from shoal_agent.pipelines.ledger import Ledger
from shoal_agent.pipelines.pictures import FolderReader
from shoal_broker.server import Broker, BrokerConfig
from shoal_broker.store import Store
from shoal_contract.images import preparation
from shoal_contract.pipelines import AnswerTable, ImagesTable, PipelineTable, PublishTable

RED = (250, 10, 20)
SPECS = {"parts": picture_releases.items()}
PREPARATION = preparation([3, 4, 4], "uint8")


@pytest.fixture
async def broker():
    async with Broker.open(BrokerConfig(host="127.0.0.1", port=0)) as broker:
        yield broker


@pytest.fixture
def spool(tmp_path):
    path = tmp_path / "spool"
    path.mkdir()
    return path


def table(path: Path, **options) -> PipelineTable:
    images = ImagesTable(path=str(path), poll_s=0.05, **options.pop("images", {}))
    return PipelineTable(stream="parts", model="parts", images=images, **options)


def draw(path: Path, colour=RED, size=(16, 12)) -> None:
    """Written beside and renamed, as a program should."""
    part = path.with_name(f".{path.name}")
    Image.new("RGB", size, colour).save(part, path.suffix.removeprefix("."))
    part.rename(path)


def bomb(path: Path, side: int = 100_000) -> None:
    """A PNG of 100 kB that would be 30 GB of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1 << 20))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


async def test_every_new_file_of_a_folder_becomes_a_reading_and_a_verdict(broker, spool, tmp_path):
    draw(spool / "first.png")
    verdicts = PublishTable(topic="verdict/{1}")
    async with pipelined(broker, tmp_path, table(spool, publish=verdicts), specs=SPECS) as made:
        await made.heard(2)
        draw(spool / "second.jpeg", (0, 0, 0))
        heard = dict(await made.heard(4))
        told = json.loads(heard["verdict/second"])
        assert (told["file"], told["label"]) == ("second.jpeg", "damp")
        assert [reading.seq for reading in made.readings()] == [1, 2]
        first, second = made.router.asked
        assert np.frombuffer(first, np.uint8).reshape(3, 4, 4)[:, 0, 0].tolist() == list(RED)
        assert set(second) == {0}
        steps = dict(made.pipelines[0].stats.steps.quantiles(0.5))
        assert set(steps) == {"decode", "age", "model", "reading", "publish", "whole"}
        assert made.reason("parts") == ""


async def test_a_file_that_is_no_picture_or_too_large_a_one_is_counted_and_the_next_comes(
    broker, spool, tmp_path
):
    (spool / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    bomb(spool / "b.png")
    Image.new("P", (4, 4)).save(spool / "c.gif", "gif")
    (spool / "c.gif").rename(spool / "c.png")
    draw(spool / "d.jpeg", size=(400, 300))
    whole = (spool / "d.jpeg").read_bytes()
    (spool / "d.jpeg").write_bytes(whole[: len(whole) // 2])
    Image.new("I;16", (4, 4)).save(spool / "e.png")
    (spool / "f.png").write_bytes(os.urandom(5000))
    draw(spool / "z.png")
    os.utime(spool / "z.png", (2e9, 2e9))
    small = table(spool, images={"max_file_bytes": 4096})
    async with pipelined(broker, tmp_path, small, specs=SPECS) as made:
        await made.heard(1)
        stats = made.pipelines[0].stats
        assert (stats.bad_input, stats.served, stats.source_restarts) == (6, 1, 0)
        assert stats.given_up == 0


async def test_a_bomb_is_refused_by_its_header_and_says_so(spool):
    bomb(spool / "b.png")
    async with Decoder.open(opening(spool)) as decoder:
        found = await decoder.ask(pipe.Look(5.0), timeout_s=10)
        answer = await decoder.ask(pipe.Decode(found.name, found.stamp, PREPARATION), timeout_s=10)
        assert isinstance(answer, pipe.Unusable)
        assert "exceeds limit" in answer.reason
        assert _peak_kib(decoder.pid) < 200 * 1024


async def test_files_are_read_once_over_restarts_and_an_unfinished_one_comes_again_as_itself(
    broker, spool, tmp_path
):
    draw(spool / "first.png")
    async with pipelined(broker, tmp_path, table(spool), specs=SPECS) as made:
        await made.heard(1)
        await until(lambda: made.pipelines[0].stats.served == 1)
        (first,) = made.readings()
        made.router.hold.clear()
        draw(spool / "second.png")
        await until(lambda: len(made.router.asked) == 2, timeout_s=5)
    async with pipelined(broker, tmp_path, table(spool), specs=SPECS) as made:
        draw(spool / "third.png")
        # The first one may come again: nobody has said that it is committed.
        await until(lambda: {one.seq for one in made.readings()} >= {2, 3}, timeout_s=5)
        assert len(made.router.asked) == 2
        assert {one.boot for one in (first, *made.readings())} == {first.boot}
    assert first.seq == 1


async def test_a_file_waits_until_somebody_serves_it_and_is_deleted_then(broker, spool, tmp_path):
    draw(spool / "first.png")
    async with pipelined(
        broker, tmp_path, table(spool, images={"after": "delete"}), specs=SPECS
    ) as made:
        made.router.errors = [NobodyServesError("nobody"), NobodyServesError("nobody")]
        await made.heard(1)
        await until(lambda: not (spool / "first.png").exists(), timeout_s=5)
        assert made.pipelines[0].stats.waiting == 2
        # A new file of the old name is a new picture.
        draw(spool / "first.png")
        await made.heard(2)


async def test_one_file_is_read_whenever_it_is_written_anew(broker, spool, tmp_path):
    latest = spool / "latest.png"
    async with pipelined(broker, tmp_path, table(latest), specs=SPECS) as made:
        draw(latest)
        await made.heard(1)
        draw(latest, (1, 2, 3))
        await made.heard(2)
        assert made.router.asked[1][0] == 1


async def test_nothing_is_decoded_before_a_release_says_how(broker, spool, tmp_path):
    draw(spool / "first.png")
    async with pipelined(broker, tmp_path, table(spool)) as made:
        await until(lambda: "no release of 'parts' serves" in made.reason("parts"), timeout_s=5)
        assert made.told >= 2
        made.specs["parts"] = picture_releases.items()
        await made.heard(1)
        assert made.reason("parts") == ""


async def test_a_release_with_another_shape_is_given_what_it_wants(broker, spool, tmp_path):
    async with pipelined(broker, tmp_path, table(spool), specs=SPECS) as made:
        draw(spool / "first.png")
        await made.heard(1)
        made.router.errors = [NobodyServesError("nobody")] * 2
        draw(spool / "second.png")
        await until(lambda: len(made.router.asked) >= 2, timeout_s=5)
        made.specs["parts"] = picture_releases.items("[1, 8, 8]", "f32", version="1.1.0")
        await made.heard(2)
        assert [len(item) for item in (made.router.asked[0], made.router.asked[-1])] == [48, 256]


async def test_a_picture_becomes_a_tensor_and_the_output_a_label(broker, spool, tmp_path):
    answer = AnswerTable(output="logits", labels=("good", "bad"))
    specs = {"parts": picture_releases.tensors("int8")}
    async with pipelined(broker, tmp_path, table(spool, answer=answer), specs=specs) as made:
        logits = Tensor("float32", (1, 2), struct.pack("<2f", 0.0, 2.0))
        made.router.outputs = {"logits": logits}
        draw(spool / "first.png", (100, 100, 100))
        await made.heard(1)
        (tensor,) = made.router.tensors[0].values()
        assert (tensor.dtype, tensor.shape, set(tensor.data)) == ("int8", (1, 4, 4, 3), {100})
        (reading,) = made.readings()
        assert (reading.label, reading.confidence) == ("bad", 0.8808)
        assert reading.release == RELEASE[:8]
        made.router.outputs = {"logits": Tensor("float32", (1, 2), struct.pack("<2f", 0, np.nan))}
        draw(spool / "second.png")
        await until(lambda: made.pipelines[0].stats.bad_input == 1, timeout_s=5)


async def test_a_process_that_is_killed_is_started_anew(broker, spool, tmp_path):
    async with pipelined(broker, tmp_path, table(spool), specs=SPECS) as made:
        draw(spool / "first.png")
        await made.heard(1)
        os.kill(_child(), signal.SIGKILL)
        draw(spool / "second.png")
        await made.heard(2)
        assert made.pipelines[0].stats.source_restarts == 1


async def test_a_changed_table_takes_over_the_folder_and_no_file_is_lost_or_read_twice(
    broker, spool, tmp_path
):
    async with pipelined(broker, tmp_path, table(spool), specs=SPECS) as made:
        for number in range(3):
            draw(spool / f"{number}.png")
        await made.heard(1)
        await made.roster.follow_file([table(spool, deadline_s=3.0)])
        for number in range(3, 6):
            draw(spool / f"{number}.png")
        await made.heard(6)
        assert [reading.seq for reading in made.readings()] == [1, 2, 3, 4, 5, 6]
        assert made.pipelines[0].stats.served >= 5


async def test_a_picture_at_which_the_process_dies_twice_is_given_up(broker, spool, tmp_path):
    async with pipelined(broker, tmp_path, table(spool), specs=SPECS) as made:
        (pipeline,) = made.pipelines
        store = made.store
        reader = FolderReader(pipeline.config.images, pipeline, Ledger(store))
        decoder = _Dying()
        for _ in range(2):
            with pytest.raises(DecoderError):
                await reader.serve(decoder, asyncio.Event())
        stopping = asyncio.Event()
        decoder.after_done = stopping.set
        await reader.serve(decoder, stopping)
        assert pipeline.stats.bad_input == 1
        assert (decoder.decodes, decoder.done) == (2, ["a.png"])


class _Dying:
    """A decoding process that dies of every picture."""

    def __init__(self) -> None:
        self.gone: list[str] = []
        self.decodes = 0
        self.done: list[str] = []
        self.after_done = lambda: None

    async def ask(self, question, *, timeout_s):
        match question:
            case pipe.Look():
                return pipe.Found("a.png", "1-1-1")
            case pipe.Decode():
                self.decodes += 1
                raise DecoderError("the process for pictures was ended by SIGSEGV")
            case pipe.Done(name):
                self.done.append(name)
                self.after_done()
                return pipe.Nothing()


async def test_a_folder_that_cannot_be_read_says_so_and_is_tried_again(broker, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir(mode=0o000)
    if os.access(gone, os.R_OK):
        # Root reads everything: a file in the place of a folder on the way there does as well.
        gone.rmdir()
        gone.write_text("")
        gone = gone / "spool"
    async with pipelined(broker, tmp_path, table(gone), specs=SPECS) as made:
        await until(lambda: made.pipelines[0].stats.source_restarts >= 2, timeout_s=10)
        assert str(gone) in made.reason("parts")


def opening(path: Path, **changes) -> pipe.OpenFolder:
    values = {
        "path": str(path), "formats": ["png"], "poll_s": 0.005, "max_file_bytes": 1 << 20,
        "max_pixels": 1 << 20, "memory_bytes": 1 << 30, "known": {},
    }  # fmt: skip
    return pipe.OpenFolder(**values | changes)


async def test_a_process_that_hangs_is_given_up_after_its_time(spool):
    async with Decoder.open(opening(spool)) as decoder:
        os.kill(decoder.pid, signal.SIGSTOP)
        with pytest.raises(DecoderError, match=r"no answer within 0\.2 s"):
            await decoder.ask(pipe.Look(0.0), timeout_s=0.2)


async def test_a_process_takes_no_more_memory_than_it_may(spool):
    Image.new("L", (9000, 9000)).save(spool / "large.png", compress_level=1)
    small = opening(spool, memory_bytes=350 << 20, max_pixels=1 << 28)
    async with Decoder.open(small) as decoder:
        found = await decoder.ask(pipe.Look(5.0), timeout_s=10)
        answer = await decoder.ask(pipe.Decode(found.name, found.stamp, PREPARATION), timeout_s=10)
        assert answer == pipe.Unusable("it takes more memory than it may")


@pytest.fixture(scope="module")
def seeds() -> dict[str, bytes]:
    """A small picture in each format that is read."""
    pixels = np.random.default_rng(3).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    found = {}
    for form in ("jpeg", "png", "webp", "bmp"):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, form)
        found[form] = file.getvalue()
    return found


@given(
    form=st.sampled_from(["jpeg", "png", "webp", "bmp"]),
    changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=12),
    kept=st.floats(0.01, 1.0),
)
@settings(max_examples=100, suppress_health_check=list(HealthCheck))
def test_a_damaged_picture_is_a_picture_or_unusable_and_nothing_else(seeds, form, changes, kept):
    data = bytearray(seeds[form])
    for place, value in changes:
        data[place % len(data)] = value
    data = data[: max(1, int(len(data) * kept))]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        limit = Image.MAX_IMAGE_PIXELS
        try:
            path = Path(folder) / f"a.{form}"
            path.write_bytes(data)
            reader = Reader(opening(Path(folder), formats=[form], max_pixels=1 << 16))
            found = reader(pipe.Look(5.0))
            assert isinstance(found, pipe.Found)
            answer = reader(pipe.Decode(found.name, found.stamp, PREPARATION))
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    assert isinstance(answer, (pipe.Picture, pipe.Unusable))
    if isinstance(answer, pipe.Picture):
        assert len(answer.data) == 48
    else:
        assert "\n" not in answer.reason
        assert 0 < len(answer.reason) <= 300


async def test_the_ledger_gives_a_changed_file_a_new_number(tmp_path):
    async with Store.open(tmp_path / "agent.db") as store:
        ledger = await Ledger.load(store)
        boot, seq = await ledger.begin("s", "a", "1")
        assert await ledger.begin("s", "a", "1") == (boot, seq)
        assert await ledger.begin("s", "a", "2") == (boot, seq + 1)
        assert await ledger.known("s") == {}
        await ledger.finish("s", "a", "2")
        assert await ledger.known("s") == {"a": "2"}
        assert await ledger.begin("s", "a", "2") == (boot, seq + 2)
        await ledger.forget("s", ["a"])
        assert (await ledger.begin("other", "a", "1"))[1] == 1


def _peak_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def _child() -> int:
    """The decoding process of this test."""
    for pid in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
        with contextlib.suppress(OSError):
            if b"images_child" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return int(pid)
    raise AssertionError
