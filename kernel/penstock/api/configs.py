"""DescribeConfigs v1-4, AlterConfigs v0-2, IncrementalAlterConfigs v0-1: topics, and the broker's to read.

ListConfigResources v0-1: what there is to describe.
"""

from __future__ import annotations

__all__ = (
    "APIS",
    "config_entry",
    "describe_configs_nowait",
    "handle_alter_configs",
    "handle_describe_configs",
    "handle_incremental_alter_configs",
    "list_config_resources_nowait",
)

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Final, Protocol

import anyio

from penstock.api.authorization import DENIED, each, the_cluster
from penstock.api.broker_configs import broker_entry, broker_synonyms, check_broker_change
from penstock.api.context import RequestContext
from penstock.api.deadline import Deadline
from penstock.api.declaration import Api, one_code
from penstock.api.errors import OPERATING_ERRORS, error_code_of, quoted
from penstock.api.lookup import existing_topic
from penstock.api.names import is_valid_topic_name
from penstock.api.other_configs import CLIENT_METRICS_CONFIGS, GROUP_CONFIGS, default_entry, logger_levels
from penstock.api.portions import Steps, first_portion, other_portions
from penstock.log.errors import KafkaError
from penstock.log.topic import Topic
from penstock.log.topic_config import (
    TopicConfig,
    TopicConfigTable,
    split_list,
)
from penstock.spi.authorizer import CLUSTER_NAME, Operation, ResourceType
from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.alter_configs import AlterableConfig as LegacyConfig
from penstock.wire.messages.alter_configs import AlterConfigsRequest, AlterConfigsResponse
from penstock.wire.messages.alter_configs import AlterConfigsResourceResponse as AlteredResource
from penstock.wire.messages.describe_configs import (
    DescribeConfigsRequest,
    DescribeConfigsResource,
    DescribeConfigsResourceResult,
    DescribeConfigsResponse,
    DescribeConfigsResult,
    DescribeConfigsSynonym,
)
from penstock.wire.messages.incremental_alter_configs import (
    AlterableConfig,
    AlterConfigsResourceResponse,
    IncrementalAlterConfigsRequest,
    IncrementalAlterConfigsResponse,
)
from penstock.wire.messages.list_config_resources import (
    ConfigResource,
    ListConfigResourcesRequest,
    ListConfigResourcesResponse,
)
from penstock.work.pieces import in_portions, pieces

#: Resources that are described before others get their turn.
_SLICE_RESOURCES: Final = 10
#: Resources whose configs are changed in one go, if that takes no waiting.
_CHANGES: Final = 20
#: Resources that are counted in one go.
_NAMES: Final = 1_000
# org.apache.kafka.common.config.ConfigResource.Type
_TOPIC: Final = 2
_BROKER: Final = 4
_BROKER_LOGGER: Final = 8
_CLIENT_METRICS: Final = 16
_GROUP: Final = 32
#: What is asked of the authorizer for each of them; all others are the cluster's.
_AUTHORIZED_AS: Final = {_TOPIC: ResourceType.TOPIC, _GROUP: ResourceType.GROUP}
_RESOURCE_TYPES: Final = frozenset({_TOPIC, _BROKER, _BROKER_LOGGER, _CLIENT_METRICS, _GROUP})

_DEFAULTS: Final = {_CLIENT_METRICS: CLIENT_METRICS_CONFIGS, _GROUP: GROUP_CONFIGS}
#: What Kafka reads as a number of a broker.
_NODE_ID: Final = re.compile(r"[+-]?[0-9]{1,10}", re.ASCII)

#: ListConfigResources v0 was ListClientMetricsResources (KIP-1142).
_ANY_RESOURCE_VERSION: Final = 1

# DescribeConfigsResponse.ConfigSource
_SOURCE_TOPIC: Final = 1
_SOURCE_STATIC_BROKER: Final = 4
_SOURCE_DEFAULT: Final = 5
_SOURCE_BROKER_LOGGER: Final = 6

# AlterConfigOp.OpType
_SET: Final = 0
_DELETE: Final = 1
_APPEND: Final = 2
_SUBTRACT: Final = 3


