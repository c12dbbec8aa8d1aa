"""The password file: written whole, read strictly, checked."""

import base64

import pytest

from shoal_broker.errors import PasswordFileError
from shoal_broker.server.passwords import Passwords, set_password


def test_a_password_that_was_set_is_the_only_one_that_fits(tmp_path):
    path = tmp_path / "users"
    assert set_password(path, "gateway-1", "s3cret ü")
    users = Passwords.read(path)
    assert users.verify("gateway-1", "s3cret ü".encode())
    assert users.verify("gateway-1", "s3cret ü".encode()), "the second time it is recognised"
    assert not users.verify("gateway-1", b"s3cret")
    assert not users.verify("nobody", b"s3cret")
    assert path.stat().st_mode & 0o777 == 0o600
    assert "s3cret" not in path.read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["users"]


def test_setting_again_replaces_and_leaves_the_others(tmp_path):
    path = tmp_path / "users"
    set_password(path, "a", "1")
    set_password(path, "b", "2")
    assert not set_password(path, "a", "3")
    users = Passwords.read(path)
    assert not users.verify("a", b"1")
    assert users.verify("a", b"3")
    assert users.verify("b", b"2")


def test_comments_and_empty_lines_are_allowed(tmp_path):
    path = tmp_path / "users"
    set_password(path, "a", "1")
    path.write_text("# who may come in\n\n" + path.read_text())
    assert Passwords.read(path).verify("a", b"1")


@pytest.mark.parametrize(
    "line",
    [
        "a",
        "a:plain",
        ":scrypt$16384$8$1$AAAAAAAAAAAAAAAAAAAAAA==$AAAA",
        "a:scrypt$16384$8$1$AAAAAAAAAAAAAAAAAAAAAA==$AAAA",
        "a:scrypt$16383$8$1$AAAAAAAAAAAAAAAAAAAAAA==$" + "A" * 43 + "=",
        "a:scrypt$1073741824$8$1$AAAAAAAAAAAAAAAAAAAAAA==$" + "A" * 43 + "=",
        "a:scrypt$131072$1$1$AAAAAAAAAAAAAAAAAAAAAA==$" + "A" * 43 + "=",
        "a:scrypt$x$8$1$AAAAAAAAAAAAAAAAAAAAAA==$" + "A" * 43 + "=",
        "a:scrypt$16384$8$1$!$" + "A" * 43 + "=",
    ],
)
def test_a_wrong_line_is_named(tmp_path, line):
    path = tmp_path / "users"
    path.write_text(f"# first\n{line}\n")
    with pytest.raises(PasswordFileError) as caught:
        Passwords.read(path)
    assert caught.value.line == 2
    assert "line 2" in str(caught.value)


def test_a_file_that_is_not_there_or_no_text_is_one_clear_error(tmp_path):
    with pytest.raises(PasswordFileError, match="cannot read"):
        Passwords.read(tmp_path / "none")
    (tmp_path / "bad").write_bytes(b"\xff\xfe")
    with pytest.raises(PasswordFileError, match="not a password file"):
        Passwords.read(tmp_path / "bad")


@pytest.mark.parametrize("user", ["", "a:b", "#a", "a\nb"])
def test_a_user_name_that_would_break_the_file_is_refused(tmp_path, user):
    with pytest.raises(PasswordFileError):
        set_password(tmp_path / "users", user, "x")
    assert not (tmp_path / "users").exists()


def test_a_folder_that_is_not_there_is_one_clear_error(tmp_path):
    with pytest.raises(PasswordFileError, match="cannot write"):
        set_password(tmp_path / "no" / "users", "a", "x")


def test_a_hash_of_unusual_cost_is_checked_like_any_other(tmp_path):
    """scrypt raises when it may take too little memory: that must not reach the broker's tasks."""
    path = tmp_path / "users"
    salt, digest = (base64.b64encode(bytes(size)).decode() for size in (16, 32))
    path.write_text(f"a:scrypt$2$1$16${salt}${digest}\n")
    assert not Passwords.read(path).verify("a", b"x")
