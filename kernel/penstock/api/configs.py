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

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Final, Protocol

import anyio

from penstock.api.authorization import DENIED, each, the_cluster
from penstock.api.broker_configs import broker_entry, broker_synonyms
from penstock.api.config_answers import ConfigsAnswer, SharedEntries
from penstock.api.config_changes import (
    BROKER,
    BROKER_LOGGER,
    CLIENT_METRICS,
    GROUP,
    TOPIC,
    changed,
    check_changes,
    check_is_own,
    check_unstored,
    check_values,
    replaced,
)
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
)
from penstock.spi.authorizer import CLUSTER_NAME, Operation, ResourceType
from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode
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
from penstock.wire.splice import EncodedBody
from penstock.work.pieces import in_portions, pieces

#: Resources that are described before others get their turn.
_SLICE_RESOURCES: Final = 10
#: A topic of 10 or 20 bytes is answered with 35 configs: 13 KB as objects and, encoded, as bytes.
_ANSWER_PARTS: Final = 500
#: A config that is changed takes as long as so many resources without any.
_CONFIG: Final = 2
#: Resources that are refused in one go, each with a sentence.
_REFUSALS: Final = 50
#: Resources that are counted in one go.
_NAMES: Final = 1_000
#: What is asked of the authorizer for each of them; all others are the cluster's.
_AUTHORIZED_AS: Final = {TOPIC: ResourceType.TOPIC, GROUP: ResourceType.GROUP}
_RESOURCE_TYPES: Final = frozenset({TOPIC, BROKER, BROKER_LOGGER, CLIENT_METRICS, GROUP})

#: One for all entries: of thousands of topics there are a hundred thousand, and the collector looks at each list.
_NO_SYNONYMS: Final[list[DescribeConfigsSynonym]] = []
_DEFAULTS: Final = {CLIENT_METRICS: CLIENT_METRICS_CONFIGS, GROUP: GROUP_CONFIGS}
#: Configs of groups and client metrics that one answer tells: they have the defaults, whether they are there or not.
_DEFAULTS_MAX: Final = 10_000
#: Characters of values that are told of resources that are named again, each with some configs.
_REPEATED_CHARS_MAX: Final = 256 * 1024
#: How often resources that are named again are told again, each with all configs.
_WHOLE_AGAIN_MAX: Final = 16
#: ListConfigResources v0 was ListClientMetricsResources (KIP-1142).
_ANY_RESOURCE_VERSION: Final = 1

# DescribeConfigsResponse.ConfigSource
_SOURCE_TOPIC: Final = 1
_SOURCE_STATIC_BROKER: Final = 4
_SOURCE_DEFAULT: Final = 5
_SOURCE_BROKER_LOGGER: Final = 6


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
        synonyms=_NO_SYNONYMS,
        config_type=config.type,
        documentation=config.doc if with_doc else None,
    )


class _Told:
    """What an answer has said already: it may be hundreds of times as long as the question."""

    def __init__(self, shared: SharedEntries) -> None:
        #: Of the configs that topics don't set.
        self.shared = shared
        self._whole: set[tuple[int, str]] = set()
        self._partly: set[tuple[int, str]] = set()
        self._repeated_left = _REPEATED_CHARS_MAX
        self._whole_left = _WHOLE_AGAIN_MAX
        self._defaults_left = _DEFAULTS_MAX

    @classmethod
    def nothing(cls, request: DescribeConfigsRequest, context: RequestContext) -> _Told:
        """What the answer to ``request`` begins with."""
        return cls(SharedEntries(partial(_topic_entry, request, context)))

    def is_whole(self, resource: DescribeConfigsResource) -> bool:
        """Whether all of a resource was asked for and told, and enough was told again. Told it is from now on."""
        if resource.configuration_keys:
            return False
        key = (resource.resource_type, resource.resource_name)
        if key in self._whole:
            self._whole_left -= 1
            return self._whole_left < 0
        self._whole.add(key)
        return False

    def is_too_much(self, resource: DescribeConfigsResource, result: DescribeConfigsResult) -> bool:
        """Whether so much was told again of resources of which some configs are asked for again and again."""
        if not resource.configuration_keys:
            return False
        key = (resource.resource_type, resource.resource_name)
        if key in self._partly:
            texts = ((1 + len(one.synonyms)) * len(one.value or "") for one in result.configs)
            self._repeated_left -= sum(texts)
        self._partly.add(key)
        return self._repeated_left < 0

    def add_defaults(self, configs: int) -> None:
        """Some more configs are told of what needn't be there. Raises KafkaError."""
        self._defaults_left -= configs
        if self._defaults_left < 0:
            raise KafkaError(
                ErrorCode.INVALID_REQUEST,
                f"too many resources of this kind in one request: configs_max={_DEFAULTS_MAX}",
            )


