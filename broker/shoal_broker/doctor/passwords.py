"""Passwords come from files: never from the command line, where everybody on the machine sees them."""

from __future__ import annotations

from pathlib import Path

from shoal_broker.doctor.errors import DoctorFileError


def read_password(file: Path) -> str:
    """The first line. Raises DoctorFileError."""
    try:
        return file.read_text().partition("\n")[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as exc:
        raise DoctorFileError(f"cannot read the password file {file}: {exc}") from exc
