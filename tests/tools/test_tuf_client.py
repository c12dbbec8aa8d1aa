"""The conformance suite's scenarios, through `tools/tuf-client` as the suite would run it: over HTTP and over MQTT.

The suite itself comes from no package index. Its questions are asked here again, of repositories whose keys are at
hand: rollback, freeze, mix and match, thresholds, endless data, rotations, expiry, wrong lengths and hashes.
"""

import hashlib
import logging
import os
import runpy
import subprocess
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.support.embedded import embedded
from tests.support.signed_repository import Key, SignedRepository
from tuf.api.metadata import Metadata, TargetFile

from shoal_broker.server import BrokerConfig
from shoal_contract.topics import Topics
from shoal_fleet.trust import ceremony

TOOL = Path(__file__).parents[2] / "tools" / "tuf-client"
TARGET = "oslo/file.txt"
CONTENT = b"the target's content"
"""A target that the group's role may list, whatever it is."""
pytestmark = pytest.mark.slow


class Suite:
    """One client under test, and the repository it is pointed to. `lies` are answers that are not the repository's."""

    def __init__(self, folder: Path, source: str) -> None:
        self.repository = SignedRepository(folder / "tuf", now=datetime.now(UTC))
        self.folder = folder
        self.source = source
        self.metadata = folder / "metadata"
        self.metadata.mkdir()
        self.targets = folder / "targets"
        self.targets.mkdir()
        self.lies: dict[str, bytes] = {}
        self.requests: Counter[str] = Counter()
        self.address = ""
        self.publish = lambda: None
        self.environment: dict[str, str] = {}
        self.as_process = False
        self.said = ""

    def answer(self, path: str) -> bytes | None:
        name = path.removeprefix("/metadata/").removeprefix("/targets/")
        self.requests[name] += 1
        if name in self.lies:
            return self.lies[name]
        if path.startswith("/targets/"):
            folder, _, last = name.rpartition("/")
            return CONTENT if f"{folder}/{last.partition('.')[2]}" == TARGET else None
        return self.repository.files().get(name)

    def run(self, *words: str) -> int:
        """The tool's exit code: of a process of its own, or (most tests) of a run within this one."""
        self.publish()
        arguments = ["--metadata-dir", str(self.metadata), *words]
        if self.as_process:
            ended = subprocess.run(
                [sys.executable, str(TOOL), *arguments],
                env={**os.environ, **self.environment},
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            self.said = ended.stderr
            return ended.returncode
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [str(TOOL), *arguments])
            patch.setattr("shoal_agent.updater.retained.ABSENT_S", 0.1)
            for name, value in self.environment.items():
                patch.setenv(name, value)
            try:
                runpy.run_path(str(TOOL))
            except SystemExit as left:
                return 1 if isinstance(left.code, str) else int(left.code or 0)
            finally:
                logging.disable(logging.NOTSET)
        raise AssertionError("it did not end")

    def init(self) -> int:
        return self.run("init", str(self.repository.root_file))

    def refresh(self) -> int:
        return self.run("--metadata-url", f"{self.address}/metadata", "refresh")

    def download(self, name: str = TARGET) -> int:
        return self.run(
            "--metadata-url", f"{self.address}/metadata", "--target-name", name,
            "--target-base-url", f"{self.address}/targets", "--target-dir", str(self.targets), "download",
        )  # fmt: skip

    def version(self, role: str) -> int:
        return Metadata.from_file(str(self.metadata / f"{role}.json")).signed.version

    def downloaded(self) -> list[bytes]:
        return [path.read_bytes() for path in self.targets.iterdir()]

    def list_target(self, *, content: bytes = CONTENT, length: int | None = None) -> None:
        """The group's role lists the target; with a length that is not its own."""
        target = TargetFile.from_data(TARGET, content, ["sha256"])
        target.length = target.length if length is None else length
        metadata = self.repository.repository.newest("group-oslo")
        metadata.signed.targets[TARGET] = target
        self.sign("group-oslo", metadata, self.repository.groups["oslo"])

    def sign(self, role: str, metadata, *keys: Key, version: int | None = None) -> None:
        """The next version of a role with these signatures, and what names it."""
        metadata.signed.version = version or metadata.signed.version + 1
        self.repository.forge(role, metadata, *keys)
        if role not in {"timestamp", "snapshot"}:
            self.repository.renew()

    def name_snapshot(self, metadata) -> None:
        """A snapshot as it is, named by the next timestamp."""
        self.repository.forge("snapshot", metadata, self.repository.online)
        timestamp = self.repository.repository.timestamp()
        timestamp.signed.snapshot_meta.version = metadata.signed.version
        self.sign("timestamp", timestamp, self.repository.online)


