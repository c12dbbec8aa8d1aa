"""Runs shoal-agent and ends it with SIGKILL at one journal write of an update.

Usage: killed_agent.py NUMBER before|after -- AGENT ARGUMENTS. The writes are counted from 1 and are
those that an update makes: every recorded step, and the switch. Number 0 kills nothing.
"""

import os
import signal
import sys

from shoal_agent import cli
from shoal_agent.journal import Journal


def main() -> None:
    number, when = int(sys.argv[1]), sys.argv[2]
    sys.argv = ["shoal-agent", *sys.argv[4:]]
    seen = 0

    def killing(write):
        async def wrapped(*args, **kwargs):
            nonlocal seen
            seen += 1
            if seen == number and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            await write(*args, **kwargs)
            if seen == number and when == "after":
                os.kill(os.getpid(), signal.SIGKILL)

        return wrapped

    Journal.record_step = killing(Journal.record_step)
    Journal.set_serving = killing(Journal.set_serving)
    cli.main()


main()
