"""`python -m shoal_agent.self_update`."""

from shoal_agent.self_update.cli import main

main()
