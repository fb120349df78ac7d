"""Topics as compactors see them. Pure."""

from __future__ import annotations

__all__ = ("lake_topic",)

import uuid

from penstock.lake.configs import TableConfigs
from penstock.metadata.topics import TopicState
from penstock.spi.lake import LakeTopic


def lake_topic(state: TopicState, configs: TableConfigs, table: str = "") -> LakeTopic:
    """The topic, with the name of its ``table`` if that isn't what the configs say."""
    return LakeTopic(
        name=state.name,
        topic_id=str(uuid.UUID(bytes=state.topic_id)),
        partition_count=state.partition_count,
        configs=configs.own,
        table=table,
    )
