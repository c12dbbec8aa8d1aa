"""What the child that checks a release's files says to the agent."""

import msgspec


class Verdict(msgspec.Struct, frozen=True):
    """`reason` "": nothing speaks against trying the release."""

    reason: str
