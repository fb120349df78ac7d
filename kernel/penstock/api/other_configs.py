"""Configs of loggers, client metrics and groups, as Kafka describes them: here they have none of their own."""

from __future__ import annotations

__all__ = ("CLIENT_METRICS_CONFIGS", "GROUP_CONFIGS", "default_entry", "logger_levels")

import logging
from collections.abc import Iterator, Mapping
from typing import Final

from penstock.api.broker_configs import BrokerConfig
from penstock.log.topic_config import ConfigType
from penstock.wire.messages.describe_configs import DescribeConfigsResourceResult

# DescribeConfigsResponse.ConfigSource
_SOURCE_DEFAULT: Final = 5

#: KIP-714. Nothing is subscribed to, whatever the name of the subscription.
CLIENT_METRICS_CONFIGS: Final[Mapping[str, BrokerConfig]] = {
    "interval.ms": BrokerConfig(ConfigType.INT, "300000"),
    "match": BrokerConfig(ConfigType.LIST, ""),
    "metrics": BrokerConfig(ConfigType.LIST, ""),
}

#: KIP-848, KIP-932 and KIP-1071. Groups of those kinds aren't there, so all have the defaults.
GROUP_CONFIGS: Final[Mapping[str, BrokerConfig]] = {
    "consumer.heartbeat.interval.ms": BrokerConfig(ConfigType.INT, "5000"),
    "consumer.session.timeout.ms": BrokerConfig(ConfigType.INT, "45000"),
    "share.auto.offset.reset": BrokerConfig(ConfigType.STRING, "latest"),
    "share.heartbeat.interval.ms": BrokerConfig(ConfigType.INT, "5000"),
    "share.isolation.level": BrokerConfig(ConfigType.STRING, "read_uncommitted"),
    "share.record.lock.duration.ms": BrokerConfig(ConfigType.INT, "30000"),
    "share.session.timeout.ms": BrokerConfig(ConfigType.INT, "45000"),
    "streams.heartbeat.interval.ms": BrokerConfig(ConfigType.INT, "5000"),
    "streams.initial.rebalance.delay.ms": BrokerConfig(ConfigType.INT, "3000"),
    "streams.num.standby.replicas": BrokerConfig(ConfigType.INT, "0"),
    "streams.session.timeout.ms": BrokerConfig(ConfigType.INT, "45000"),
}

#: Names of levels in Kafka, where they differ.
_LEVELS: Final = {"WARNING": "WARN", "CRITICAL": "FATAL", "NOTSET": "TRACE"}


def default_entry(name: str, config: BrokerConfig) -> DescribeConfigsResourceResult:
    """A config that has its default."""
    return DescribeConfigsResourceResult(
        name=name, value=config.default, config_source=_SOURCE_DEFAULT, synonyms=[], config_type=config.type
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
