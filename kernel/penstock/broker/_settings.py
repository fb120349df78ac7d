"""The settings of the parts, from the configuration."""

from __future__ import annotations

__all__ = (
    "api_settings",
    "engine_settings",
    "group_settings",
    "listener_settings",
    "log_settings",
    "server_settings",
    "session_bytes_max",
)


from penstock.api.context import ApiSettings
from penstock.config import Tree, split_address
from penstock.coordinator.group_types import GroupSettings
from penstock.log.manager import LogSettings
from penstock.server.settings import ListenerSettings, ServerSettings
from penstock.stream.engine import EngineSettings
from penstock.stream.object_puts import UploadSettings
from penstock.stream.reader import ReaderSettings

MIB = 2**20
#: Kafka's ``fetch.max.bytes``; less where the memory is small.
FETCH_BYTES_MAX = 55 * MIB


def engine_settings(tree: Tree, limit: int, wal_capacity: int) -> EngineSettings:
    stream = tree.stream
    upload_bytes = stream.upload_bytes or max(MIB, min(64 * MIB, limit // 6))
    if wal_capacity:
        # two blocks on their way and one filling must fit, or the WAL is full before it is trimmed
        upload_bytes = min(upload_bytes, max(MIB // 4, wal_capacity // 4))
    return EngineSettings(
        upload_bytes=upload_bytes,
        upload_interval_ms=stream.upload_interval,
        in_flight_bytes_max=stream.append_in_flight_bytes_max or max(MIB, limit // 8),
        lifecycle_interval_ms=max(100, min(stream.delete_delay, 10_000)),
        delete_delay_ms=stream.delete_delay,
        orphan_sweep_interval_ms=stream.orphan_sweep_interval,
        orphan_grace_ms=stream.orphan_grace,
        upload=UploadSettings(
            block_bytes=stream.block_bytes,
            object_split_bytes=stream.object_split_bytes,
            multipart_bytes=stream.multipart_bytes,
            part_bytes=16 * MIB,
            prepare_deadline_ms=stream.prepare_deadline,
        ),
        reader=ReaderSettings(),
        last_upload_ms=tree.broker.drain_timeout,
    )


def log_settings(tree: Tree, limit: int) -> LogSettings:
    topics = tree.topics
    return LogSettings(
        topic_defaults={
            "retention.ms": str(topics.retention),
            "retention.bytes": str(topics.retention_bytes),
            "max.message.bytes": str(topics.message_bytes_max),
            "message.timestamp.type": topics.timestamp_type,
            "compression.type": topics.compression_type,
        },
        retention_interval_ms=tree.stream.retention_interval,
        partitions_max=topics.partitions_max,
        producers_bytes_max=max(MIB, limit // 8),
        validate_full=topics.validate_records == "full",
        fetch_in_flight_bytes_max=_fetch_in_flight_bytes_max(tree, limit),
    )


def _fetch_in_flight_bytes_max(tree: Tree, limit: int) -> int:
    """Bytes of fetch responses on their way."""
    return tree.stream.fetch_in_flight_bytes_max or max(4 * MIB, limit // 4)


def group_settings(tree: Tree, limit: int) -> GroupSettings:
    groups = tree.groups
    return GroupSettings(
        initial_rebalance_delay_ms=groups.initial_rebalance_delay,
        min_session_timeout_ms=groups.session_timeout_min,
        max_session_timeout_ms=groups.session_timeout_max,
        group_size_max=groups.members_max,
        member_bytes_max=groups.member_bytes_max,
        memory_bytes_max=groups.memory_max or max(MIB, limit // 8),
        offsets_retention_ms=groups.offsets_retention,
    )


def api_settings(tree: Tree, limit: int) -> ApiSettings:
    return ApiSettings(
        # several slow readers at once must leave room for others
        fetch_bytes_max=min(FETCH_BYTES_MAX, max(MIB, _fetch_in_flight_bytes_max(tree, limit) // 8)),
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


def server_settings(tree: Tree, limit: int) -> ServerSettings:
    listener = tree.listener
    return ServerSettings(
        request_bytes_max=listener.request_bytes_max,
        connections_max=listener.connections_max,
        connections_per_address_max=_connections_per_address_max(tree),
        # what requests hold before they are handled leaves as much to those that were
        receive_bytes_max=limit // 2,
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
    )


def session_bytes_max(limit: int) -> int:
    """Memory of fetch sessions; without room, clients are served without a session."""
    return max(MIB, limit // 8)
