"""`python -m shoal_broker` is `shoal-broker`."""

from shoal_broker.cli import main

main()
