"""The settings of the parts, from the configuration."""

from __future__ import annotations

__all__ = (
    "api_settings",
    "budget",
    "check_opened",
    "engine_settings",
    "group_settings",
    "lake_settings",
    "listener_settings",
    "log_settings",
    "server_settings",
    "topic_configs",
)

from collections.abc import Mapping

from penstock.api.context import ApiSettings
from penstock.config import Config, Tree, check_limits, split_address
from penstock.coordinator.group_types import GroupSettings
from penstock.lake.configs import topic_config_table
from penstock.lake.table_task import LakeSettings
from penstock.limits import PART_BYTES, Budget, Limit, written
from penstock.log.manager import LogSettings
from penstock.log.topic_config import TopicConfigTable
from penstock.plugins import Selection
from penstock.server.settings import ListenerSettings, ServerSettings
from penstock.spi.kinds import LAKE_COMPACTOR
from penstock.spi.lake import LakeCompactorSpec
from penstock.stream.engine import EngineSettings
from penstock.stream.object_puts import UploadSettings
from penstock.stream.reader import ReaderSettings


def budget(tree: Tree, allocator: int, wal: int) -> Budget:
    """How memory and WAL are divided; ``allocator`` and ``wal`` are their sizes once they are open."""
    stream = tree.stream
    return Budget.of(
        allocator=allocator,
        wal=wal,
        upload=stream.upload_bytes,
        append_in_flight=stream.append_in_flight_bytes_max,
        fetch_in_flight=stream.fetch_in_flight_bytes_max,
        groups=tree.groups.memory_max,
        lake=tree.lake.memory_max,
    )


def check_opened(config: Config, opened: Mapping[str, tuple[str, int]]) -> None:
    """What opened plugins tell of their sizes must fit the settings, too: not all know it before.

    ``opened`` has them by the names of ``penstock.limits``: what each is, for people, and its bytes. Raises
    ConfigError.
    """
    limits = {
        name: Limit(value, what, written(value, "size"), "as opened")
        for name, (what, value) in opened.items()
    }
    check_limits(config.limits() | limits)


def engine_settings(tree: Tree, budget: Budget) -> EngineSettings:
    stream = tree.stream
    return EngineSettings(
        upload_bytes=budget.upload,
        upload_interval_ms=stream.upload_interval,
        in_flight_bytes_max=budget.append_in_flight,
        lifecycle_interval_ms=max(100, min(stream.delete_delay, 10_000)),
        delete_delay_ms=stream.delete_delay,
        orphan_sweep_interval_ms=stream.orphan_sweep_interval,
        orphan_grace_ms=stream.orphan_grace,
        upload=UploadSettings(
            block_bytes=stream.block_bytes,
            object_split_bytes=stream.object_split_bytes,
            multipart_bytes=stream.multipart_bytes,
            part_bytes=PART_BYTES,
            prepare_deadline_ms=stream.prepare_deadline,
        ),
        reader=ReaderSettings(),
        last_upload_ms=tree.broker.drain_timeout,
    )


def topic_configs(tree: Tree, selection: Selection) -> TopicConfigTable:
    """The topic configs that the broker knows. Raises ConfigError for ``lake.defaults`` that no topic can have."""
    topics = tree.topics
    compactor = selection.specs.get(LAKE_COMPACTOR.name)
    assert compactor is None or isinstance(compactor, LakeCompactorSpec)
    defaults = {
        "retention.ms": str(topics.retention),
        "retention.bytes": str(topics.retention_bytes),
        "max.message.bytes": str(topics.message_bytes_max),
        "message.timestamp.type": topics.timestamp_type,
        "compression.type": topics.compression_type,
    }
    return topic_config_table(compactor, tree.lake.defaults, defaults)


