"""The inventory plugin, run by ansible-inventory against a controller that answers as the real one."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.deploy import ansible_venv
from tests.deploy.ansible_venv import needs_ansible

pytestmark = needs_ansible

TOKEN = "the-token"


def node(name: str, *, online: bool = True, revoked: bool = False, **labels: str) -> dict:
    return {
        "node": name,
        "online": online,
        "labels": labels,
        "identity": {"revoked_ms": 1 if revoked else None},
        "reported": {
            "version": "0.1.0",
            "hardware": {"machine": "aarch64"},
            "models": [{"model": "digits", "version": "1.0.0"}],
        },
    }


class Controller(ThreadingHTTPServer):
    """What it answers to whom; `asked` are the paths."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.body: bytes = b"[]"
        self.asked: list[str] = []
        self.elsewhere: str | None = None


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server: Controller = self.server
        server.asked.append(self.path)
        known = self.headers["Authorization"] == f"Bearer {TOKEN}"
        self.send_response(302 if server.elsewhere else 200 if known else 401)
        if server.elsewhere:
            self.send_header("Location", server.elsewhere)
        self.end_headers()
        self.wfile.write(server.body if known else b"no")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("inventory")
    ansible_venv.install_collection(home)
    return home


@pytest.fixture
def controller() -> Iterator[Controller]:
    with Controller() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(home: Path, folder: Path, url: str, **more: Any):
    (folder / "token").write_text(TOKEN + "\n")
    source = folder / "oslo.shoal.yml"
    settings = {"plugin": "shoal.edge.fleet", "url": url, "state_dir": str(folder), **more}
    source.write_text(json.dumps(settings))
    return ansible_venv.run(
        *("ansible-inventory", "--inventory", source, "--list"),
        home=home,
        ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED="1",
        ANSIBLE_INVENTORY_ENABLED="shoal.edge.fleet",
    )


def listed(home: Path, folder: Path, controller: Controller, **more: Any) -> dict:
    done = ask(home, folder, f"http://127.0.0.1:{controller.server_port}", **more)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout, object_hook=spoken)


def spoken(value: dict) -> Any:
    """The fleet's words come marked as what is never taken for a template; here they are only compared."""
    return value["__ansible_unsafe"] if set(value) == {"__ansible_unsafe"} else value


def test_labels_are_groups_and_revoked_nodes_are_none(home, tmp_path, controller):
    controller.body = json.dumps(
        [
            node("press-4", site="oslo"),
            node("press-5", online=False, site="oslo", **{"hw class": "rpi-4"}),
            node("press-6", revoked=True, site="oslo"),
            {**node("press-7"), "reported": None, "identity": None},
        ]
    ).encode()
    found = listed(
        home,
        tmp_path,
        controller,
        compose={"ansible_host": "shoal_node ~ '.local'"},
        keyed_groups=[{"key": "shoal_hardware.machine", "prefix": "machine"}],
    )
    assert controller.asked == ["/api/nodes"]
    assert found["site_oslo"]["hosts"] == ["press-4", "press-5"]
    assert found["hw_class_rpi_4"]["hosts"] == ["press-5"]
    assert found["boards"]["hosts"] == ["press-4", "press-5", "press-7"]
    assert found["shoal_offline"]["hosts"] == ["press-5"]
    assert "press-4" in found["machine_aarch64"]["hosts"]
    about = found["_meta"]["hostvars"]["press-4"]
    assert about["ansible_host"] == "press-4.local"
    assert about["shoal_agent_node"] == "press-4"
    assert about["shoal_models"] == {"digits": "1.0.0"}


def test_a_token_that_is_not_the_controllers_is_said_in_one_line(home, tmp_path, controller):
    (tmp_path / "other").mkdir()
    controller.body = b"[]"
    url = f"http://127.0.0.1:{controller.server_port}"
    ask(home, tmp_path, url)
    (tmp_path / "token").write_text("another")
    done = ansible_venv.run(
        *("ansible-inventory", "--inventory", tmp_path / "oslo.shoal.yml", "--list"),
        home=home,
        ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED="1",
        ANSIBLE_INVENTORY_ENABLED="shoal.edge.fleet",
    )
    assert done.returncode != 0
    assert "401: the token is not the controller's" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_token_goes_nowhere_in_the_clear(home, tmp_path):
    done = ask(home, tmp_path, "http://controller.example.net:8750")
    assert done.returncode != 0
    assert "over https only" in done.stderr


def test_the_token_follows_no_detour(home, tmp_path, controller):
    controller.elsewhere = f"http://127.0.0.1:{controller.server_port}/elsewhere"
    done = ask(home, tmp_path, f"http://127.0.0.1:{controller.server_port}")
    assert done.returncode != 0
    assert controller.asked == ["/api/nodes"]


@pytest.mark.parametrize("body", [b"", b"{", b"5", b"[5]", b"[{}]", b"\xff", b"[" * 100_000])
def test_an_answer_that_is_none_is_refused(home, tmp_path, controller, body):
    controller.body = body
    done = ask(home, tmp_path, f"http://127.0.0.1:{controller.server_port}")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