@contextmanager
def web(suite: Suite):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            data = suite.answer(self.path)
            if data is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        suite.address = f"http://127.0.0.1:{server.server_port}"
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def mqtt(suite: Suite):
    """The metadata is retained at a broker, as the controller keeps it there; targets stay on the web."""
    with embedded(BrokerConfig(host="127.0.0.1", port=0)) as broker:
        suite.environment = {"SHOAL_TUF_SOURCE": f"mqtt:127.0.0.1:{broker.port}:shoal"}
        told: dict[str, bytes] = {}
        topics = Topics()

        def publish() -> None:
            lies = {name: data for name, data in suite.lies.items() if "/" not in name}
            files = {**suite.repository.files(), **lies}
            changed = {name: data for name, data in files.items() if told.get(name) != data}
            gone = {name: b"" for name in told if name not in files}
            if changed or gone:
                retain(
                    broker.port,
                    {topics.update(name): data for name, data in {**changed, **gone}.items()},
                )
            told.clear()
            told.update(files)

        suite.publish = publish
        yield


def retain(port: int, messages: dict[str, bytes]) -> None:
    import paho.mqtt.client as paho  # noqa: PLC0415

    client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id="hub", protocol=paho.MQTTv5)
    client.connect("127.0.0.1", port)
    client.loop_start()
    for topic, data in messages.items():
        client.publish(topic, data, qos=1, retain=True).wait_for_publish(5)
    client.disconnect()
    client.loop_stop()


@pytest.fixture(params=["http", "mqtt"])
def suite(request, tmp_path):
    made = Suite(tmp_path, request.param)
    with web(made):
        if request.param == "mqtt":
            with mqtt(made):
                assert made.init() == 0
                yield made
        else:
            assert made.init() == 0
            yield made


def test_a_first_refresh_brings_every_top_level_role(suite):
    suite.as_process = True
    assert suite.refresh() == 0
    assert [suite.version(role) for role in ("root", "timestamp", "snapshot", "targets")] == [1] * 4
    if suite.source == "http":
        assert list(suite.requests) == [
            "2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json",
        ]  # fmt: skip


def test_what_goes_wrong_is_a_line_and_exit_code_1(suite):
    suite.as_process = True
    assert suite.run("init", "/nonexistent") == 1
    assert suite.said == "tuf-client: [Errno 2] No such file or directory: '/nonexistent'\n"


def test_a_target_is_downloaded_once_and_only_as_it_was_signed(suite):
    suite.as_process = True
    suite.list_target()
    assert suite.download() == 0
    assert suite.downloaded() == [CONTENT]
    prefixed = f"oslo/{hashlib.sha256(CONTENT).hexdigest()}.file.txt"
    assert suite.requests[prefixed] == 1
    assert suite.download() == 0
    assert suite.requests[prefixed] == 1
    assert suite.download("oslo/other.txt") == 1
    assert suite.download("bergen/file.txt") == 1


@pytest.mark.parametrize("lie", [b"", CONTENT[:-1], CONTENT + b"x", CONTENT[::-1]])
def test_another_content_is_no_target(suite, lie):
    suite.list_target()
    suite.lies[f"oslo/{hashlib.sha256(CONTENT).hexdigest()}.file.txt"] = lie
    assert suite.download() == 1
    assert suite.downloaded() == []


def test_a_wrong_length_is_no_target(suite):
    suite.list_target(length=len(CONTENT) - 1)
    assert suite.download() == 1
    assert suite.downloaded() == []


def test_an_older_timestamp_is_refused(suite):
    old = suite.repository.files()["timestamp.json"]
    suite.sign("timestamp", suite.repository.repository.timestamp(), suite.repository.online)
    assert suite.refresh() == 0
    suite.lies["timestamp.json"] = old
    assert suite.refresh() == 1
    assert suite.version("timestamp") == 2


def test_an_older_snapshot_is_refused(suite):
    suite.list_target()
    assert suite.refresh() == 0
    timestamp = suite.repository.repository.timestamp()
    timestamp.signed.snapshot_meta.version = 1
    suite.sign("timestamp", timestamp, suite.repository.online)
    assert suite.refresh() == 1
    assert suite.version("snapshot") == 2


def test_an_older_targets_is_refused(suite):
    targets = suite.repository.repository.targets()
    suite.sign("targets", targets, suite.repository.targets)
    assert suite.refresh() == 0
    snapshot = suite.repository.repository.snapshot()
    snapshot.signed.version += 1
    snapshot.signed.meta["targets.json"].version = 1
    suite.name_snapshot(snapshot)
    assert suite.refresh() == 1
    assert suite.version("targets") == 2


