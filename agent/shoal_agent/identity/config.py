"""`[enrolment]` of the agent's configuration: where certificates come from."""

from shoal_agent.errors import ConfigError, IdentityError
from shoal_agent.identity.address import DoorAddress
from shoal_contract import toml
from shoal_contract.enrolment import parse_sha256
from shoal_contract.errors import KeyTextError


class EnrolmentTable(toml.Table, frozen=True, kw_only=True):
    """[enrolment]: without the table the board gets no certificate by itself.

    `url`: the enrolment door. `ca_pin`: the sha256 of the authority's certificate, as `shoal ca init` printed it;
    or `ca_file`: the certificate itself. `token_file`: its first line; removed when it was used.
    """

    url: str
    ca_pin: str | None = None
    ca_file: str | None = None
    token_file: str | None = None


def check(table: EnrolmentTable) -> None:
    """Raise ConfigError, naming the key, unless its values can be used."""
    try:
        DoorAddress.parse(table.url)
    except IdentityError as exc:
        raise ConfigError(f"[enrolment] url: {exc}") from exc
    if table.ca_pin is None and table.ca_file is None:
        raise ConfigError("[enrolment] ca_pin or ca_file: which authority is to be trusted?")
    if table.ca_pin is not None:
        try:
            parse_sha256(table.ca_pin)
        except KeyTextError as exc:
            raise ConfigError(f"[enrolment] ca_pin: {exc}") from exc
