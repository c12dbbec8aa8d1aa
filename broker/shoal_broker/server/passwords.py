"""The password file: `user:scrypt$N$r$p$salt$hash` a line. Read, checked against, and written.

Checking costs 16 MiB and some 50 ms on purpose: call it in a thread.
"""

import base64
import binascii
import hashlib
import hmac
import secrets
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from shoal_broker.durable import write_durably
from shoal_broker.errors import PasswordFileError

# OWASP's password storage advice, the smallest memory it allows for one pass on a small gateway.
COST, BLOCK_SIZE, PARALLEL = 1 << 14, 8, 1
SALT_BYTES, HASH_BYTES = 16, 32
LARGEST_COST, LARGEST_BLOCK_SIZE, LARGEST_PARALLEL = 1 << 18, 16, 16
LARGEST_FILE_BYTES = 16 << 20
_FIELDS = 6


@dataclass(frozen=True, slots=True)
class _Hash:
    cost: int
    block_size: int
    parallel: int
    salt: bytes
    digest: bytes

    def fits(self, password: bytes) -> bool:
        digest = hashlib.scrypt(
            password,
            salt=self.salt,
            n=self.cost,
            r=self.block_size,
            p=self.parallel,
            maxmem=_memory_bytes(self.cost, self.block_size, self.parallel),
            dklen=len(self.digest),
        )
        return hmac.compare_digest(digest, self.digest)


class Passwords:
    """The users of one password file, as it was when read."""

    def __init__(self, users: dict[str, _Hash]) -> None:
        self._users = users
        self._nobody = _hash(secrets.token_bytes(SALT_BYTES))
        # A fleet that reconnects at once would wait for its turns at scrypt; who was right a moment
        # ago is recognised by a keyed hash that lives only in this process.
        self._key = secrets.token_bytes(32)
        self._recognised: dict[str, bytes] = {}
        self._lock = threading.Lock()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises PasswordFileError, naming the line."""
        try:
            if path.stat().st_size > LARGEST_FILE_BYTES:
                raise PasswordFileError(f"{path} is too large for a password file", path=str(path))
            text = path.read_text(encoding="utf-8")
        except OSError as exc:
            raise PasswordFileError(
                f"cannot read the password file {path}: {exc.strerror}", path=str(path)
            ) from exc
        except UnicodeDecodeError as exc:
            raise PasswordFileError(f"{path} is not a password file", path=str(path)) from exc
        users: dict[str, _Hash] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            if not line or line.startswith("#"):
                continue
            user, _, hashed = line.rpartition(":")
            parsed = _parse(hashed)
            if not user or parsed is None:
                raise PasswordFileError(
                    f"{path}, line {number}: not `user:hash`; "
                    f"make it with `shoal-broker passwd {path} USER`",
                    path=str(path),
                    line=number,
                )
            users[user] = parsed
        return cls(users)

    def __contains__(self, user: str) -> bool:
        """Whether there is such a user."""
        return user in self._users

    def recognises(self, user: str, password: bytes) -> bool:
        """Whether it was right a moment ago. Costs next to nothing."""
        with self._lock:
            recognised = self._recognised.get(user)
        return recognised is not None and hmac.compare_digest(
            recognised, self._seen(user, password)
        )

    def verify(self, user: str, password: bytes) -> bool:
        """Whether this is the password of `user`. Takes as long for a user that does not exist."""
        if self.recognises(user, password):
            return True
        known = self._users.get(user)
        if known is None:
            self._nobody.fits(password)
            return False
        if not known.fits(password):
            return False
        with self._lock:
            self._recognised[user] = self._seen(user, password)
        return True

    def _seen(self, user: str, password: bytes) -> bytes:
        return hmac.digest(self._key, user.encode() + b"\0" + password, "sha256")


def set_password(path: Path, user: str, password: str) -> bool:
    """Add `user` to the file or change its password; returns whether the user is new.

    The file is replaced as a whole and is readable by its owner only. Raises PasswordFileError.
    """
    if not user or ":" in user or user.startswith("#") or not user.isprintable():
        raise PasswordFileError(
            f"{user!r} is no user name: no colon, no # at the start, printable", path=str(path)
        )
    lines: list[str] = []
    try:
        if path.exists():
            Passwords.read(path)
            lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as exc:
        raise PasswordFileError(f"cannot read {path}: {exc.strerror}", path=str(path)) from exc
    kept = [line for line in lines if line.rpartition(":")[0] != user]
    kept.append(f"{user}:{_written(_hash(password.encode()))}")
    try:
        write_durably(path, ("\n".join(kept) + "\n").encode())
    except OSError as exc:
        raise PasswordFileError(f"cannot write {path}: {exc.strerror}", path=str(path)) from exc
    return len(kept) > len(lines)


def _hash(password: bytes) -> _Hash:
    salt = secrets.token_bytes(SALT_BYTES)
    digest = hashlib.scrypt(
        password,
        salt=salt,
        n=COST,
        r=BLOCK_SIZE,
        p=PARALLEL,
        maxmem=_memory_bytes(COST, BLOCK_SIZE, PARALLEL),
        dklen=HASH_BYTES,
    )
    return _Hash(COST, BLOCK_SIZE, PARALLEL, salt, digest)


def _memory_bytes(cost: int, block_size: int, parallel: int) -> int:
    """What scrypt may take: with less it raises, whatever the password."""
    return 128 * block_size * (cost + parallel + 4) + 4096


def _written(hashed: _Hash) -> str:
    salt, digest = (base64.b64encode(part).decode() for part in (hashed.salt, hashed.digest))
    return f"scrypt${hashed.cost}${hashed.block_size}${hashed.parallel}${salt}${digest}"


def _parse(text: str) -> _Hash | None:
    fields = text.split("$")
    if len(fields) != _FIELDS or fields[0] != "scrypt":
        return None
    try:
        cost, block_size, parallel = (int(field) for field in fields[1:4])
        salt, digest = (base64.b64decode(field, validate=True) for field in fields[4:])
    except (ValueError, binascii.Error):
        return None
    if not (1 < cost <= LARGEST_COST and cost & (cost - 1) == 0):
        return None
    if not (0 < block_size <= LARGEST_BLOCK_SIZE and 0 < parallel <= LARGEST_PARALLEL):
        return None
    # RFC 7914, 2: beyond that scrypt itself refuses, at the first login.
    if cost >= 1 << (16 * block_size):
        return None
    if len(salt) < SALT_BYTES or len(digest) != HASH_BYTES:
        return None
    return _Hash(cost, block_size, parallel, salt, digest)
