"""The broker's own configs as Kafka's tools know them: their types and defaults, and what may be said of them, pure.

Settings are read at start. So there is no dynamic config to set, and deleting one changes nothing, which is a success
in Kafka too: ``kafka-reassign-partitions`` clears throttles that were never set, and ends with an error otherwise.
"""

from __future__ import annotations

__all__ = (
    "BROKER_CONFIGS",
    "SYNONYMS",
    "BrokerConfig",
    "broker_entry",
    "broker_synonyms",
    "check_broker_change",
)

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from penstock.api.errors import quoted
from penstock.log.errors import KafkaError
from penstock.log.topic_config import TOPIC_CONFIGS, ConfigType
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.describe_configs import DescribeConfigsResourceResult, DescribeConfigsSynonym
from penstock.wire.messages.incremental_alter_configs import AlterableConfig

# DescribeConfigsResponse.ConfigSource
_SOURCE_STATIC_BROKER: Final = 4
_SOURCE_DEFAULT: Final = 5
# AlterConfigOp.OpType
_SET: Final = 0
_DELETE: Final = 1
_APPEND: Final = 2
_SUBTRACT: Final = 3


class BrokerConfig(NamedTuple):
    """Type and default of a broker config in Kafka, None where it has no default; and what it means here."""

    type: ConfigType
    default: str | None
    doc: str


#: Kafka's configs that say something of this broker, by name.
BROKER_CONFIGS: Final[Mapping[str, BrokerConfig]] = {
    "advertised.listeners": BrokerConfig(ConfigType.LIST, None, "Where clients find the broker."),
    "auto.create.topics.enable": BrokerConfig(
        ConfigType.BOOLEAN, "true", "Whether Metadata requests make topics that aren't there."
    ),
    "broker.id": BrokerConfig(ConfigType.INT, "-1", "The node id of the broker."),
    "compression.type": BrokerConfig(
        ConfigType.STRING,
        "producer",
        "Codec of stored batches, where a topic sets none; producer keeps them as they come.",
    ),
    "connections.max.idle.ms": BrokerConfig(
        ConfigType.LONG, "600000", "A connection without a request for this long is closed."
    ),
    "default.replication.factor": BrokerConfig(
        ConfigType.INT,
        "1",
        "Replicas of a new topic. Durability comes from the write-ahead log, so it is one.",
    ),
    "group.initial.rebalance.delay.ms": BrokerConfig(
        ConfigType.INT, "3000", "How long the first rebalance of a group waits for further members."
    ),
    "group.max.session.timeout.ms": BrokerConfig(
        ConfigType.INT, "1800000", "The longest session timeout that a member of a group may ask for."
    ),
    "group.max.size": BrokerConfig(ConfigType.INT, "2147483647", "How many members a group may have."),
    "group.min.session.timeout.ms": BrokerConfig(
        ConfigType.INT, "6000", "The shortest session timeout that a member of a group may ask for."
    ),
    "listeners": BrokerConfig(ConfigType.LIST, "PLAINTEXT://:9092", "Where the broker listens."),
    "log.cleanup.policy": BrokerConfig(
        ConfigType.LIST, "delete", "What happens to old records, where a topic doesn't say."
    ),
    "log.dirs": BrokerConfig(ConfigType.LIST, None, "Where the records are: the object store."),
    "log.message.timestamp.type": BrokerConfig(
        ConfigType.STRING,
        "CreateTime",
        "Whose time a record carries, where a topic doesn't say: the producer's or the broker's.",
    ),
    "log.retention.bytes": BrokerConfig(
        ConfigType.LONG, "-1", "How much of a partition is kept, where a topic doesn't say; -1 for no limit."
    ),
    "log.retention.ms": BrokerConfig(
        ConfigType.LONG, None, "How long records are kept, where a topic doesn't say; -1 for no limit."
    ),
    "max.connections": BrokerConfig(ConfigType.INT, "2147483647", "How many connections the broker takes."),
    "max.connections.per.ip": BrokerConfig(
        ConfigType.INT, "2147483647", "How many connections the broker takes from one address."
    ),
    "message.max.bytes": BrokerConfig(
        ConfigType.INT, "1048588", "The largest batch, where a topic doesn't say."
    ),
    "min.insync.replicas": BrokerConfig(
        ConfigType.INT, "1", "Durability doesn't come from replicas, so one is enough."
    ),
    "node.id": BrokerConfig(ConfigType.INT, None, "The node id of the broker."),
    "num.partitions": BrokerConfig(
        ConfigType.INT, "1", "Partitions of a topic that is made without a number of them."
    ),
    "offsets.retention.minutes": BrokerConfig(
        ConfigType.INT, "10080", "How long offsets of a group without members are kept."
    ),
    "offsets.topic.num.partitions": BrokerConfig(
        ConfigType.INT, "50", "Partitions of the topic that groups live in."
    ),
    "socket.request.max.bytes": BrokerConfig(ConfigType.INT, "104857600", "The largest request."),
}

