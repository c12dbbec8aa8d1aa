"""Which sources of chunks a board has, before and after the broker, as its configuration says."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from shoal_agent.config import AgentConfig
from shoal_agent.sources.port import ChunkSource

if TYPE_CHECKING:
    from shoal_agent.peers.client import PeerClient
    from shoal_agent.peers.discovery import Discovery


class Choice(NamedTuple):
    """Sources in the order in which they are asked."""

    before: list[ChunkSource]
    after: list[ChunkSource]


def choose(config: AgentConfig, client: PeerClient, discovery: Discovery | None) -> Choice:
    """Neighbours where there are any, web servers where some are named; each is imported only then."""
    chosen = Choice([], [])
    into = chosen.before
    for name in config.updates.sources:
        match name:
            case "broker":
                into = chosen.after
            case "peers" if discovery is not None:
                from shoal_agent.sources.neighbours import Neighbours  # noqa: PLC0415

                into.append(Neighbours(client, discovery.sharing))
            case "https" if config.updates.https:
                from shoal_agent.sources.web import Web  # noqa: PLC0415

                into.append(Web(config.updates.https, config.updates.https_ca_file))
            case _:
                pass
    return chosen