def test_versions_start_anew_behind_a_rotation_of_the_online_key(suite):
    timestamp = suite.repository.repository.timestamp()
    suite.sign("timestamp", timestamp, suite.repository.online, version=99_999)
    assert suite.refresh() == 0
    suite.repository.rotate_online()
    timestamp = suite.repository.repository.timestamp()
    suite.sign("timestamp", timestamp, suite.repository.online, version=1)
    assert suite.refresh() == 0
    assert suite.version("timestamp") == 1


def test_a_mix_of_snapshot_and_targets_is_refused(suite):
    assert suite.refresh() == 0
    suite.sign("targets", suite.repository.repository.targets(), suite.repository.targets)
    suite.lies["2.targets.json"] = suite.repository.files()["1.targets.json"]
    assert suite.refresh() == 1
    assert suite.version("targets") == 1


@pytest.mark.parametrize("signatures", [[], [0], [0, 0], ["stranger", 0]])
def test_a_root_with_too_few_signatures_is_refused(suite, signatures):
    assert suite.refresh() == 0
    root = suite.repository.repository.root()
    root.signed.version += 1
    keys = [Key() if one == "stranger" else suite.repository.roots[one] for one in signatures]
    suite.repository.forge("root", root, *keys)
    assert suite.refresh() == 1
    assert suite.version("root") == 1


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "group-oslo"])
def test_a_role_signed_by_a_stranger_is_refused(suite, role):
    suite.list_target()
    assert suite.download() == 0
    metadata = (
        suite.repository.repository.timestamp()
        if role == "timestamp"
        else suite.repository.repository.newest(role)
    )
    suite.sign(role, metadata, Key())
    if role == "snapshot":
        timestamp = suite.repository.repository.timestamp()
        timestamp.signed.snapshot_meta.version = metadata.signed.version
        suite.sign("timestamp", timestamp, suite.repository.online)
    assert suite.download() == 1


def test_every_root_key_is_rotated_one_after_the_other(suite):
    for _ in range(3):
        suite.repository.rotate_root()
        suite.repository.roots = [*suite.repository.roots[1:], suite.repository.roots[0]]
    assert suite.refresh() == 0
    assert suite.version("root") == 4


def test_a_gap_in_the_chain_of_roots_ends_it(suite):
    suite.repository.rotate_root()
    suite.repository.rotate_root()
    (suite.repository.repository.directory / "2.root.json").unlink()
    assert suite.refresh() == 0
    assert suite.version("root") == 1


def test_a_new_root_without_the_old_keys_is_refused(suite):
    root = suite.repository.repository.root()
    stranger = SignedRepository(suite.folder / "other", now=suite.repository.now)
    other = stranger.repository.root()
    other.signed.version = root.signed.version + 1
    suite.repository.forge("root", other, *stranger.roots)
    assert suite.refresh() == 1
    assert suite.version("root") == 1


def test_endless_metadata_ends(suite):
    suite.lies["1.snapshot.json"] = b" " * 200_000
    if suite.source == "mqtt":
        suite.lies["1.snapshot.json"] = b" " * 90_000
    assert suite.refresh() == 1
    assert not (suite.metadata / "snapshot.json").exists()


@pytest.mark.parametrize("garbage", [b"{}", b"[]", b"\xff\xfe", b"[" * 4000, b'{"signed": 1}'])
@pytest.mark.parametrize("name", ["timestamp.json", "1.snapshot.json", "2.root.json"])
def test_garbage_is_refused_without_a_trace(suite, name, garbage):
    suite.lies[name] = garbage
    assert suite.refresh() == 1


def test_a_root_that_was_changed_at_the_first_look_asks_nobody(suite):
    path = suite.metadata / "trusted_root"
    path.write_bytes(path.read_bytes().replace(b'"version":1', b'"version":2'))
    assert suite.refresh() == 1
    assert suite.requests == Counter()


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets", "group-oslo"])
def test_what_has_run_out_is_refused(suite, role):
    suite.list_target()
    metadata = (
        suite.repository.repository.timestamp()
        if role == "timestamp"
        else suite.repository.repository.newest(role)
    )
    keys = {
        "root": suite.repository.roots,
        "targets": [suite.repository.targets],
        "group-oslo": [suite.repository.groups["oslo"]],
    }.get(role, [suite.repository.online])
    metadata.signed.expires = ceremony.in_days(-1, now=suite.repository.now)
    if role == "snapshot":
        metadata.signed.version += 1
        suite.name_snapshot(metadata)
    else:
        suite.sign(role, metadata, *keys)
    assert suite.download() == 1