def config_entry(
    config: TopicConfig, override: str | None, effective: str | None = None, *, with_doc: bool = False
) -> DescribeConfigsResourceResult:
    """One topic config as DescribeConfigs shows it; ``effective`` is the broker's default if it has one."""
    if override is not None:
        value, source = override, _SOURCE_TOPIC
    elif effective is not None and effective != config.default:
        value, source = effective, _SOURCE_STATIC_BROKER
    else:
        value, source = config.default, _SOURCE_DEFAULT
    return DescribeConfigsResourceResult(
        name=config.name,
        value=value,
        config_source=source,
        synonyms=[],
        config_type=config.type,
        documentation=config.doc if with_doc else None,
    )


def describe_configs_nowait(
    request: DescribeConfigsRequest, context: RequestContext
) -> DescribeConfigsResponse:
    """DescribeConfigs: all keys when none are named, with where their values come from."""
    results: list[DescribeConfigsResult] = []
    denied = _denied(Operation.DESCRIBE_CONFIGS, request.resources, context)
    seen: set[tuple[int, str]] = set()
    for resource in request.resources:
        if not resource.configuration_keys:
            # the answer is hundreds of times as long as the question: once is enough
            key = (resource.resource_type, resource.resource_name)
            if key in seen:
                continue
            seen.add(key)
        result = DescribeConfigsResult(
            error_message=None,
            resource_type=resource.resource_type,
            resource_name=resource.resource_name,
            configs=[],
        )
        try:
            _check_permitted(resource, denied)
            if resource.resource_type == _TOPIC:
                result.configs = _describe_topic(resource, request, context)
            elif resource.resource_type == _BROKER:
                result.configs = _describe_broker(resource, request, context)
            elif resource.resource_type == _BROKER_LOGGER:
                result.configs = _describe_loggers(resource, context)
            elif (defaults := _DEFAULTS.get(resource.resource_type)) is None:
                raise _unsupported(resource.resource_type)
            elif not resource.resource_name:
                raise KafkaError(ErrorCode.INVALID_REQUEST, "the resource has no name")
            else:
                result.configs = [
                    default_entry(name, defaults[name]) for name in _asked_for(resource, defaults)
                ]
        except KafkaError as error:
            result.error_code = error.error_code
            result.error_message = str(error)
        results.append(result)
    return DescribeConfigsResponse(results=results)


async def handle_describe_configs(
    request: DescribeConfigsRequest, context: RequestContext
) -> DescribeConfigsResponse:
    """Describe configs in portions of resources, between which others get their turn."""
    results: list[DescribeConfigsResult] = []
    for chunk in pieces(request.resources, _SLICE_RESOURCES):
        part = DescribeConfigsRequest(
            resources=list(chunk),
            include_synonyms=request.include_synonyms,
            include_documentation=request.include_documentation,
        )
        results += describe_configs_nowait(part, context).results
        await anyio.lowlevel.checkpoint()
    return DescribeConfigsResponse(results=results)


def _list_config_resources(
    request: ListConfigResourcesRequest, context: RequestContext
) -> Steps[ListConfigResourcesResponse]:
    """ListConfigResources (KIP-1142): topics and the broker, which has loggers; no client metrics, no groups."""
    wanted = frozenset(request.resource_types) or _RESOURCE_TYPES
    if context.version < _ANY_RESOURCE_VERSION:
        wanted = frozenset({_CLIENT_METRICS})
    if not wanted <= _RESOURCE_TYPES:
        return ListConfigResourcesResponse(error_code=ErrorCode.UNSUPPORTED_VERSION, config_resources=[])
    logs = context.api.logs
    found: list[ConfigResource] = []
    if _TOPIC in wanted:
        for name in sorted(logs.topics()):
            yield
            found.append(ConfigResource(resource_name=name, resource_type=_TOPIC))
    if _BROKER in wanted:
        found.append(ConfigResource(resource_name=str(logs.node_id), resource_type=_BROKER))
    if _BROKER_LOGGER in wanted:
        found.append(ConfigResource(resource_name=str(logs.node_id), resource_type=_BROKER_LOGGER))
    return ListConfigResourcesResponse(config_resources=found)


class _Resource(Protocol):
    """What has configs, as the requests name it."""

    resource_type: int
    resource_name: str