def describe_configs_nowait(
    request: DescribeConfigsRequest, context: RequestContext, told: _Told | None = None
) -> DescribeConfigsResponse:
    """DescribeConfigs: all keys when none are named, with where their values come from.

    ``told`` is what earlier portions of the request were answered; what is told of this one is added.
    """
    results: list[DescribeConfigsResult] = []
    denied = _denied(Operation.DESCRIBE_CONFIGS, request.resources, context)
    told = told or _Told.nothing(request, context)
    for resource in request.resources:
        if told.is_whole(resource):
            continue
        result = _undescribed(resource)
        try:
            _check_permitted(resource, denied)
            if resource.resource_type == TOPIC:
                result.configs = _describe_topic(resource, request, context, told.shared)
            elif resource.resource_type == BROKER:
                result.configs = _describe_broker(resource, request, context)
            elif resource.resource_type == BROKER_LOGGER:
                result.configs = _describe_loggers(resource, context)
            elif not resource.resource_name:
                raise KafkaError(ErrorCode.INVALID_REQUEST, "the resource has no name")
            else:
                defaults = _DEFAULTS[resource.resource_type]
                names = _asked_for(resource, defaults)
                told.add_defaults(len(names))
                result.configs = [
                    default_entry(
                        name,
                        defaults[name],
                        # a subscription's configs have no synonyms in Kafka, not even themselves
                        with_synonyms=request.include_synonyms and resource.resource_type == GROUP,
                        with_doc=request.include_documentation,
                    )
                    for name in names
                ]
        except KafkaError as error:
            result.error_code = error.error_code
            result.error_message = str(error)
        if not told.is_too_much(resource, result):
            results.append(result)
    return DescribeConfigsResponse(results=results)


def _undescribed(
    resource: DescribeConfigsResource, error_code: int = 0, error_message: str = ""
) -> DescribeConfigsResult:
    return DescribeConfigsResult(
        error_code=error_code,
        error_message=error_message,
        resource_type=resource.resource_type,
        resource_name=resource.resource_name,
        configs=[],
    )


async def handle_describe_configs(
    request: DescribeConfigsRequest, context: RequestContext
) -> DescribeConfigsResponse | EncodedBody:
    """Describe configs in portions of resources, between which others get their turn.

    Of more than one portion nothing is kept but its bytes.
    """
    kinds = {resource.resource_type async for resource in in_portions(request.resources, _NAMES)}
    unknown = kinds - _RESOURCE_TYPES
    told = _Told.nothing(request, context)
    if len(request.resources) <= _SLICE_RESOURCES and not unknown:
        return describe_configs_nowait(request, context, told)
    answer = ConfigsAnswer(context.version, told.shared)
    if unknown:  # as in Kafka, all of the request is refused then
        error = _unsupported(min(unknown))
        async for resource in in_portions(request.resources, _REFUSALS):
            answer.add(_undescribed(resource, error.error_code, str(error)))
        return answer.body()
    for chunk in pieces(request.resources, _SLICE_RESOURCES):
        part = DescribeConfigsRequest(
            resources=list(chunk),
            include_synonyms=request.include_synonyms,
            include_documentation=request.include_documentation,
        )
        for result in describe_configs_nowait(part, context, told).results:
            answer.add(result)
        await anyio.lowlevel.checkpoint()
    return answer.body()