_NOT_IN_KAFKA: Final = BrokerConfig(ConfigType.STRING, None, "A setting that Kafka doesn't have.")

#: The broker config that is the default of a topic config. Those of _WITHOUT_DEFAULT have none themselves in Kafka.
SYNONYMS: Final[Mapping[str, str]] = {
    "cleanup.policy": "log.cleanup.policy",
    "compression.gzip.level": "compression.gzip.level",
    "compression.lz4.level": "compression.lz4.level",
    "compression.type": "compression.type",
    "compression.zstd.level": "compression.zstd.level",
    "delete.retention.ms": "log.cleaner.delete.retention.ms",
    "file.delete.delay.ms": "log.segment.delete.delay.ms",
    "flush.messages": "log.flush.interval.messages",
    "index.interval.bytes": "log.index.interval.bytes",
    "local.retention.bytes": "log.local.retention.bytes",
    "local.retention.ms": "log.local.retention.ms",
    "max.compaction.lag.ms": "log.cleaner.max.compaction.lag.ms",
    "max.message.bytes": "message.max.bytes",
    "message.timestamp.after.max.ms": "log.message.timestamp.after.max.ms",
    "message.timestamp.before.max.ms": "log.message.timestamp.before.max.ms",
    "message.timestamp.type": "log.message.timestamp.type",
    "min.cleanable.dirty.ratio": "log.cleaner.min.cleanable.ratio",
    "min.compaction.lag.ms": "log.cleaner.min.compaction.lag.ms",
    "min.insync.replicas": "min.insync.replicas",
    "preallocate": "log.preallocate",
    "retention.bytes": "log.retention.bytes",
    "retention.ms": "log.retention.ms",
    "segment.bytes": "log.segment.bytes",
    "segment.index.bytes": "log.index.size.max.bytes",
    "unclean.leader.election.enable": "unclean.leader.election.enable",
}
_WITHOUT_DEFAULT: Final = frozenset({"retention.ms"})

#: Throttles of replication and of moves between directories. There is neither, so any limit is kept.
_THROTTLES: Final = frozenset(
    {
        "leader.replication.throttled.rate",
        "follower.replication.throttled.rate",
        "replica.alter.log.dirs.io.max.bytes.per.second",
    }
)


def broker_synonyms(topic_config: str, effective: str | None) -> list[DescribeConfigsSynonym]:
    """The sources of a topic config that the topic doesn't set: the broker's setting, then Kafka's default."""
    name = SYNONYMS.get(topic_config)
    if name is None:
        return []
    default = TOPIC_CONFIGS[topic_config].default
    synonyms: list[DescribeConfigsSynonym] = []
    if effective is not None and effective != default:
        synonyms.append(DescribeConfigsSynonym(name=name, value=effective, source=_SOURCE_STATIC_BROKER))
    if topic_config not in _WITHOUT_DEFAULT:
        synonyms.append(DescribeConfigsSynonym(name=name, value=default, source=_SOURCE_DEFAULT))
    return synonyms


def broker_entry(
    name: str, value: str | None, *, with_synonyms: bool, with_doc: bool
) -> DescribeConfigsResourceResult:
    """One broker config as DescribeConfigs shows it; ``value`` None: it is not set."""
    config = BROKER_CONFIGS.get(name, _NOT_IN_KAFKA)
    is_set = value is not None and value != config.default
    synonyms: list[DescribeConfigsSynonym] = []
    if with_synonyms:
        if is_set:
            synonyms.append(DescribeConfigsSynonym(name=name, value=value, source=_SOURCE_STATIC_BROKER))
        if config.default is not None:
            synonyms.append(DescribeConfigsSynonym(name=name, value=config.default, source=_SOURCE_DEFAULT))
    return DescribeConfigsResourceResult(
        name=name,
        value=value if is_set else config.default,
        read_only=True,
        config_source=_SOURCE_STATIC_BROKER if is_set else _SOURCE_DEFAULT,
        synonyms=synonyms,
        config_type=config.type,
        documentation=config.doc if with_doc else None,
    )


def check_broker_change(resource_name: str, changes: Iterable[AlterableConfig], node_id: int) -> None:
    """Raise KafkaError for a change of broker configs that would have to do something.

    Deleting one that isn't set is none, and neither is a throttle for what doesn't happen here.
    """
    if resource_name not in {"", str(node_id)}:
        raise KafkaError(
            ErrorCode.INVALID_REQUEST,
            f"a broker is named by its id, and all by an empty name: name={quoted(resource_name)} node_id={node_id}",
        )
    for change in changes:
        operation = change.config_operation
        if operation not in {_SET, _DELETE, _APPEND, _SUBTRACT}:
            raise KafkaError(ErrorCode.INVALID_REQUEST, f"operation is unknown: operation={operation}")
        if operation == _DELETE:
            continue
        if change.name in _THROTTLES and (change.value or "").strip().isdigit():
            continue
        raise KafkaError(
            ErrorCode.INVALID_CONFIG,
            "broker settings are read at start from the configuration file, the environment and the command line; "
            f"change them there: name={quoted(change.name)}",
        )
