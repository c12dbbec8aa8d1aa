"""Whether the topics that a pipeline reads and writes are topics. Pure; the rest of it is the contract's."""

import re

from shoal_broker.bus_errors import TopicError
from shoal_broker.topic_filter import check_filter, check_topic, matches
from shoal_contract.pipelines import PipelineTable

# {1}: what stood in place of a wildcard.
_WILDCARD = re.compile(r"\{\d\}")


def check_topics(table: PipelineTable) -> None:
    """Raise TopicError unless it may subscribe and publish to what it names."""
    if table.topic is not None:
        check_filter(table.topic.filter)
    if table.publish is not None:
        topic = _WILDCARD.sub("x", table.publish.topic)
        check_topic(topic)
        if table.topic is not None and matches(table.topic.filter, topic):
            raise TopicError(
                f"[pipeline.publish] topic {table.publish.topic!r} would come back to its own pipeline"
            )
