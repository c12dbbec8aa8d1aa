"""A real PostgreSQL for tests: started on first use, on a socket only, gone with the last test."""

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

TIMEOUT_S = 60
USER = "postgres"


def programs() -> Path | None:
    """Where Debian, or the PATH, has initdb and postgres."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: path.parts)
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return None if on_path is None else Path(on_path).resolve().parent


class Postgres:
    """A running server."""

    def __init__(self, folder: Path, bin_dir: Path) -> None:
        self.folder = folder
        self._bin_dir = bin_dir

    def new(self) -> str:
        """The URL of an empty database."""
        name = f"shoal_{uuid.uuid4().hex[:12]}"
        self.sql(f"CREATE DATABASE {name}", "postgres")
        return f"postgresql+asyncpg://{USER}@/{name}?host={self.folder}"

    def sql(self, statement: str, database: str) -> str:
        """What psql prints."""
        return self.run(
            "psql", "-XAtq", "-h", str(self.folder), "-U", USER, "-c", statement, database
        )

    def run(self, program: str, *arguments: str) -> str:
        """The output of a program of PostgreSQL, which does not run as root."""
        command = [*unprivileged(), str(self._bin_dir / program), *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, cwd="/"
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()


def unprivileged() -> list[str]:
    return ["runuser", "-u", USER, "--"] if os.geteuid() == 0 else []


@contextmanager
def running_postgres(*, address: str = "", network: str = "") -> Iterator[Postgres]:
    """A server with nothing in it; skips where there is none.

    Args:
        address: also listen there, on the port of PostgreSQL.
        network: whose addresses may come in there, with a password.
    """
    bin_dir = programs()
    if bin_dir is None:
        pytest.skip("needs PostgreSQL (apt-get install postgresql)")
    # Not below pytest's folder: others may not enter that, and a socket's path has 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="shoal-pg-"))
    server = Postgres(folder, bin_dir)
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, USER)
            folder.chmod(0o755)
        data = str(folder / "data")
        server.run("initdb", "-D", data, "-U", USER, "-A", "trust", "--no-sync", "-E", "UTF8")
        if network:
            access = Path(data) / "pg_hba.conf"
            access.write_text(access.read_text() + f"host all all {network} scram-sha-256\n")
        options = f"-c listen_addresses='{address}' -k {folder} -c fsync=off -c max_connections=200"
        server.run("pg_ctl", "-D", data, "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield server
        finally:
            server.run("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
