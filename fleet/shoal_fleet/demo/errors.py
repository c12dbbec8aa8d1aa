"""What can go wrong while a demo runs."""

from shoal_fleet.errors import FleetError


class DemoError(FleetError):
    """The demo cannot go on; the message says why and where to look."""
