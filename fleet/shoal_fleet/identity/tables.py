"""The tables of enrolment in fleet.db. What the rows mean is the business of the modules that own them."""

from sqlalchemy import JSON, LargeBinary
from sqlalchemy.orm import Mapped, mapped_column

from shoal_fleet.tables import FleetBase


class TokenRow(FleetBase):
    """A one-time token by its sha256. `node` NULL: for any new node. `admitted`: its labels are given."""

    __tablename__ = "enrol_tokens"
    digest: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    node: Mapped[str | None]
    labels: Mapped[dict[str, str]] = mapped_column(JSON, default=dict)
    made_ms: Mapped[int]
    expires_ms: Mapped[int]
    used_ms: Mapped[int | None]
    used_by: Mapped[str | None] = mapped_column(index=True)
    revoked_ms: Mapped[int | None]
    admitted: Mapped[bool] = mapped_column(default=False)


class PendingRow(FleetBase):
    """A board that waits for a person: the id that it claims, and the sha256 of its public key."""

    __tablename__ = "pending_nodes"
    node: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    address: Mapped[str]
    hardware: Mapped[str]
    first_ms: Mapped[int]
    last_ms: Mapped[int]
    accepted_ms: Mapped[int | None]
    rejected_ms: Mapped[int | None]


class CertificateRow(FleetBase):
    """A certificate that was issued; `key` is the sha256 of `public_key` (SubjectPublicKeyInfo).

    `retired_ms`: a newer key of the node has proved itself. `revoked_ms`: it stands in the list of the revoked.
    """

    __tablename__ = "certificates"
    serial: Mapped[str] = mapped_column(primary_key=True)
    node: Mapped[str] = mapped_column(index=True)
    key: Mapped[bytes] = mapped_column(LargeBinary)
    public_key: Mapped[bytes] = mapped_column(LargeBinary)
    certificate: Mapped[bytes] = mapped_column(LargeBinary)
    how: Mapped[str]
    issued_ms: Mapped[int]
    not_after_ms: Mapped[int]
    retired_ms: Mapped[int | None]
    revoked_ms: Mapped[int | None] = mapped_column(index=True)


class RevocationRow(FleetBase):
    """A node that was revoked, until a person admits it anew."""

    __tablename__ = "revocations"
    node: Mapped[str] = mapped_column(primary_key=True)
    revoked_ms: Mapped[int]
    reason: Mapped[str]
