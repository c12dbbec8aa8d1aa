"""What keeps the doctor from an answer, grouped by whose fault it is. No behaviour."""

from __future__ import annotations

from shoal_broker.bus_errors import BusError

# --- ours


class DoctorFileError(BusError):
    """A file that we were given cannot be used; the message names it and says why."""


# --- the broker's


class DoctorError(BusError):
    """A probe could not be carried out; the message says what the broker did not do."""


class RefusedError(DoctorError):
    """The broker answered no."""


class CutError(DoctorError):
    """The broker ended the connection instead of answering."""


class UnreachableError(DoctorError):
    """There is no broker that takes us."""


class BrokenOffError(UnreachableError):
    """The connection was made and ended without an answer."""
