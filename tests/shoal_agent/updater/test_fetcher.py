"""One fetcher over every source: bounded in size, time and rate, whoever is on the other side."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    SlowRetrievalError,
)

from shoal_agent.updater import fetcher
from shoal_agent.updater.fetcher import Fetcher
from shoal_agent.updater.sources import DirectorySource, HttpSource


class Clock:
    """Seconds that only a source moves."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Dripping:
    """Sends a piece, then takes its time; without end."""

    def __init__(self, clock: Clock, piece: bytes, every_s: float) -> None:
        self.clock, self.piece, self.every_s = clock, piece, every_s
        self.sent = 0

    def pieces(self, _name, *, left_s):
        while True:
            self.sent += 1
            yield self.piece
            self.clock.now_s += min(self.every_s, left_s())


def test_a_source_that_drips_is_given_up():
    clock = Clock()
    source = Dripping(clock, b"x", 1.0)
    with pytest.raises(SlowRetrievalError, match="bytes in"):
        Fetcher({"a:": source}, clock_s=clock).download_bytes("a:file", 1 << 20)
    assert source.sent <= fetcher.GRACE_S + 2


def test_everything_together_has_one_deadline():
    clock = Clock()
    tried = Fetcher({"a:": Dripping(clock, b"x" * 100, 1.0)}, deadline_s=30, clock_s=clock)
    with pytest.raises(SlowRetrievalError, match="in time"):
        tried.download_bytes("a:one", 1 << 20)
    with pytest.raises(SlowRetrievalError, match="in time"):
        tried.download_bytes("a:two", 1 << 20)
    assert clock.now_s == 1030.0


def test_endless_data_ends_at_the_limit():
    clock = Clock()
    source = Dripping(clock, b"x" * 1000, 0.0)
    with pytest.raises(DownloadLengthMismatchError):
        Fetcher({"a:": source}, clock_s=clock).download_bytes("a:file", 5000)
    assert source.sent == 6


def test_nobody_has_what_no_source_begins_with():
    with pytest.raises(DownloadError):
        Fetcher({"a:": DirectorySource("/")}).download_bytes("b:file", 10)


@pytest.mark.parametrize("name", ["", ".", "..", "../secret", "a/../../secret", "a\0b", "missing"])
def test_a_name_that_leads_out_of_the_directory_is_missing(tmp_path, name):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "tuf").mkdir()
    with pytest.raises(DownloadHTTPError):
        Fetcher({"a:": DirectorySource(tmp_path / "tuf")}).download_bytes("a:" + name, 10)


@pytest.mark.parametrize("address", ["ftp://h/", "file:///etc", "http://", "h/x"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(ValueError, match="not an http"):
        HttpSource(address)


@contextmanager
def web(answer):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            answer(self)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}/tuf/"
        try:
            yield Fetcher({address: HttpSource(address)}, deadline_s=5), address
        finally:
            server.shutdown()
            thread.join()


def test_a_file_comes_over_http():
    def answer(handler):
        assert handler.path == "/tuf/1.root.json"
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(b"x" * 100_000)

    with web(answer) as (tried, address):
        assert tried.download_bytes(address + "1.root.json", 200_000) == b"x" * 100_000
        assert tried.received_bytes == 100_000
        with pytest.raises(DownloadLengthMismatchError):
            tried.download_bytes(address + "1.root.json", 99_999)


@pytest.mark.parametrize("status", [403, 404, 500, 302])
def test_a_status_that_is_no_file_is_said(status):
    def answer(handler):
        handler.send_response(status)
        handler.send_header("Location", "http://127.0.0.1/elsewhere")
        handler.end_headers()

    with web(answer) as (tried, address), pytest.raises(DownloadHTTPError) as caught:
        tried.download_bytes(address + "x", 10)
    assert caught.value.status_code == status


def test_a_server_that_talks_nonsense_or_hangs_up_is_an_error():
    def answer(handler):
        handler.wfile.write(b"\x00nonsense\r\n\r\n")

    with web(answer) as (tried, address), pytest.raises(DownloadError):
        tried.download_bytes(address + "x", 10)


def test_a_server_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(fetcher, "GRACE_S", 0.2)
    waiting = threading.Event()

    def answer(_handler):
        waiting.wait(5)

    with web(answer) as (tried, address):
        with pytest.raises(DownloadError):
            tried.download_bytes(address + "x", 10)
        waiting.set()
