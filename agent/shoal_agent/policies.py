"""The operations by which a node learns whom else to obey: `trust.policy`, `trust.show`.

A policy is signed by itself, whoever carries it here, for this node or one of its groups; it counts when its
signer may delegate, and when it is newer than that signer's last one. So it can be neither widened on its way
nor taken back by playing an old one.
"""

import asyncio
from typing import Any

from shoal_agent.belonging import Belonging
from shoal_agent.commands import Commands
from shoal_agent.errors import OperationError
from shoal_agent.journal import Journal
from shoal_agent.operations import Operations, Tell
from shoal_agent.trust import POLICY_OP, Trust
from shoal_contract import envelope
from shoal_contract.errors import ContractError
from shoal_contract.operations import Argument, Operation
from shoal_contract.topics import EVERYBODY, Topics

_DOCUMENT = Argument(
    "document", "any", "a signed policy", required=True, minimum=1, maximum=48 * 1024
)


class Policies:
    """Keeps the journal's policies and what they come to the same."""

    def __init__(
        self, *, journal: Journal, trust: Trust, topics: Topics, node: str, belonging: Belonging
    ) -> None:
        self._journal = journal
        self._trust = trust
        self._topics = topics
        self._node = node
        self._belonging = belonging
        self._turn = asyncio.Lock()
        self._commands: Commands | None = None

    async def restore(self) -> None:
        """What an earlier run was told holds again. To be awaited before the first message."""
        if self._trust.asks_for_signatures:
            self._trust.follow(await self._journal.policies())

    def declare(self, table: Operations) -> None:
        """Put the operations into the node's table."""
        table.add(Operation("trust.show", "who may command this node", "read"), self.show)
        table.add(Operation(POLICY_OP, "take a signed policy", "admin", (_DOCUMENT,)), self.take)

    def attach(self, commands: Commands) -> None:
        """Where the time is kept that a policy tells."""
        self._commands = commands

    async def take(self, arguments: dict[str, Any], _: Tell) -> object:
        """A policy came: it holds from now on, also after a power cut."""
        document = arguments["document"]
        if not isinstance(document, bytes):
            raise OperationError("trust.policy: document must be bytes")
        groups = (*sorted(self._belonging.groups), EVERYBODY)
        topics = [self._topics.commands(self._node), *map(self._topics.group_commands, groups)]
        async with self._turn:
            try:
                policy, signer = self._trust.open_policy(document, topics=topics)
            except ContractError as exc:
                raise OperationError(str(exc)) from exc
            held = self._trust.policies.get(signer)
            if held is not None and policy.version <= held.version:
                if policy != held:
                    raise OperationError(
                        f"version {policy.version} of this policy is not newer than {held.version}"
                    )
                return {"version": policy.version}
            floor_ms = policy.issued_ms if self._trust.is_root(signer) else None
            await self._journal.set_policy(signer, policy, clock_floor_ms=floor_ms)
            self._trust.follow({**self._trust.policies, signer: policy})
            if floor_ms is not None and self._commands is not None:
                self._commands.set_clock_floor(floor_ms)
        return {"version": policy.version}

    async def show(self, _arguments: dict[str, Any], _: Tell) -> object:
        """Whom this node obeys."""
        return {
            "signatures": self._trust.asks_for_signatures,
            "policies": [
                {
                    "signer": envelope.key_text(signer),
                    "version": policy.version,
                    "mandates": [
                        {
                            "name": mandate.name,
                            "key": envelope.key_text(mandate.key),
                            "ops": mandate.ops,
                            "groups": mandate.groups,
                            "may_delegate": mandate.may_delegate,
                            "until_ms": mandate.until_ms,
                        }
                        for mandate in policy.mandates
                    ],
                    "revoked": [envelope.key_text(key) for key in policy.revoked],
                    "approved": policy.approved,
                    "denied": policy.denied,
                }
                for signer, policy in self._trust.policies.items()
            ],
        }
