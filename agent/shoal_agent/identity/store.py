"""Where a board keeps who it is: a directory for each issue, and a link to the one in use. Knows no X.509.

`identity/0001/` holds key.pem, cert.pem, ca.pem and facts.json; `identity/current` is a link to the newest; `next/` is the
key that asks for a certificate, until it has one. An issue gets its number when all of it is on the disk, and the link
is renamed over the old one: key and certificate change as one, and a kill at any moment leaves the old or the new.
"""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from shoal_broker.durable import remove_parts, sync_directory, write_durably
from shoal_broker.tls import TlsFiles

FOLDER: Final = "identity"
CURRENT: Final = "current"
KEY: Final = "key.pem"
CERTIFICATE: Final = "cert.pem"
AUTHORITY: Final = "ca.pem"
FACTS: Final = "facts.json"
MAX_FILE_BYTES: Final = 65536
KEPT: Final = 2
"""The one before stays: a connection that is being made may be reading it."""

_NEXT: Final = "next"
_NUMBER = re.compile(r"\d{4,9}")


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What others need to know of a certificate without reading it. `key`: sha256 of the public key, in hex."""

    node: str
    key: str
    not_before_ms: int
    not_after_ms: int


class IdentityStore:
    """The directory below a state directory. Everything in it blocks for as long as the disk does."""

    def __init__(self, state_dir: Path) -> None:
        self.folder = state_dir / FOLDER
        self.current = self.folder / CURRENT

    def facts(self) -> Facts | None:
        """Of the certificate in use; None: there is none that can be used."""
        return _facts_in(self.current)

    def tls_files(self, *, ca_file: str | None = None, server_name: str | None = None) -> TlsFiles:
        """The files in use, whichever these are at the time; `ca_file` instead of the fleet's own authority."""
        return TlsFiles(
            ca_file=ca_file or str(self.current / AUTHORITY),
            cert_file=str(self.current / CERTIFICATE),
            key_file=str(self.current / KEY),
            server_name=server_name,
        )

    def read(self, name: str) -> bytes | None:
        """A file of the issue in use; None without one."""
        return _read(self.current / name)

    # ------------------------------------------------------------------ for the one who changes it
    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the directory, and keep every other process from changing it meanwhile. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield

    def recover(self) -> None:
        """Finish what a kill has left half done. Raises OSError."""
        remove_parts(self.folder)
        if self.next_key() is not None:
            remove_parts(self.folder / _NEXT)
        issues = self._issues()
        if issues and self._in_use() != issues[-1].name:
            self._use(issues[-1].name)
        self._prune(issues)

    def next_key(self) -> bytes | None:
        """The key that asks."""
        return _read(self.folder / _NEXT / KEY)

    def keep_next_key(self, pem: bytes) -> None:
        """Remember a key before it asks: who asks again must ask with the same one. Raises OSError."""
        (self.folder / _NEXT).mkdir(exist_ok=True, mode=0o700)
        write_durably(self.folder / _NEXT / KEY, pem)
        sync_directory(self.folder)

    def forget_next_key(self) -> None:
        """That key is of no use. Raises OSError."""
        shutil.rmtree(self.folder / _NEXT, ignore_errors=True)
        sync_directory(self.folder)

    def adopt(self, certificate: bytes, authority: bytes, facts: Facts) -> None:
        """The key that asked has got its certificate: use both from now on. Raises OSError."""
        following = self.folder / _NEXT
        write_durably(following / CERTIFICATE, certificate)
        write_durably(following / AUTHORITY, authority)
        write_durably(following / FACTS, msgspec.json.encode(facts))
        issues = self._issues()
        number = f"{int(issues[-1].name) + 1 if issues else 1:04}"
        following.rename(self.folder / number)
        sync_directory(self.folder)
        self._use(number)
        self._prune(self._issues())

    def _use(self, number: str) -> None:
        link = self.folder / f".{CURRENT}.{secrets.token_hex(4)}.part"
        link.symlink_to(number)
        link.rename(self.current)
        sync_directory(self.folder)

    def _in_use(self) -> str | None:
        try:
            return str(self.current.readlink())
        except OSError:
            return None

    def _issues(self) -> list[Path]:
        """Those that are whole, the oldest first."""
        with contextlib.suppress(FileNotFoundError):
            found = [path for path in self.folder.iterdir() if _NUMBER.fullmatch(path.name)]
            return sorted(filter(_is_whole, found), key=lambda path: int(path.name))
        return []

    def _prune(self, issues: list[Path]) -> None:
        for path in issues[:-KEPT]:
            shutil.rmtree(path, ignore_errors=True)


def _is_whole(issue: Path) -> bool:
    return _facts_in(issue) is not None and all(
        _read(issue / name) for name in (KEY, CERTIFICATE, AUTHORITY)
    )


def _facts_in(issue: Path) -> Facts | None:
    data = _read(issue / FACTS)
    if data is None:
        return None
    try:
        return msgspec.json.decode(data, type=Facts)
    except msgspec.DecodeError:
        return None


def _read(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES)
    except OSError:
        return None