def _denied(
    operation: Operation, resources: Sequence[_Resource], context: RequestContext
) -> frozenset[tuple[ResourceType, str]]:
    """What of ``resources`` the client may not do ``operation`` on."""
    if context.api.authorizer is None:
        return frozenset()
    names: dict[ResourceType, list[str]] = {}
    for resource in resources:
        kind, name = _authorized_as(resource)
        names.setdefault(kind, []).append(name)
    return frozenset(
        (kind, name) for kind, asked in names.items() for name in context.denied(operation, kind, asked)
    )


def _authorized_as(resource: _Resource) -> tuple[ResourceType, str]:
    kind = _AUTHORIZED_AS.get(resource.resource_type, ResourceType.CLUSTER)
    return kind, CLUSTER_NAME if kind is ResourceType.CLUSTER else resource.resource_name


def _check_permitted(resource: _Resource, denied: Collection[tuple[ResourceType, str]]) -> None:
    kind, name = _authorized_as(resource)
    if (kind, name) in denied:
        raise KafkaError(DENIED[kind], f"not permitted: resource={quoted(name)}")


def _asked_for(resource: DescribeConfigsResource, names: Iterable[str]) -> list[str]:
    # KAFKA-9218: librdkafka sends an empty list and means all, as older brokers took it.
    keys = resource.configuration_keys
    return [name for name in names if not keys or name in keys]


def _describe_topic(
    resource: DescribeConfigsResource, request: DescribeConfigsRequest, context: RequestContext
) -> list[DescribeConfigsResourceResult]:
    logs = context.api.logs
    topic = _topic(resource.resource_name, context)
    entries: list[DescribeConfigsResourceResult] = []
    known = logs.topic_configs.known
    for name in _asked_for(resource, known):
        config = known[name]
        override = topic.configs.get(name)
        entry = config_entry(
            config, override, logs.config_value(topic.name, name), with_doc=request.include_documentation
        )
        if request.include_synonyms:
            entry.synonyms = _synonyms(config, entry, logs.config_default(name))
        entries.append(entry)
    return entries


def _synonyms(
    config: TopicConfig, entry: DescribeConfigsResourceResult, effective: str | None
) -> list[DescribeConfigsSynonym]:
    synonyms = broker_synonyms(config.name, effective)
    if entry.config_source == _SOURCE_TOPIC:
        own = DescribeConfigsSynonym(name=config.name, value=entry.value, source=_SOURCE_TOPIC)
        synonyms.insert(0, own)
    return synonyms


def _describe_broker(
    resource: DescribeConfigsResource, request: DescribeConfigsRequest, context: RequestContext
) -> list[DescribeConfigsResourceResult]:
    if resource.resource_name:
        _check_is_own(resource.resource_name, context)
    else:
        return []  # the dynamic default of all brokers: there are no dynamic broker configs
    configs = {**context.api.settings.broker_configs, "log.dirs": context.api.data_place.location}
    return [
        broker_entry(name, configs[name], with_synonyms=request.include_synonyms)
        for name in _asked_for(resource, sorted(configs))
    ]


def _describe_loggers(
    resource: DescribeConfigsResource, context: RequestContext
) -> list[DescribeConfigsResourceResult]:
    _check_is_own(resource.resource_name, context)
    levels = dict(logger_levels())
    return [
        DescribeConfigsResourceResult(
            name=name, value=levels[name], read_only=True, config_source=_SOURCE_BROKER_LOGGER, synonyms=[]
        )
        for name in _asked_for(resource, levels)
    ]


def _check_is_own(name: str, context: RequestContext) -> None:
    node_id = context.api.logs.node_id
    if not _NODE_ID.fullmatch(name) or int(name) != node_id:
        raise KafkaError(ErrorCode.INVALID_REQUEST, f"this is another broker: node_id={node_id}")