def lake_settings(tree: Tree, budget: Budget) -> LakeSettings:
    lake = tree.lake
    return LakeSettings(
        memory_bytes=max(1, budget.lake // lake.concurrency),
        concurrency=lake.concurrency,
        bandwidth=lake.bandwidth,
        retry_min_s=lake.retry_min / 1000,
        retry_max_s=lake.retry_max / 1000,
        maintenance_interval_s=lake.maintenance_interval / 1000,
        stop_timeout_s=tree.broker.drain_timeout / 1000,
    )


def log_settings(tree: Tree, budget: Budget, configs: TopicConfigTable) -> LogSettings:
    topics = tree.topics
    return LogSettings(
        topic_defaults=configs.defaults,
        topic_configs=configs,
        retention_interval_ms=tree.stream.retention_interval,
        partitions_max=topics.partitions_max,
        producers_bytes_max=budget.producers,
        validate_full=topics.validate_records == "full",
        fetch_in_flight_bytes_max=budget.fetch_in_flight,
    )


def group_settings(tree: Tree, budget: Budget) -> GroupSettings:
    groups = tree.groups
    return GroupSettings(
        initial_rebalance_delay_ms=groups.initial_rebalance_delay,
        min_session_timeout_ms=groups.session_timeout_min,
        max_session_timeout_ms=groups.session_timeout_max,
        group_size_max=groups.members_max,
        member_bytes_max=groups.member_bytes_max,
        memory_bytes_max=budget.groups,
        offsets_retention_ms=groups.offsets_retention,
    )


def api_settings(tree: Tree, budget: Budget) -> ApiSettings:
    return ApiSettings(
        fetch_bytes_max=budget.fetch,
        auto_create_topics=tree.topics.auto_create,
        partitions_default=tree.topics.partitions,
        partitions_per_topic_max=tree.topics.partitions_max,
        broker_configs=_broker_configs(tree),
    )


def _broker_configs(tree: Tree) -> dict[str, str | None]:
    """What DescribeConfigs says of the broker: our settings under the names that Kafka's tools look for."""
    listener, topics, groups = tree.listener, tree.topics, tree.groups
    return {
        "advertised.listeners": f"PLAINTEXT://{listener.advertised}" if listener.advertised else None,
        "auto.create.topics.enable": "true" if topics.auto_create else "false",
        "broker.id": str(tree.broker.node_id),
        "compression.type": topics.compression_type,
        "connections.max.idle.ms": str(listener.idle_timeout),
        "default.replication.factor": "1",
        "group.initial.rebalance.delay.ms": str(groups.initial_rebalance_delay),
        "group.max.session.timeout.ms": str(groups.session_timeout_max),
        "group.max.size": str(groups.members_max),
        "group.min.session.timeout.ms": str(groups.session_timeout_min),
        "listeners": f"PLAINTEXT://{listener.bind}",
        "log.cleanup.policy": "delete",
        "log.message.timestamp.type": topics.timestamp_type,
        "log.retention.bytes": str(topics.retention_bytes),
        "log.retention.ms": str(topics.retention),
        "max.connections": str(listener.connections_max),
        "max.connections.per.ip": str(_connections_per_address_max(tree)),
        "message.max.bytes": str(topics.message_bytes_max),
        "min.insync.replicas": "1",
        "node.id": str(tree.broker.node_id),
        "num.partitions": str(topics.partitions),
        "offsets.retention.minutes": str(groups.offsets_retention // 60_000),
        "offsets.topic.num.partitions": str(groups.offsets_partitions),
        "socket.request.max.bytes": str(listener.request_bytes_max),
    }


def _connections_per_address_max(tree: Tree) -> int:
    """One address leaves room for others, whatever it does."""
    listener = tree.listener
    return listener.connections_per_address_max or max(1, listener.connections_max // 2)


def server_settings(tree: Tree, budget: Budget) -> ServerSettings:
    listener = tree.listener
    return ServerSettings(
        request_bytes_max=listener.request_bytes_max,
        connections_max=listener.connections_max,
        connections_per_address_max=_connections_per_address_max(tree),
        receive_bytes_max=budget.receive,
        carried_bytes_max=budget.carried,
        idle_timeout_ms=listener.idle_timeout,
        pipeline_requests_max=listener.pipeline_depth,
    )


def listener_settings(tree: Tree) -> ListenerSettings:
    host, port = split_address(tree.listener.bind)
    advertised_host: str | None = None
    advertised_port: int | None = None
    if tree.listener.advertised is not None:
        advertised_host, advertised_port = split_address(tree.listener.advertised)
    return ListenerSettings(
        host=host,
        port=port,
        advertised_host=advertised_host,
        advertised_port=advertised_port or None,
        rack=tree.broker.rack,
    )
