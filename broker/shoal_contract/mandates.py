"""Who may have a node do what, from the keys it was given and the policies that it was sent. Pure.

The keys of the configuration are *roots*: they may everything, and their policies count. A policy gives
mandates; the holder of one that may delegate gives mandates by a policy of its own, and whatever those say,
they reach no further than every mandate above them. A denial anywhere wins.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from shoal_contract.messages import Mandate, Policy

ANY: Final = "*"
MAX_DEPTH: Final = 4
"""So many mandates may stand one above the other."""
MAX_CHAINS: Final = 1024


@dataclass(frozen=True, slots=True)
class Chain:
    """How a key came to its mandate: every mandate from the root's policy down to its own."""

    mandates: tuple[Mandate, ...] = ()

    @property
    def may_delegate(self) -> bool:
        """Every one of them may."""
        return len(self.mandates) < MAX_DEPTH and all(m.may_delegate for m in self.mandates)

    def refusal(self, op: str, groups: frozenset[str], now_ms: int) -> str:
        """Why this operation may not be asked for, of a node or group of these groups; empty: it may."""
        for mandate in self.mandates:
            if mandate.until_ms and now_ms > mandate.until_ms:
                return f"the mandate of {mandate.name} has ended"
            if not includes(mandate.ops, op):
                return f"the mandate of {mandate.name} does not include {op}"
            if not reaches(mandate.groups, groups):
                return f"the mandate of {mandate.name} does not reach here"
        return ""


class Mandates:
    """What the roots and the newest policy of each signer come to.

    Args:
        roots: public keys.
        policies: by the key that signed them; those of keys that may not delegate have no effect.
    """

    def __init__(self, roots: Iterable[bytes], policies: Mapping[bytes, Policy]) -> None:
        self._chains: dict[bytes, list[Chain]] = {root: [Chain()] for root in roots}
        self._approved: list[list[str]] = []
        self._denied: list[str] = []
        self._roots = frozenset(self._chains)
        revoked = self._of_roots(policies)
        waiting = [(root, Chain(), policies.get(root), revoked) for root in self._chains]
        count = 0
        while waiting and count < MAX_CHAINS:
            _, above, policy, gone = waiting.pop()
            if policy is None:
                continue
            # A delegate takes back what it gave, and nothing else.
            gone = gone | frozenset(policy.revoked)
            for mandate in policy.mandates:
                if mandate.key in gone or mandate.key in self._roots:
                    continue
                count += 1
                chain = Chain((*above.mandates, mandate))
                self._chains.setdefault(mandate.key, []).append(chain)
                if chain.may_delegate and mandate.key not in {m.key for m in above.mandates}:
                    waiting.append((mandate.key, chain, policies.get(mandate.key), gone))

    def _of_roots(self, policies: Mapping[bytes, Policy]) -> frozenset[bytes]:
        """Only roots say what may run at all, and whose key is worth nothing any more."""
        revoked: set[bytes] = set()
        for root in self._roots:
            if (policy := policies.get(root)) is not None:
                self._approved.append(policy.approved)
                self._denied += policy.denied
                revoked |= set(policy.revoked)
        return frozenset(revoked - self._roots)

    @property
    def keys(self) -> tuple[bytes, ...]:
        """The keys whose signature counts for something."""
        return tuple(self._chains)

    def is_root(self, key: bytes) -> bool:
        """Whether the configuration names this key."""
        return key in self._roots

    def may_delegate(self, key: bytes) -> bool:
        """Whether a policy that this key signed has an effect."""
        return any(chain.may_delegate for chain in self._chains.get(key, ()))

    def refusal(self, key: bytes, op: str, *, groups: frozenset[str], now_ms: int) -> str:
        """Why the holder of the key may not have this operation done here; empty: it may.

        `groups`: of a command to the node itself all its groups, of a group's command that one.
        """
        if not self.approves(op):
            return f"{op} is not approved here"
        reasons = [chain.refusal(op, groups, now_ms) for chain in self._chains.get(key, ())]
        if not reasons:
            return "the key has no mandate here"
        return "" if "" in reasons else reasons[0]

    def approves(self, op: str) -> bool:
        """Whether this operation may run here at all, whoever asks."""
        return not includes(self._denied, op) and all(
            includes(approved, op) for approved in self._approved
        )


def includes(patterns: Iterable[str], name: str) -> bool:
    """Whether one of the patterns ("*", "device.*", "ping") stands for the name."""
    return any(
        pattern in (ANY, name) or (pattern.endswith(".*") and name.startswith(pattern[:-1]))
        for pattern in patterns
    )


def reaches(allowed: Iterable[str], groups: frozenset[str]) -> bool:
    """Whether one of these groups is allowed; "*" reaches nodes without any group too."""
    return any(name == ANY or name in groups for name in allowed)
