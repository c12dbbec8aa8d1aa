"""A real mosquitto on loopback with exactly what `shoal-broker render` wrote, and certificates for it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.support.mosquitto import Mosquitto, free_port

from shoal_broker import cli

START_TIMEOUT_S = 5.0
CURVE = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


class Authority:
    """A certificate authority in a folder, by the openssl command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        _openssl(
            folder, "req", "-x509", *CURVE, "-keyout", "ca.key", "-out", "ca.crt", "-days", "2",
            "-subj", "/CN=authority of a test",
        )  # fmt: skip

    def issue(self, name: str, file: str | None = None, *, days: int = 2) -> tuple[str, str]:
        """The paths of certificate and key of the client called `name`; -1 days: expired."""
        stem = file or name
        certificate, key = self.folder / f"{stem}.crt", self.folder / f"{stem}.key"
        if not certificate.exists():
            _openssl(
                self.folder, "req", "-new", *CURVE, "-keyout", f"{stem}.key", "-out",
                f"{stem}.csr", "-subj", f"/CN={name}",
            )  # fmt: skip
            _openssl(
                self.folder, "x509", "-req", "-in", f"{stem}.csr", "-CA", "ca.crt", "-CAkey",
                "ca.key", "-CAcreateserial", "-out", f"{stem}.crt", "-days", str(days), "-extfile", "names",
            )  # fmt: skip
        return str(certificate), str(key)

    def revoke(self, name: str) -> str:
        """The path of a list of revoked certificates with that of `name` in it."""
        found = self.folder / f"{name}-revoked.pem"
        if not found.exists():
            (self.folder / "revoked.txt").touch()
            (self.folder / "ca.cnf").write_text(
                "[ca]\ndefault_ca = it\n[it]\ndatabase = revoked.txt\ndefault_md = sha256\n"
            )
            ca = ["ca", "-config", "ca.cnf", "-keyfile", "ca.key", "-cert", "ca.crt"]
            _openssl(self.folder, *ca, "-revoke", f"{name}.crt")
            _openssl(self.folder, *ca, "-gencrl", "-crldays", "2", "-out", found.name)
        return str(found)


class RenderedMosquitto:
    """Rendered once, started as often as a test wants."""

    def __init__(self, folder: Path, authority: Authority, *arguments: str) -> None:
        self.folder = folder
        self.port = free_port()
        authority.issue("broker")
        (folder / "data").mkdir(parents=True)
        code = cli.run(
            [
                "render", "mosquitto", "--out", str(folder), "--install-dir", str(folder),
                "--certs-dir", str(authority.folder), "--data-dir", str(folder / "data"),
                "--bind", "127.0.0.1", "--port", str(self.port), *arguments,
            ]
        )  # fmt: skip
        assert code == 0
        self.log: list[str] = []
        self._process: subprocess.Popen[str] | None = None

    @property
    def database(self) -> Path:
        return self.folder / "data" / "mosquitto.db"

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Started and listening; ended by SIGTERM unless it was killed before."""
        program = Mosquitto.found()
        assert program is not None
        config = self.folder / "mosquitto.conf"
        if os.geteuid() == 0:
            # Else it becomes the user mosquitto, who may not look into a folder of a test.
            config = self.folder / "as-root.conf"
            config.write_text((self.folder / "mosquitto.conf").read_text() + "user root\n")
        ready = threading.Event()
        process = subprocess.Popen([program, "-c", str(config)], stderr=subprocess.PIPE, text=True)
        self._process = process

        def follow() -> None:
            assert process.stderr is not None
            for line in process.stderr:
                self.log.append(line.rstrip())
                if line.rstrip().endswith(" running"):
                    ready.set()

        follower = threading.Thread(target=follow)
        follower.start()
        try:
            assert ready.wait(START_TIMEOUT_S), "\n".join(self.log)
            yield
        finally:
            process.terminate()
            process.wait(START_TIMEOUT_S)
            follower.join()
            assert process.stderr is not None
            process.stderr.close()

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL, and gone."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(START_TIMEOUT_S)


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=20)