def _list_config_resources(
    request: ListConfigResourcesRequest, context: RequestContext
) -> Steps[ListConfigResourcesResponse]:
    """ListConfigResources (KIP-1142): topics and the broker, which has loggers; no client metrics, no groups."""
    wanted = frozenset(request.resource_types) or _RESOURCE_TYPES
    if context.version < _ANY_RESOURCE_VERSION:
        wanted = frozenset({CLIENT_METRICS})
    if not wanted <= _RESOURCE_TYPES:
        return ListConfigResourcesResponse(error_code=ErrorCode.UNSUPPORTED_VERSION, config_resources=[])
    logs = context.api.logs
    found: list[ConfigResource] = []
    if TOPIC in wanted:
        for name in sorted(logs.topics()):
            yield
            found.append(ConfigResource(resource_name=name, resource_type=TOPIC))
    if BROKER in wanted:
        found.append(ConfigResource(resource_name=str(logs.node_id), resource_type=BROKER))
    if BROKER_LOGGER in wanted:
        found.append(ConfigResource(resource_name=str(logs.node_id), resource_type=BROKER_LOGGER))
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
    keys = frozenset(resource.configuration_keys or ())
    return [name for name in names if not keys or name in keys]


def _describe_topic(
    resource: DescribeConfigsResource,
    request: DescribeConfigsRequest,
    context: RequestContext,
    shared: SharedEntries,
) -> list[DescribeConfigsResourceResult]:
    topic = _topic(resource.resource_name, context)
    overrides = topic.configs
    return [
        _topic_entry(request, context, name, overrides[name]) if name in overrides else shared[name]
        for name in _asked_for(resource, context.api.logs.topic_configs.known)
    ]


def _topic_entry(
    request: DescribeConfigsRequest, context: RequestContext, name: str, override: str | None = None
) -> DescribeConfigsResourceResult:
    logs = context.api.logs
    config, default = logs.topic_configs.known[name], logs.config_default(name)
    entry = config_entry(config, override, default, with_doc=request.include_documentation)
    if request.include_synonyms:
        entry.synonyms = _synonyms(config, entry, default)
    return entry


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
        check_is_own(resource.resource_name, context.api.logs.node_id)
    else:
        return []  # the dynamic default of all brokers: there are no dynamic broker configs
    configs = {**context.api.settings.broker_configs, "log.dirs": context.api.data_place.location}
    return [
        broker_entry(
            name,
            configs[name],
            with_synonyms=request.include_synonyms,
            with_doc=request.include_documentation,
        )
        for name in _asked_for(resource, sorted(configs))
    ]


def _describe_loggers(
    resource: DescribeConfigsResource, context: RequestContext
) -> list[DescribeConfigsResourceResult]:
    check_is_own(resource.resource_name, context.api.logs.node_id)
    levels = dict(logger_levels())
    return [
        DescribeConfigsResourceResult(
            name=name, value=levels[name], read_only=True, config_source=_SOURCE_BROKER_LOGGER, synonyms=[]
        )
        for name in _asked_for(resource, levels)
    ]


async def handle_incremental_alter_configs(
    request: IncrementalAlterConfigsRequest, context: RequestContext
) -> IncrementalAlterConfigsResponse:
    """IncrementalAlterConfigs (KIP-339): SET, DELETE, and APPEND and SUBTRACT on lists; a resource all or nothing."""
    responses: list[AlterConfigsResourceResponse] = []
    denied = _denied(Operation.ALTER_CONFIGS, request.resources, context)
    deadline = Deadline()
    table = context.api.logs.topic_configs.of_request()
    times = Counter(
        [(one.resource_type, one.resource_name) async for one in in_portions(request.resources, _NAMES)]
    )
    async for resource in in_portions(request.resources, more=lambda one: _CONFIG * len(one.configs)):
        response = AlterConfigsResourceResponse(
            error_message=None, resource_type=resource.resource_type, resource_name=resource.resource_name
        )
        responses.append(response)
        try:
            _check_permitted(resource, denied)
            _check_once(resource, times)
            kind = resource.resource_type
            check_changes(kind, resource.configs, table)
            _check_resource(kind, resource.resource_name)
            if kind != TOPIC:
                check_unstored(kind, resource.resource_name, resource.configs, context.api.logs.node_id)
                continue
            change = partial(changed, resource.configs, table)
            topic = _checked_topic(resource.resource_name, change, context)
            if not request.validate_only:
                await _change(topic, change, context, deadline)
        except OPERATING_ERRORS as error:
            response.error_code = error_code_of(error)
            response.error_message = str(error)
    return IncrementalAlterConfigsResponse(responses=responses)


