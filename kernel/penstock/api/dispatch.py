"""The one table of what this broker handles, and hence advertises: API key, versions, handler."""

from __future__ import annotations

__all__ = ("Api", "NowaitHandler", "advertised", "apis", "failure_response")

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final, TypeAlias

from penstock.api import (
    acls,
    configs,
    consumer_groups,
    fetch,
    log_dirs,
    metadata,
    offsets,
    producer_ids,
    producers,
    quotas,
    reassignments,
    topics,
)
from penstock.api.context import Handler, RequestContext
from penstock.api.groups import GROUP_HANDLERS
from penstock.wire.api_keys import ApiKey
from penstock.wire.messages._index import INDEX
from penstock.wire.registry import Message

#: ``def x_nowait(request, context) -> response``; None: it has to wait, let the handler do it.
NowaitHandler: TypeAlias = Callable[[Any, RequestContext], Message | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """One API. ``nowait`` is tried first; ``handler`` runs in a task. Produce has neither: the server does it."""

    key: int
    low: int
    high: int
    handler: Handler | None = None
    nowait: NowaitHandler | None = None
    #: Whether it is given up when the client goes away: for what waits, not for what changes something.
    cancellable: bool = False


_CANCELLABLE: Final = frozenset({ApiKey.FETCH, ApiKey.JOIN_GROUP, ApiKey.SYNC_GROUP})

#: KAFKA-18659: librdkafka compresses only if Produce 0 is advertised. Versions below 3 are still refused.
_PRODUCE_LOW_ADVERTISED: Final = 0
#: Versions with a codec that are not handled: two-phase commit (KIP-939) isn't there, nor are cordoned log
#: directories (KIP-1066), by which clients also tell Kafka 4.3.
_HIGH: Final = {ApiKey.INIT_PRODUCER_ID: 5, ApiKey.DESCRIBE_LOG_DIRS: 4}

_HANDLERS: Final[Mapping[int, Handler]] = {
    ApiKey.FETCH: fetch.handle_fetch,
    ApiKey.LIST_OFFSETS: offsets.handle_list_offsets,
    ApiKey.METADATA: metadata.handle_metadata,
    ApiKey.CREATE_TOPICS: topics.handle_create_topics,
    ApiKey.DELETE_TOPICS: topics.handle_delete_topics,
    ApiKey.DELETE_RECORDS: offsets.handle_delete_records,
    ApiKey.INIT_PRODUCER_ID: producer_ids.handle_init_producer_id,
    ApiKey.OFFSET_FOR_LEADER_EPOCH: offsets.handle_offset_for_leader_epoch,
    ApiKey.ALTER_CONFIGS: configs.handle_alter_configs,
    ApiKey.DESCRIBE_CONFIGS: configs.handle_describe_configs,
    ApiKey.DESCRIBE_LOG_DIRS: log_dirs.handle_describe_log_dirs,
    ApiKey.CREATE_PARTITIONS: topics.handle_create_partitions,
    ApiKey.INCREMENTAL_ALTER_CONFIGS: configs.handle_incremental_alter_configs,
    **GROUP_HANDLERS,
}

_NOWAIT: Final[Mapping[int, NowaitHandler]] = {
    ApiKey.FETCH: fetch.fetch_nowait,
    ApiKey.METADATA: metadata.metadata_nowait,
    ApiKey.API_VERSIONS: metadata.api_versions_nowait,
    ApiKey.DESCRIBE_ACLS: acls.describe_acls_nowait,
    ApiKey.CREATE_ACLS: acls.create_acls_nowait,
    ApiKey.DELETE_ACLS: acls.delete_acls_nowait,
    ApiKey.ELECT_LEADERS: reassignments.elect_leaders_nowait,
    ApiKey.ALTER_PARTITION_REASSIGNMENTS: reassignments.alter_partition_reassignments_nowait,
    ApiKey.LIST_PARTITION_REASSIGNMENTS: reassignments.list_partition_reassignments_nowait,
    ApiKey.DESCRIBE_CLIENT_QUOTAS: quotas.describe_client_quotas_nowait,
    ApiKey.DESCRIBE_CLUSTER: metadata.describe_cluster_nowait,
    ApiKey.DESCRIBE_PRODUCERS: producers.describe_producers_nowait,
    ApiKey.CONSUMER_GROUP_HEARTBEAT: consumer_groups.consumer_group_heartbeat_nowait,
    ApiKey.LIST_CONFIG_RESOURCES: configs.list_config_resources_nowait,
    ApiKey.DESCRIBE_TOPIC_PARTITIONS: metadata.describe_topic_partitions_nowait,
}

#: The first version whose response has one error code for all of it, where a failure of all of it can be told;
#: for FindCoordinator and OffsetFetch also the last.
_FAILURE_VERSIONS: Final[Mapping[int, tuple[int, int]]] = {
    ApiKey.FETCH: (7, 99),
    ApiKey.OFFSET_FETCH: (2, 7),
    ApiKey.FIND_COORDINATOR: (0, 3),
    ApiKey.JOIN_GROUP: (0, 99),
    ApiKey.HEARTBEAT: (0, 99),
    ApiKey.LEAVE_GROUP: (0, 99),
    ApiKey.SYNC_GROUP: (0, 99),
    ApiKey.LIST_GROUPS: (0, 99),
    ApiKey.API_VERSIONS: (0, 99),
    ApiKey.INIT_PRODUCER_ID: (0, 99),
    ApiKey.DESCRIBE_CLUSTER: (0, 99),
    ApiKey.OFFSET_DELETE: (0, 99),
    ApiKey.DESCRIBE_LOG_DIRS: (3, 99),
    ApiKey.ELECT_LEADERS: (1, 99),
    ApiKey.ALTER_PARTITION_REASSIGNMENTS: (0, 99),
    ApiKey.LIST_PARTITION_REASSIGNMENTS: (0, 99),
    ApiKey.DESCRIBE_CLIENT_QUOTAS: (0, 99),
    ApiKey.LIST_CONFIG_RESOURCES: (0, 99),
    ApiKey.CONSUMER_GROUP_HEARTBEAT: (0, 99),
}


def apis() -> dict[int, Api]:
    """All APIs that are handled, by key."""
    table: dict[int, Api] = {}
    for key in sorted({int(ApiKey.PRODUCE), *map(int, _HANDLERS), *map(int, _NOWAIT)}):
        _, low, high, _ = INDEX[key]
        table[key] = Api(
            key=key,
            low=low,
            high=_HIGH.get(ApiKey(key), high),
            handler=_HANDLERS.get(key),
            nowait=_NOWAIT.get(key),
            cancellable=key in _CANCELLABLE,
        )
    return table


def advertised(table: Mapping[int, Api]) -> tuple[tuple[int, int, int], ...]:
    """(API key, lowest, highest version) for ApiVersions."""
    return tuple(
        (key, _PRODUCE_LOW_ADVERTISED if key == ApiKey.PRODUCE else api.low, api.high)
        for key, api in sorted(table.items())
    )


def failure_response(api_key: int, version: int, error_code: int) -> Message | None:
    """A response that says nothing but ``error_code``; None where the API has no place for that."""
    versions = _FAILURE_VERSIONS.get(api_key)
    if versions is None or not versions[0] <= version <= versions[1]:
        return None
    name = INDEX[api_key][0]
    kind = "".join(part.capitalize() for part in name.split("_")) + "Response"
    response: Message = getattr(import_module(f"penstock.wire.messages.{name}"), kind)(error_code=error_code)
    return response