async def handle_incremental_alter_configs(
    request: IncrementalAlterConfigsRequest, context: RequestContext
) -> IncrementalAlterConfigsResponse:
    """IncrementalAlterConfigs (KIP-339): SET, DELETE, and APPEND and SUBTRACT on lists; a resource all or nothing."""
    responses: list[AlterConfigsResourceResponse] = []
    denied = _denied(Operation.ALTER_CONFIGS, request.resources, context)
    deadline = Deadline()
    times = Counter(
        [(one.resource_type, one.resource_name) async for one in in_portions(request.resources, _NAMES)]
    )
    async for resource in in_portions(request.resources, _CHANGES):
        response = AlterConfigsResourceResponse(
            error_message=None, resource_type=resource.resource_type, resource_name=resource.resource_name
        )
        responses.append(response)
        try:
            _check_permitted(resource, denied)
            _check_resource(resource.resource_type, resource.resource_name, times, context)
            if resource.resource_type == _BROKER:
                check_broker_change(resource.resource_name, resource.configs, context.api.logs.node_id)
                continue
            topic = _topic(resource.resource_name, context)
            change = partial(_changed, resource.configs, context.api.logs.topic_configs)
            await deadline.of(_store(topic, change, request.validate_only, context))
        except OPERATING_ERRORS as error:
            response.error_code = error_code_of(error)
            response.error_message = str(error)
    return IncrementalAlterConfigsResponse(responses=responses)


def _changed(
    changes: Sequence[AlterableConfig], table: TopicConfigTable, current: Mapping[str, str]
) -> dict[str, str]:
    """The ``current`` overrides with all ``changes``."""
    configs = dict(current)
    changed: set[str] = set()
    for change in changes:
        if change.name in changed:
            raise KafkaError(
                ErrorCode.INVALID_REQUEST,
                f"config is changed twice in one request: name={quoted(change.name)}",
            )
        changed.add(change.name)
        _apply(configs, change, table, current)
    table.check_together(configs, current)
    return configs


def _apply(
    configs: dict[str, str], change: AlterableConfig, table: TopicConfigTable, current: Mapping[str, str]
) -> None:
    name = change.name
    if change.value is None and change.config_operation != _DELETE and name in table.known:
        raise KafkaError(ErrorCode.INVALID_REQUEST, f"config has no value, null only deletes: name={name}")
    if change.config_operation == _SET:
        configs[name] = table.validate(name, change.value)
        return
    if change.config_operation == _DELETE:
        configs.pop(name, None)  # what isn't set, or isn't known, is as it is wanted
        return
    config = table.known.get(name)
    if config is None:
        table.validate(name, change.value)  # says what is wrong
        raise AssertionError("an unknown config was accepted")
    if change.config_operation not in {_APPEND, _SUBTRACT}:
        raise KafkaError(
            ErrorCode.INVALID_REQUEST, f"operation is unknown: operation={change.config_operation}"
        )
    if not config.is_list:
        raise KafkaError(
            ErrorCode.INVALID_CONFIG, f"only lists can be appended to or subtracted from: name={name}"
        )
    items = split_list(table.value(name, current))
    given = _given_items(change.value or "")
    if change.config_operation == _APPEND:
        items += [item for item in given if item not in items]
    else:
        items = [item for item in items if item not in given]
    configs[name] = table.validate(name, ",".join(items))


def _given_items(value: str) -> list[str]:
    """The items that are added or taken away: what is empty counts, but at the end, as in Kafka."""
    items = [item.strip() for item in value.split(",")]
    while "," in value and items and not items[-1]:
        items.pop()
    return items


async def handle_alter_configs(request: AlterConfigsRequest, context: RequestContext) -> AlterConfigsResponse:
    """AlterConfigs, the older way: what is not named goes back to its default."""
    responses: list[AlteredResource] = []
    denied = _denied(Operation.ALTER_CONFIGS, request.resources, context)
    deadline = Deadline()
    times = Counter(
        [(one.resource_type, one.resource_name) async for one in in_portions(request.resources, _NAMES)]
    )
    async for resource in in_portions(request.resources, _CHANGES):
        response = AlteredResource(
            error_message=None, resource_type=resource.resource_type, resource_name=resource.resource_name
        )
        responses.append(response)
        try:
            _check_permitted(resource, denied)
            _check_resource(resource.resource_type, resource.resource_name, times, context)
            _check_values(resource.configs)
            if resource.resource_type == _BROKER:
                changes = [AlterableConfig(name=one.name, value=one.value) for one in resource.configs]
                check_broker_change(resource.resource_name, changes, context.api.logs.node_id)
                continue
            topic = _topic(resource.resource_name, context)
            table = context.api.logs.topic_configs
            configs = {change.name: table.validate(change.name, change.value) for change in resource.configs}
            await deadline.of(
                _store(topic, partial(_replaced, configs, table), request.validate_only, context)
            )
        except OPERATING_ERRORS as error:
            response.error_code = error_code_of(error)
            response.error_message = str(error)
    return AlterConfigsResponse(responses=responses)