async def handle_alter_configs(request: AlterConfigsRequest, context: RequestContext) -> AlterConfigsResponse:
    """AlterConfigs, the older way: what is not named goes back to its default."""
    responses: list[AlteredResource] = []
    denied = _denied(Operation.ALTER_CONFIGS, request.resources, context)
    deadline = Deadline()
    table = context.api.logs.topic_configs.of_request()
    times = Counter(
        [(one.resource_type, one.resource_name) async for one in in_portions(request.resources, _NAMES)]
    )
    async for resource in in_portions(request.resources, more=lambda one: _CONFIG * len(one.configs)):
        response = AlteredResource(
            error_message=None, resource_type=resource.resource_type, resource_name=resource.resource_name
        )
        responses.append(response)
        try:
            _check_permitted(resource, denied)
            _check_once(resource, times)
            kind = resource.resource_type
            check_values(resource.configs)
            _check_resource(kind, resource.resource_name)
            if kind == BROKER_LOGGER:
                raise KafkaError(ErrorCode.INVALID_REQUEST, "only IncrementalAlterConfigs is about loggers")
            if kind != TOPIC:
                changes = [AlterableConfig(name=one.name, value=one.value) for one in resource.configs]
                check_unstored(kind, resource.resource_name, changes, context.api.logs.node_id)
                continue
            change = partial(replaced, resource.configs, table)
            topic = _checked_topic(resource.resource_name, change, context)
            if not request.validate_only:
                await _change(topic, change, context, deadline)
        except OPERATING_ERRORS as error:
            response.error_code = error_code_of(error)
            response.error_message = str(error)
    return AlterConfigsResponse(responses=responses)


def _check_once(resource: _Resource, times: Counter[tuple[int, str]]) -> None:
    name = resource.resource_name
    if times[resource.resource_type, name] > 1:
        raise KafkaError(ErrorCode.INVALID_REQUEST, f"resource is in the request twice: name={quoted(name)}")


def _check_resource(kind: int, name: str) -> None:
    """That there is such a kind of resource, and what is named can be one."""
    if kind not in _RESOURCE_TYPES:
        raise _unsupported(kind)
    if not name and kind not in {BROKER, BROKER_LOGGER}:
        raise KafkaError(ErrorCode.INVALID_REQUEST, f"there is no such default: resource_type={kind}")
    if kind == TOPIC:
        _check_topic_name(name)


def _checked_topic(
    name: str, change: Callable[[Mapping[str, str]], Mapping[str, str]], context: RequestContext
) -> Topic:
    """The topic whose configs are to be changed. What is wrong with ``change`` is told before that there is no such
    topic, and either before anything waits.
    """
    known = context.api.logs.topics().get(name)
    if known is not None and known.internal:
        raise KafkaError(ErrorCode.INVALID_CONFIG, f"configs of internal topics are fixed: name={name}")
    change({} if known is None else known.configs)
    return existing_topic(name, context)


async def _change(
    topic: Topic,
    change: Callable[[Mapping[str, str]], Mapping[str, str]],
    context: RequestContext,
    deadline: Deadline,
) -> None:
    if (
        change(topic.configs) != topic.configs
    ):  # else nothing is written: who sets what is set pays for nothing
        context.changed_topics(1)
    await deadline.of(context.api.logs.change_configs(topic.name, change))


def _topic(name: str, context: RequestContext) -> Topic:
    if name not in context.api.logs.topics():
        _check_topic_name(name)
    return existing_topic(name, context)


def _check_topic_name(name: str) -> None:
    if not is_valid_topic_name(name):
        raise KafkaError(ErrorCode.INVALID_TOPIC_EXCEPTION, f"topic name is invalid: name={quoted(name)}")


def _unsupported(kind: int) -> KafkaError:
    return KafkaError(
        ErrorCode.INVALID_REQUEST,
        f"nothing has configs that is of this kind: resource_type={kind}",
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
        answer_parts=_ANSWER_PARTS,
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
