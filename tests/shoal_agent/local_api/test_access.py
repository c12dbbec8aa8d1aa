"""Who may ask the local API, and who may not although it can reach it."""

import httpx
import pytest

from shoal_agent.config import load
from shoal_agent.errors import ConfigError
from shoal_agent.local_api import access
from shoal_agent.local_api.access import Access, is_loopback, read_token
from shoal_agent.local_api.errors import ApiError

WORD = "a-word-of-some-length"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("192.168.1.2", False),
        ("board-1", False),
        ("127.0.0.1.example", False),
    ],
)
def test_loopback_is_what_only_this_machine_reaches(host, expected):
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("bound", "headers", "status"),
    [
        ("127.0.0.1", {b"host": b"localhost:9751"}, None),
        ("127.0.0.1", {b"host": b"[::1]:9751"}, None),
        ("127.0.0.1", {}, None),
        ("127.0.0.1", {b"host": b"evil.example"}, 403),
        ("127.0.0.1", {b"host": b"127.0.0.1.evil.example"}, 403),
        ("127.0.0.1", {b"host": b"localhost", b"origin": b"http://localhost"}, None),
        ("127.0.0.1", {b"host": b"localhost:1", b"origin": b"http://localhost:2"}, 403),
        ("127.0.0.1", {b"host": b"localhost", b"origin": b"null"}, 403),
        ("127.0.0.1", {b"host": b"localhost", b"origin": b"http://[evil"}, 403),
        ("127.0.0.1", {b"origin": b"http://evil.example"}, 403),
        ("0.0.0.0", {b"host": b"board-1:9751"}, None),
        ("0.0.0.0", {b"host": b"board-1", b"origin": b"http://evil.example"}, 403),
    ],
)
def test_a_page_of_elsewhere_may_not_ask(bound, headers, status):
    access = Access(host=bound, token=None)
    if status is None:
        access.check(headers, needs_token=True)
        return
    with pytest.raises(ApiError) as refused:
        access.check(headers, needs_token=True)
    assert refused.value.status == status


@pytest.mark.parametrize(
    "given", ["", WORD, f"Basic {WORD}", "Bearer", f"Bearer {WORD}x", f"Bearer {WORD[:-1]}"]
)
async def test_without_the_token_only_health_is_told(open_api, models, tmp_path, given):
    headers = {"Authorization": given} if given else {}
    async with (
        open_api(models, token_file=str(token_file(tmp_path))) as api,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{api.port}") as client,
    ):
        for path, status in (("/v2/health/live", 200), ("/v2/health/ready", 200), ("/v2", 401)):
            answer = await client.get(path, headers=headers)
            assert answer.status_code == status
        assert answer.headers["www-authenticate"] == "Bearer"
        right = {"Authorization": f"Bearer {WORD}"}
        assert (await client.get("/v2", headers=right)).status_code == 200


def token_file(folder, text=WORD + "\n", mode=0o600):
    path = folder / "token"
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_token_that_others_may_read_is_refused(tmp_path, mode):
    with pytest.raises(ConfigError, match="chmod 600"):
        read_token(token_file(tmp_path, mode=mode))


@pytest.mark.parametrize("text", ["", "short", "two words of some length", "ä" * 20, "a" * 15])
def test_a_token_that_is_none_is_refused(tmp_path, text):
    with pytest.raises(ConfigError, match="token_file"):
        read_token(token_file(tmp_path, text))


def test_a_token_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read_token(tmp_path / "absent")


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "board-1"])
def test_other_addresses_than_loopback_need_a_token(tmp_path, host):
    path = tmp_path / "agent.toml"
    table = f'[local_api]\nhost = "{host}"\n'
    board = 'node = "n"\nstate_dir = "s"\n[broker]\nhost = "localhost"\n'
    path.write_text(board + table)
    with pytest.raises(ConfigError, match="set token_file"):
        load(path)
    path.write_text(board + table + 'token_file = "t"\n')
    assert load(path).local_api.host == host


def test_a_credential_of_systemd_may_show_the_mask_of_its_access_list(tmp_path, monkeypatch):
    monkeypatch.setattr(access, "CREDENTIALS", tmp_path)
    assert read_token(token_file(tmp_path, mode=0o440)) == WORD
    with pytest.raises(ConfigError, match="chmod 600"):
        read_token(token_file(tmp_path, mode=0o444))
