"""Runs shoal-agent with one more operation, `tally`: a visible effect that must not happen twice.

Usage: tallying_agent.py TALLY_FILE -- AGENT ARGUMENTS. `tally number=N` appends the line N to the file; it is
declared as not repeatable.
"""

import os
import sys

from shoal_agent import cli
from shoal_agent.built_in import BuiltIn
from shoal_contract.operations import Argument, Operation

TALLY = Operation(
    "tally",
    "write a number down",
    "operate",
    (Argument("number", "int", "which"),),
    repeatable=False,
)


def main() -> None:
    path = sys.argv[1]
    sys.argv = ["shoal-agent", *sys.argv[3:]]
    declare = BuiltIn.declare

    async def tally(arguments, _tell):
        # One write of one line: a kill leaves all of it or nothing.
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, b"%d\n" % arguments["number"])
        finally:
            os.close(file)
        return {}

    def declare_more(self, **hooks):
        table = declare(self, **hooks)
        table.add(TALLY, tally)
        return table

    BuiltIn.declare = declare_more
    cli.main()


main()
