"""`python -m shoal_firmware_bridge` is `shoal-bridge`."""

from shoal_firmware_bridge.cli import main

main()
