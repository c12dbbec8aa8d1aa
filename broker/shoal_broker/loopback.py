"""Whether an address is of this machine alone, and what may be said to others in the clear. Pure."""

import ipaddress

from shoal_broker.bus_errors import PlaintextError


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`. Names but localhost are taken for reachable."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_encrypted(host: str, *, has_tls: bool, plaintext: bool, say: str) -> None:
    """Raise PlaintextError where a plain connection would leave this machine and nobody allowed it.

    `say` is how somebody does: for the message.
    """
    if not has_tls and not plaintext and not is_loopback(host):
        raise PlaintextError(
            f"the broker {host} is another machine, and nothing would be encrypted on the way: {say}"
        )
