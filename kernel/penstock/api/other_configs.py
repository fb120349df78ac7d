"""Configs of loggers, client metrics and groups, as Kafka describes them: here they have none of their own."""

from __future__ import annotations

__all__ = ("CLIENT_METRICS_CONFIGS", "GROUP_CONFIGS", "default_entry", "logger_levels")

import logging
from collections.abc import Iterator, Mapping
from typing import Final

from penstock.api.broker_configs import BrokerConfig
from penstock.log.topic_config import ConfigType
from penstock.wire.messages.describe_configs import DescribeConfigsResourceResult, DescribeConfigsSynonym

# DescribeConfigsResponse.ConfigSource
_SOURCE_DEFAULT: Final = 5

#: KIP-714. Nothing is subscribed to, whatever the name of the subscription.
CLIENT_METRICS_CONFIGS: Final[Mapping[str, BrokerConfig]] = {
    "interval.ms": BrokerConfig(ConfigType.INT, "300000", "How often clients push their metrics."),
    "match": BrokerConfig(ConfigType.LIST, "", "Which clients push metrics; empty for all."),
    "metrics": BrokerConfig(ConfigType.LIST, "", "Which metrics are pushed, by prefix; empty for none."),
}

#: KIP-848, KIP-932 and KIP-1071. Groups of those kinds aren't there, so all have the defaults.
GROUP_CONFIGS: Final[Mapping[str, BrokerConfig]] = {
    "consumer.heartbeat.interval.ms": BrokerConfig(
        ConfigType.INT, "5000", "How often members of a consumer group send heartbeats."
    ),
    "consumer.session.timeout.ms": BrokerConfig(
        ConfigType.INT, "45000", "A member of a consumer group that is silent for this long is out."
    ),
    "share.auto.offset.reset": BrokerConfig(ConfigType.STRING, "latest", "Where a share group begins."),
    "share.heartbeat.interval.ms": BrokerConfig(
        ConfigType.INT, "5000", "How often members of a share group send heartbeats."
    ),
    "share.isolation.level": BrokerConfig(
        ConfigType.STRING, "read_uncommitted", "Whether a share group sees records of open transactions."
    ),
    "share.record.lock.duration.ms": BrokerConfig(
        ConfigType.INT, "30000", "How long a member of a share group keeps a record to itself."
    ),
    "share.session.timeout.ms": BrokerConfig(
        ConfigType.INT, "45000", "A member of a share group that is silent for this long is out."
    ),
    "streams.heartbeat.interval.ms": BrokerConfig(
        ConfigType.INT, "5000", "How often members of a streams group send heartbeats."
    ),
    "streams.initial.rebalance.delay.ms": BrokerConfig(
        ConfigType.INT, "3000", "How long the first rebalance of a streams group waits for further members."
    ),
    "streams.num.standby.replicas": BrokerConfig(
        ConfigType.INT, "0", "Standby replicas of each task of a streams group."
    ),
    "streams.session.timeout.ms": BrokerConfig(
        ConfigType.INT, "45000", "A member of a streams group that is silent for this long is out."
    ),
}

#: Names of levels in Kafka, where they differ.
_LEVELS: Final = {"WARNING": "WARN", "CRITICAL": "FATAL", "NOTSET": "TRACE"}


def default_entry(
    name: str, config: BrokerConfig, *, with_synonyms: bool, with_doc: bool
) -> DescribeConfigsResourceResult:
    """A config that has its default."""
    own = DescribeConfigsSynonym(name=name, value=config.default, source=_SOURCE_DEFAULT)
    return DescribeConfigsResourceResult(
        name=name,
        value=config.default,
        config_source=_SOURCE_DEFAULT,
        synonyms=[own] if with_synonyms else [],
        config_type=config.type,
        documentation=config.doc if with_doc else None,
    )


def logger_levels() -> Iterator[tuple[str, str]]:
    """The broker's loggers with their levels, the root first, by name."""
    yield "root", _level(logging.root)
    for name, logger in sorted(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and name.partition(".")[0] == "penstock":
            yield name, _level(logger)


def _level(logger: logging.Logger) -> str:
    name = logging.getLevelName(logger.getEffectiveLevel())
    return _LEVELS.get(name, name)
