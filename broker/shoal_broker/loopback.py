"""Whether an address is of this machine alone: what may be said there in the clear. Pure."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`. Names but localhost are taken for reachable."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
