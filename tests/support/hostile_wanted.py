"""Whoever holds the broker tries to move a board: wanted states that were recorded, made up, or meant for others."""

import random
from collections import Counter

from shoal_agent.wanted import WantedState
from shoal_contract import messages
from shoal_contract.errors import ContractError
from shoal_contract.messages import Wanted
from shoal_contract.signatures import Signer
from shoal_contract.topics import Topics

TOPICS = Topics()
MINE = TOPICS.wanted("n1")
ROOT, HOLDER, STRANGER = (Signer(bytes([number]) * 32) for number in (1, 2, 9))
"""The controller, who has a mandate for everything, and who has none."""
ELSEWHERE = (TOPICS.wanted("n2"), TOPICS.wanted("n11"), TOPICS.commands("n1"), "other/n/n1/w", "")
NEWEST = 1_000


def wanted(revision: int, *groups: str) -> Wanted:
    return Wanted(revision, revision, [], list(groups))


def signed(message: Wanted, *, by: Signer = ROOT, topic: str = MINE) -> bytes:
    return by.sign(messages.encode(message), topic=topic)


TRUE = signed(wanted(NEWEST, "oven"))
"""What the board follows when the attacker begins."""


class Attacker:
    """Recorded everything that was ever wanted, and makes up the rest; all of it would put the board into "bath"."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)  # noqa: S311 - a test that can be repeated

    def later(self) -> Wanted:
        return wanted(NEWEST + self.draw.randrange(1, 1 << 40), "bath")

    def replayed(self) -> bytes:
        return signed(wanted(self.draw.randrange(NEWEST), "bath"))

    def of_another_node(self) -> bytes:
        return signed(self.later(), topic=self.draw.choice(ELSEWHERE))

    def unsigned(self) -> bytes:
        return messages.encode(self.later())

    def by_a_stranger(self) -> bytes:
        return signed(
            self.later(), by=self.draw.choice((STRANGER, Signer(self.draw.randbytes(32))))
        )

    def by_a_mandate(self) -> bytes:
        return signed(self.later(), by=HOLDER)

    def damaged(self) -> bytes:
        data = bytearray(signed(self.later()))
        data[self.draw.randrange(len(data))] ^= 1 << self.draw.randrange(8)
        return bytes(data)

    def envelope_of_a_command(self) -> bytes:
        command = messages.Command(self.draw.randbytes(8), "ping", {}, 1, 2)
        return ROOT.sign(messages.encode(command), topic=MINE)


KINDS = (
    Attacker.replayed,
    Attacker.of_another_node,
    Attacker.unsigned,
    Attacker.by_a_stranger,
    Attacker.by_a_mandate,
    Attacker.damaged,
    Attacker.envelope_of_a_command,
)


async def followed(state: WantedState, *, tries: int, seed: int = 7) -> Counter[str]:
    """How many of so many tries the board followed, by kind; `state` has to hold TRUE."""
    attacker, counts = Attacker(seed), Counter[str](dict.fromkeys((k.__name__ for k in KINDS), 0))
    for number in range(tries):
        kind = KINDS[number % len(KINDS)]
        try:
            taken = await state.take(kind(attacker))
        except ContractError:
            taken = None
        counts[kind.__name__] += taken is not None
    return counts