def _check_values(configs: Iterable[LegacyConfig]) -> None:
    """AlterConfigs sets each config once, to a value. Nothing is changed where one has none."""
    seen: set[str] = set()
    for config in configs:
        if config.value is None:
            raise KafkaError(ErrorCode.INVALID_REQUEST, f"config has no value: name={quoted(config.name)}")
        if config.name in seen:
            raise KafkaError(
                ErrorCode.INVALID_REQUEST, f"config is in the request twice: name={quoted(config.name)}"
            )
        seen.add(config.name)


def _check_resource(kind: int, name: str, times: Counter[tuple[int, str]], context: RequestContext) -> None:
    if times[kind, name] > 1:
        raise KafkaError(ErrorCode.INVALID_REQUEST, f"resource is in the request twice: name={quoted(name)}")
    if kind == _GROUP:
        raise KafkaError(ErrorCode.INVALID_CONFIG, "groups have no configs here")
    if kind not in {_TOPIC, _BROKER}:
        raise _unsupported(kind)
    if kind == _TOPIC and not name:
        raise KafkaError(ErrorCode.INVALID_REQUEST, "there are no defaults of all topics to change")


def _replaced(
    configs: Mapping[str, str], table: TopicConfigTable, current: Mapping[str, str]
) -> Mapping[str, str]:
    table.check_together(configs, current)
    return configs


async def _store(
    topic: Topic,
    change: Callable[[Mapping[str, str]], Mapping[str, str]],
    validate_only: bool,
    context: RequestContext,
) -> None:
    if topic.internal:
        raise KafkaError(ErrorCode.INVALID_CONFIG, f"configs of internal topics are fixed: name={topic.name}")
    change(topic.configs)  # what is wrong with it is told before anything waits
    if not validate_only:
        await context.api.logs.change_configs(topic.name, change)


def _topic(name: str, context: RequestContext) -> Topic:
    if name not in context.api.logs.topics() and not is_valid_topic_name(name):
        raise KafkaError(ErrorCode.INVALID_TOPIC_EXCEPTION, f"topic name is invalid: name={quoted(name)}")
    return existing_topic(name, context)


def _unsupported(kind: int) -> KafkaError:
    return KafkaError(
        ErrorCode.INVALID_REQUEST,
        f"only topics (2) and the broker (4) have configs here: resource_type={kind}",
    )


list_config_resources_nowait: Final = first_portion(_list_config_resources)

APIS: Final = (
    Api(
        key=ApiKey.DESCRIBE_CONFIGS,
        needs=(
            each(Operation.DESCRIBE_CONFIGS, ResourceType.CLUSTER),
            each(Operation.DESCRIBE_CONFIGS, ResourceType.TOPIC),
        ),
        handler=handle_describe_configs,
        note="topics, and the broker's own settings",
    ),
    Api(
        key=ApiKey.ALTER_CONFIGS,
        needs=(
            each(Operation.ALTER_CONFIGS, ResourceType.CLUSTER),
            each(Operation.ALTER_CONFIGS, ResourceType.TOPIC),
        ),
        handler=handle_alter_configs,
        note="topics; the broker's own settings are read-only",
    ),
    Api(
        key=ApiKey.INCREMENTAL_ALTER_CONFIGS,
        needs=(
            each(Operation.ALTER_CONFIGS, ResourceType.CLUSTER),
            each(Operation.ALTER_CONFIGS, ResourceType.TOPIC),
        ),
        handler=handle_incremental_alter_configs,
        note="topics; the broker's own settings are read-only",
    ),
    Api(
        key=ApiKey.LIST_CONFIG_RESOURCES,
        needs=(the_cluster(Operation.DESCRIBE_CONFIGS),),
        nowait=list_config_resources_nowait,
        handler=other_portions,
        failure=one_code(ListConfigResourcesResponse),
        note="topics and the broker",
    ),
)
