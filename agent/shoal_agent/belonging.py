"""What the node knows of the fleet around it: its groups, whose commands it subscribes to, and its size.

Both come with the wanted state. It subscribes; what a group's command says is the inbox's business.
"""

from collections.abc import Awaitable, Callable

import structlog

from shoal_broker.bus_errors import BusError
from shoal_broker.session import Inbound, Session
from shoal_contract.errors import TopicError
from shoal_contract.messages import Wanted
from shoal_contract.topics import EVERYBODY, Topics

log = structlog.get_logger()


class Belonging:
    """The groups of this node. Everybody's group is subscribed to by whoever opens the session.

    Attributes:
        groups: the groups, without everybody's.
    """

    def __init__(
        self, session: Session, topics: Topics, receive: Callable[[Inbound], Awaitable[None]]
    ) -> None:
        self._session = session
        self._topics = topics
        self._receive = receive
        self.groups: frozenset[str] = frozenset()

    async def follow(self, wanted: Wanted) -> None:
        """Subscribe to what is new, leave what is not ours any more.

        A broker that refuses or does not answer is logged: the controller sends a group's command to
        each member that has not answered it.
        """
        self._session.backoff.fleet_nodes = wanted.fleet_nodes
        groups = frozenset(wanted.groups) - {EVERYBODY}
        for group in self.groups - groups:
            await self._session.unsubscribe(self._topics.group_commands(group))
        for group in groups - self.groups:
            try:
                await self._session.subscribe(self._topics.group_commands(group), self._receive)
            except (BusError, TopicError) as exc:
                log.warning("group not subscribed", group=group, reason=str(exc))
        self.groups = groups
