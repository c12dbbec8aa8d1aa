"""[access] of the broker's configuration: who is what, and rules beside the table of topics. Pure.

`access` compiles them.
"""

from collections import Counter
from enum import StrEnum
from typing import Final, Literal

from shoal_broker.bus_errors import TopicError
from shoal_broker.errors import ConfigError
from shoal_broker.topic_filter import SHARE_PREFIX, check_filter
from shoal_contract import toml
from shoal_contract.access import Role
from shoal_contract.errors import TopicError as ContractTopicError
from shoal_contract.topics import Topics, check_node_id

DEFAULT_CONTROLLER: Final = "shoal-controller"
OWN: Final = "%u"
"""The level of a filter that stands for the identity."""
EVERYBODY: Final = "*"


class Policy(StrEnum):
    """Whose rules say which topics an authenticated client may use."""

    TABLE = "table"
    """The table of topics of Shoal and `rules`."""
    RULES = "rules"
    """`rules` alone."""
    OPEN = "open"
    """None: every client may use every topic."""


class Rule(toml.Table, frozen=True, kw_only=True):
    """[[access.rule]]: `user` "*" is every authenticated client, the level `%u` in `topic` its name."""

    topic: str
    access: Literal["read", "write", "readwrite"]
    user: str = EVERYBODY


class Site(toml.Table, frozen=True, kw_only=True):
    """[[access.site]]: a bridged broker that speaks for these nodes; none named: for every one."""

    name: str
    nodes: tuple[str, ...] = ()


class AccessRules(toml.Table, frozen=True, kw_only=True):
    """[access]: who is what. Whoever is authenticated and not named is a node."""

    policy: Policy = Policy.TABLE
    root: str = "shoal"
    controllers: tuple[str, ...] = (DEFAULT_CONTROLLER,)
    operators: tuple[str, ...] = ()
    observers: tuple[str, ...] = ()
    doors: tuple[str, ...] = ()
    banned: tuple[str, ...] = ()
    """May not connect, whatever else is said of them."""
    site: tuple[Site, ...] = ()
    rule: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        try:
            Topics(self.root)
            for site in self.site:
                for node in site.nodes:
                    check_node_id(node)
        except ContractTopicError as exc:
            raise ConfigError(f"[access] {exc}") from exc
        for rule in self.rule:
            _check_topic(rule.topic)
        named = [name for names in self.by_role().values() for name in names]
        named += [site.name for site in self.site]
        twice = [name for name, count in Counter(named).items() if count > 1]
        if twice:
            raise ConfigError(f"[access] {twice[0]} is named twice: a client has one role")

    def by_role(self) -> dict[Role, tuple[str, ...]]:
        """The names of every role but the nodes'."""
        return {
            Role.CONTROLLER: self.controllers,
            Role.OPERATOR: self.operators,
            Role.OBSERVER: self.observers,
            Role.DOOR: self.doors,
        }


def _check_topic(topic_filter: str) -> None:
    try:
        check_filter(topic_filter)
    except TopicError as exc:
        raise ConfigError(f"[[access.rule]] topic {exc}") from exc
    if topic_filter.startswith(SHARE_PREFIX):
        raise ConfigError(f"[[access.rule]] topic {topic_filter!r}: leave out $share/NAME/")
    if any(OWN in level and level != OWN for level in topic_filter.split("/")):
        raise ConfigError(f"[[access.rule]] topic {topic_filter!r}: {OWN} is a level of its own")
