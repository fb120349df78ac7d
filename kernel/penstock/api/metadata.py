"""Metadata v0-13, DescribeCluster v0-2, DescribeTopicPartitions v0, ApiVersions v0-4."""

from __future__ import annotations

__all__ = (
    "APIS",
    "UNKNOWN_OPERATIONS",
    "api_versions_nowait",
    "describe_cluster_nowait",
    "describe_topic_partitions_nowait",
    "handle_metadata",
    "metadata_nowait",
    "unsupported_api_versions",
)

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from heapq import merge
from typing import Final

import anyio

from penstock.api.authorization import DENIED, each
from penstock.api.client import NAME_CHARS_MAX
from penstock.api.context import EVERYTHING, ApiContext, RequestContext
from penstock.api.declaration import Api, one_code
from penstock.api.errors import OPERATING_ERRORS, error_code_of
from penstock.api.lookup import find_topic
from penstock.api.metadata_topics import PARTITIONS_INLINE_MAX, describe_topic
from penstock.api.names import (
    RESERVED_TOPICS,
    absent_topic_code,
    by_metric_name,
    is_valid_topic_name,
    metric_name,
)
from penstock.api.portions import Steps, at_once, by_portions, first_portion, other_portions
from penstock.errors import AlreadyExistsError, NotFoundError, UnavailableError
from penstock.log.topic import NewTopic, Topic
from penstock.log.topic_config import INTERNAL_TOPICS
from penstock.spi.authorizer import CLUSTER_NAME, Operation, ResourceType
from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.api_versions import ApiVersion, ApiVersionsRequest, ApiVersionsResponse
from penstock.wire.messages.describe_cluster import (
    DescribeClusterBroker,
    DescribeClusterRequest,
    DescribeClusterResponse,
)
from penstock.wire.messages.describe_topic_partitions import (
    DescribeTopicPartitionsRequest,
    DescribeTopicPartitionsResponse,
    DescribeTopicPartitionsResponseCursor,
    DescribeTopicPartitionsResponsePartition,
    DescribeTopicPartitionsResponseTopic,
)
from penstock.wire.messages.metadata import (
    MetadataRequest,
    MetadataRequestTopic,
    MetadataResponse,
    MetadataResponseBroker,
    MetadataResponsePartition,
    MetadataResponseTopic,
)
from penstock.wire.splice import EncodedBody
from penstock.work.pieces import PORTION, in_portions, pieces

#: "Not asked for" in the fields of authorized operations.
UNKNOWN_OPERATIONS: Final = -(2**31)
#: Topics that are described before others get their turn.
_SLICE_TOPICS: Final = 100
#: Names that are gone through in one go.
_NAMES: Final = 500
#: What anybody may do with a topic.
_TOPIC_OPERATIONS: Final = EVERYTHING[ResourceType.TOPIC]

_ID_FIELD_VERSION: Final = 10
_BY_ID_VERSION: Final = 12
_ALL_BY_NULL_VERSION: Final = 1
_CLIENT_SOFTWARE_VERSION: Final = 3
_ENDPOINT_BROKERS: Final = 1
_ENDPOINT_CONTROLLERS: Final = 2
#: How long a request waits for topics that are being created. Kafka doesn't wait at all, and clients ask again; but
#: their other requests on this connection wait behind this one.
CREATION_WAIT_S: Final = 1.0
_PARTITIONS_PER_RESPONSE_MAX: Final = 2000
_ZERO_ID: Final = bytes(16)
#: KIP-511's rule for names and versions of client software.
_SOFTWARE: Final = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9\-.]*[a-zA-Z0-9])?")


def metadata_nowait(request: MetadataRequest, context: RequestContext) -> MetadataResponse | None:
    """The response, unless topics have to be created or waited for first, or it is a large one."""
    if len(request.topics or ()) > PORTION:
        return None
    code = at_once(_fault(request, context))
    if code:
        return at_once(_refused(request, code))
    if at_once(_missing(request, context)):
        return None
    topics = at_once(_wanted(request, context, {}))
    if _is_large(topics):
        return None
    response = _without_topics(request, context)
    response.topics = [_described(topic, context, _operations(request)) for topic in topics]
    return response


async def handle_metadata(
    request: MetadataRequest, context: RequestContext
) -> MetadataResponse | EncodedBody:
    """Metadata; creates topics that aren't there, if the client lets it and the broker is configured so.

    A topic whose creation takes longer than ``CREATION_WAIT_S``, its own or another client's, is
    LEADER_NOT_AVAILABLE: all clients ask again, and none gives up after a few times, as franz-go does on
    UNKNOWN_TOPIC_OR_PARTITION.
    """
    code = await by_portions(_fault(request, context))
    if code:
        return await by_portions(_refused(request, code))
    failed: dict[str, int] = {}
    if missing := await by_portions(_missing(request, context)):
        with anyio.move_on_after(CREATION_WAIT_S):
            await context.api.logs.wait_changed(missing)
            failed = await _create(await by_portions(_to_create(request, context)), context)
    topics = await by_portions(_wanted(request, context, failed))
    response = _without_topics(request, context)
    operations = _operations(request)
    # encoded topics are kept for everybody, so not where what is said of them depends on who asks
    is_same_for_all = operations == UNKNOWN_OPERATIONS or context.api.authorizer is None
    if is_same_for_all and _is_large(topics):
        return await context.api.metadata_fragments.respond(
            response, topics, context.api.logs, context.version, operations
        )
    for chunk in pieces(topics, _SLICE_TOPICS):
        response.topics += [_described(topic, context, operations) for topic in chunk]
        if len(chunk) == _SLICE_TOPICS:
            await anyio.lowlevel.checkpoint()
    return response


async def _create(names: Sequence[str], context: RequestContext) -> dict[str, int]:
    """Create the topics; the error code of each that isn't there afterwards."""
    if not names:
        return {}
    logs = context.api.logs
    taken = by_metric_name(logs.topics())
    failed = {
        name: int(ErrorCode.INVALID_TOPIC_EXCEPTION)
        async for name in in_portions(names)
        if metric_name(name) in taken
    }
    names = [name async for name in in_portions(names, _NAMES) if name not in failed]
    if not names:
        return failed
    count = context.api.settings.partitions_default
    context.changed_topics(count * len(names))
    try:
        results = await logs.create_topics(
            [NewTopic(name=name, partition_count=count, configs={}) for name in names]
        )
    except OPERATING_ERRORS:
        # too many changes wait, say, or the broker stops: of the topics that are there clients are told all the same
        return failed | dict.fromkeys(names, int(ErrorCode.LEADER_NOT_AVAILABLE))
    return failed | {
        # one that is made, and couldn't be opened yet, is opened later
        name: int(ErrorCode.LEADER_NOT_AVAILABLE) if logs.is_changing(name) else _code_of_failure(result)
        for name, result in zip(names, results, strict=True)
        if isinstance(result, Exception) and name not in logs.topics()
    }


def _code_of_failure(error: Exception) -> int:
    # others create and delete it meanwhile, or something keeps it from being made for now
    if isinstance(error, AlreadyExistsError | NotFoundError | UnavailableError):
        return int(ErrorCode.LEADER_NOT_AVAILABLE)
    return error_code_of(error)


def _missing(request: MetadataRequest, context: RequestContext) -> Steps[list[str]]:
    """The topics that aren't there, but are being created or have to be."""
    logs = context.api.logs
    names: dict[str, None] = {}
    for name in (yield from _unknown(request, context)):
        yield
        if logs.is_changing(name):
            names[name] = None
    names.update(dict.fromkeys((yield from _to_create(request, context))))
    return list(names)


def _fault(request: MetadataRequest, context: RequestContext) -> Steps[int]:
    """The fault of the request as a whole, for which Kafka answers an error; None if there is none."""
    if context.version < _ID_FIELD_VERSION:
        return ErrorCode.NONE
    topics, by_id = yield from _asked(request, context)
    for topic in topics:
        yield
        if context.version < _BY_ID_VERSION and (topic.name is None or bytes(topic.topic_id) != _ZERO_ID):
            return (
                ErrorCode.INVALID_REQUEST
            )  # versions 10 and 11 have the field and may not use it (KAFKA-12701)
        if topic.name is None and bytes(topic.topic_id) == _ZERO_ID and not by_id:
            return ErrorCode.UNKNOWN_SERVER_ERROR  # neither a name nor an id
    return ErrorCode.NONE


def _asked(
    request: MetadataRequest, context: RequestContext
) -> Steps[tuple[Sequence[MetadataRequestTopic], bool]]:
    """The topics that count, and whether they are asked for by id: as in Kafka, beside ids no name counts."""
    topics = request.topics or ()
    if context.version < _BY_ID_VERSION:
        return topics, False
    by_id: list[MetadataRequestTopic] = []
    for topic in topics:
        yield
        if bytes(topic.topic_id) != _ZERO_ID:
            by_id.append(topic)
    return by_id or topics, bool(by_id)


def _refused(request: MetadataRequest, code: int) -> Steps[MetadataResponse]:
    topics: list[MetadataResponseTopic] = []
    for topic in request.topics or ():
        yield
        name = topic.name or ""
        topics.append(
            MetadataResponseTopic(error_code=code, name=name, topic_id=topic.topic_id, partitions=[])
        )
    return MetadataResponse(error_code=code, brokers=[], cluster_id=None, controller_id=-1, topics=topics)


def _to_create(request: MetadataRequest, context: RequestContext) -> Steps[list[str]]:
    if not (request.allow_auto_topic_creation and context.api.settings.auto_create_topics):
        return []
    names: list[str] = []
    for name in (yield from _unknown(request, context)):
        yield
        # What a coordinator keeps its state in can be neither deleted nor given more partitions: it is for the broker
        # to make, not for whoever has a look at it.
        if is_valid_topic_name(name) and name not in RESERVED_TOPICS and name not in INTERNAL_TOPICS:
            names.append(name)
    return _creatable(names, context) if names and context.api.authorizer is not None else names


def _creatable(names: list[str], context: RequestContext) -> list[str]:
    """The names that the client may create: all by the cluster's permission, else by their own."""
    if context.allowed(Operation.CREATE, ResourceType.CLUSTER, (CLUSTER_NAME,)):
        return names
    return list(context.allowed(Operation.CREATE, ResourceType.TOPIC, names))


def _unknown(request: MetadataRequest, context: RequestContext) -> Steps[list[str]]:
    known = context.api.logs.topics()
    names: dict[str, None] = {}
    topics, by_id = yield from _asked(request, context)
    for topic in () if by_id else topics:
        yield
        if topic.name and topic.name not in known:
            names[topic.name] = None
    return list(context.allowed(Operation.DESCRIBE, ResourceType.TOPIC, list(names))) if names else []


def _without_topics(request: MetadataRequest, context: RequestContext) -> MetadataResponse:
    logs = context.api.logs
    advertised = context.client.advertised
    response = MetadataResponse(
        brokers=[
            MetadataResponseBroker(
                node_id=advertised.node_id, host=advertised.host, port=advertised.port, rack=advertised.rack
            )
        ],
        cluster_id=logs.cluster_id,
        controller_id=logs.controller_id,
        topics=[],
    )
    if request.include_cluster_authorized_operations:
        response.cluster_authorized_operations = context.authorized_operations(
            ResourceType.CLUSTER, CLUSTER_NAME
        )
    return response


def _operations(request: MetadataRequest) -> int:
    return _TOPIC_OPERATIONS if request.include_topic_authorized_operations else UNKNOWN_OPERATIONS


def _wanted(
    request: MetadataRequest, context: RequestContext, failed: dict[str, int]
) -> Steps[list[Topic | MetadataResponseTopic]]:
    """The topics that were asked for, each once; one that isn't there is described already, with its error."""
    if request.topics is None or (context.version < _ALL_BY_NULL_VERSION and not request.topics):
        topics = context.api.logs.topics()
        names = context.allowed(Operation.DESCRIBE, ResourceType.TOPIC, sorted(topics))
        return list(map(topics.__getitem__, names))
    found: dict[str | bytes, Topic | MetadataResponseTopic] = {}
    wanted, _ = yield from _asked(request, context)
    for asked in wanted:
        yield
        key = _key(asked)
        if key not in found:
            found[key] = _asked_topic(asked, context, failed)
    if context.api.authorizer is not None:
        _hide(found, request, context)
    if request.include_topic_authorized_operations:
        yield from _tell_operations_on_absent(found.values(), context)
    return list(found.values())


def _tell_operations_on_absent(
    topics: Iterable[Topic | MetadataResponseTopic], context: RequestContext
) -> Steps[None]:
    """As Kafka tells them also of a topic that isn't there, but not of one that is hidden or has no name."""
    for topic in topics:
        yield
        if (
            isinstance(topic, MetadataResponseTopic)
            and topic.name is not None
            and topic.error_code != DENIED[ResourceType.TOPIC]
        ):
            topic.topic_authorized_operations = context.authorized_operations(ResourceType.TOPIC, topic.name)


def _hide(
    found: dict[str | bytes, Topic | MetadataResponseTopic], request: MetadataRequest, context: RequestContext
) -> None:
    """Put an error in the place of the topics that the client may not describe, or would have to create and may not.

    As in Kafka, one that was asked for by name doesn't show its id, so not whether it is there; nor an id its name.
    """
    names = [topic.name for topic in found.values() if topic.name is not None]
    shown = frozenset(context.allowed(Operation.DESCRIBE, ResourceType.TOPIC, names))
    creates = request.allow_auto_topic_creation and context.api.settings.auto_create_topics
    absent = at_once(_unknown(request, context)) if creates else []
    refused = set(absent).difference(_creatable(absent, context)) if absent else frozenset[str]()
    code = DENIED[ResourceType.TOPIC]
    for key, topic in found.items():
        if topic.name is None or (topic.name in shown and topic.name not in refused):
            continue
        if isinstance(key, bytes):
            found[key] = MetadataResponseTopic(error_code=code, name=None, topic_id=key, partitions=[])
        else:
            found[key] = MetadataResponseTopic(error_code=code, name=key, partitions=[])


def _key(asked: MetadataRequestTopic) -> str | bytes:
    """The key by which a topic is requested: its id if there is one, as in Kafka, else its name."""
    topic_id = bytes(asked.topic_id)
    return asked.name if asked.name is not None and topic_id == _ZERO_ID else topic_id


def _is_large(topics: Sequence[Topic | MetadataResponseTopic]) -> bool:
    partitions = 0
    for topic in topics:
        partitions += 1 if isinstance(topic, MetadataResponseTopic) else topic.partition_count
        if partitions > PARTITIONS_INLINE_MAX:
            return True
    return False


def _described(
    topic: Topic | MetadataResponseTopic, context: RequestContext, operations: int
) -> MetadataResponseTopic:
    if isinstance(topic, MetadataResponseTopic):
        return topic
    if operations != UNKNOWN_OPERATIONS:
        operations = context.authorized_operations(ResourceType.TOPIC, topic.name)
    return describe_topic(topic, context.api.logs, operations)


def _asked_topic(
    asked: MetadataRequestTopic, context: RequestContext, failed: dict[str, int]
) -> Topic | MetadataResponseTopic:
    logs = context.api.logs
    name = _key(asked)
    topic = find_topic(name, context)
    if topic is not None:
        return topic
    if isinstance(name, bytes):
        return MetadataResponseTopic(
            error_code=ErrorCode.UNKNOWN_TOPIC_ID, name=None, topic_id=asked.topic_id, partitions=[]
        )
    if not is_valid_topic_name(name):
        code = int(ErrorCode.INVALID_TOPIC_EXCEPTION)
    else:
        absent = ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
        if logs.is_changing(name):
            absent = ErrorCode.LEADER_NOT_AVAILABLE
        code = failed.get(name, int(absent))
    is_internal = name in INTERNAL_TOPICS
    return MetadataResponseTopic(error_code=code, name=name, is_internal=is_internal, partitions=[])


def describe_cluster_nowait(
    request: DescribeClusterRequest, context: RequestContext
) -> DescribeClusterResponse:
    """DescribeCluster (KIP-700): the one broker there is."""
    logs = context.api.logs
    if request.endpoint_type != _ENDPOINT_BROKERS:
        # KIP-919: controllers have no endpoint of their own here.
        is_known = request.endpoint_type == _ENDPOINT_CONTROLLERS
        return DescribeClusterResponse(
            error_code=ErrorCode.MISMATCHED_ENDPOINT_TYPE
            if is_known
            else ErrorCode.UNSUPPORTED_ENDPOINT_TYPE,
            error_message="this endpoint is a broker" if is_known else "there is no such type of endpoint",
            endpoint_type=_ENDPOINT_BROKERS,
            cluster_id="",
            brokers=[],
        )
    advertised = context.client.advertised
    response = DescribeClusterResponse(
        endpoint_type=_ENDPOINT_BROKERS,
        cluster_id=logs.cluster_id,
        controller_id=logs.controller_id,
        brokers=[
            DescribeClusterBroker(
                broker_id=advertised.node_id, host=advertised.host, port=advertised.port, rack=advertised.rack
            )
        ],
    )
    if request.include_cluster_authorized_operations:
        response.cluster_authorized_operations = context.authorized_operations(
            ResourceType.CLUSTER, CLUSTER_NAME
        )
    return response


def _describe_topic_partitions(
    request: DescribeTopicPartitionsRequest, context: RequestContext
) -> Steps[DescribeTopicPartitionsResponse]:
    """DescribeTopicPartitions (KIP-966): topics in the order of their names, in pages.

    A cursor that can't be one of ours is INVALID_REQUEST, which the response has room for only beside topics.
    """
    logs = context.api.logs
    if (yield from _is_bad_cursor(request)):
        code = ErrorCode.INVALID_REQUEST
        refused: list[DescribeTopicPartitionsResponseTopic] = []
        for asked in request.topics:
            yield
            refused.append(
                DescribeTopicPartitionsResponseTopic(error_code=code, name=asked.name, partitions=[])
            )
        return DescribeTopicPartitionsResponse(topics=refused)
    left = min(max(request.response_partition_limit, 1), _PARTITIONS_PER_RESPONSE_MAX)
    all_topics = not request.topics
    names = sorted(logs.topics()) if all_topics else (yield from _asked_in_order(request))
    denied = context.denied(Operation.DESCRIBE, ResourceType.TOPIC, names)
    if all_topics and denied:
        names = [name for name in names if name not in denied]
    first_partition = 0
    if request.cursor is not None:
        at = bisect_left(names, request.cursor.topic_name)
        if at < len(names) and names[at] == request.cursor.topic_name:
            first_partition = request.cursor.partition_index
        names = names[at:]
    response = DescribeTopicPartitionsResponse(topics=[])
    for name in names:
        yield
        topic = logs.topics().get(name)
        if name in denied:
            first_partition = 0  # the cursor was in this one
            response.topics.append(
                DescribeTopicPartitionsResponseTopic(
                    error_code=DENIED[ResourceType.TOPIC], name=name, partitions=[]
                )
            )
            continue
        if left == 0:  # what isn't there takes nothing of the limit, and yet doesn't come once it is used up
            response.next_cursor = DescribeTopicPartitionsResponseCursor(topic_name=name, partition_index=0)
            break
        if topic is None:
            first_partition = 0  # the cursor was in this one
            response.topics.append(
                DescribeTopicPartitionsResponseTopic(
                    error_code=absent_topic_code(name),
                    name=name,
                    is_internal=name in INTERNAL_TOPICS,
                    partitions=[],
                    topic_authorized_operations=_TOPIC_OPERATIONS,
                )
            )
            continue
        indexes = range(topic.partition_count)[first_partition : first_partition + left]
        operations = context.authorized_operations(ResourceType.TOPIC, name)
        page = describe_topic(topic, logs, operations, indexes).partitions
        response.topics.append(
            DescribeTopicPartitionsResponseTopic(
                name=name,
                topic_id=topic.id,
                is_internal=topic.internal,
                partitions=[_described_partition(partition) for partition in page],
                topic_authorized_operations=operations,
            )
        )
        left -= len(page)
        reached = first_partition + len(page)
        first_partition = 0
        if reached < topic.partition_count:
            response.next_cursor = DescribeTopicPartitionsResponseCursor(
                topic_name=name, partition_index=reached
            )
            break
    return response


def _asked_in_order(request: DescribeTopicPartitionsRequest) -> Steps[list[str]]:
    """Each name once, in order: sorted in pieces, since there may be 150,000."""
    distinct: dict[str, None] = {}
    for topic in request.topics:
        yield
        distinct[topic.name] = None
    ordered: list[list[str]] = []
    for some in pieces(list(distinct), _SLICE_TOPICS):
        yield
        ordered.append(sorted(some))
    names: list[str] = []
    for name in merge(*ordered):
        yield
        names.append(name)
    return names


def _is_bad_cursor(request: DescribeTopicPartitionsRequest) -> Steps[bool]:
    cursor = request.cursor
    if cursor is None:
        return False
    if cursor.partition_index < 0:
        return True
    for topic in request.topics:
        yield
        if topic.name == cursor.topic_name:
            return False
    return bool(request.topics)


def _described_partition(partition: MetadataResponsePartition) -> DescribeTopicPartitionsResponsePartition:
    return DescribeTopicPartitionsResponsePartition(
        error_code=partition.error_code,
        partition_index=partition.partition_index,
        leader_id=partition.leader_id,
        leader_epoch=partition.leader_epoch,
        replica_nodes=partition.replica_nodes,
        isr_nodes=partition.isr_nodes,
        eligible_leader_replicas=[],  # null would end Java's admin client
        last_known_elr=[],
        offline_replicas=partition.offline_replicas,
    )


def api_versions_nowait(request: ApiVersionsRequest, context: RequestContext) -> ApiVersionsResponse:
    """ApiVersions; v3+ names the client's software (KIP-511). No features: none of them is done here yet."""
    if context.version >= _CLIENT_SOFTWARE_VERSION:
        name, version = request.client_software_name, request.client_software_version
        if not _SOFTWARE.fullmatch(name) or not _SOFTWARE.fullmatch(version):
            return ApiVersionsResponse(error_code=ErrorCode.INVALID_REQUEST, api_keys=[])
        context.client.software_name = name[:NAME_CHARS_MAX]
        context.client.software_version = version[:NAME_CHARS_MAX]
    return ApiVersionsResponse(
        api_keys=[
            ApiVersion(api_key=key, min_version=low, max_version=high)
            for key, low, high in context.api.api_versions
        ]
    )


def unsupported_api_versions(api: ApiContext) -> ApiVersionsResponse:
    """The answer, in version 0, to an ApiVersions of an unknown version: the versions of ApiVersions (KIP-511)."""
    return ApiVersionsResponse(
        error_code=ErrorCode.UNSUPPORTED_VERSION,
        api_keys=[
            ApiVersion(api_key=key, min_version=low, max_version=high)
            for key, low, high in api.api_versions
            if key == ApiKey.API_VERSIONS
        ],
    )


describe_topic_partitions_nowait: Final = first_portion(_describe_topic_partitions)

APIS: Final = (
    Api(
        key=ApiKey.METADATA,
        needs=(
            each(Operation.DESCRIBE, ResourceType.TOPIC),
            each(Operation.CREATE, ResourceType.CLUSTER),
            each(Operation.CREATE, ResourceType.TOPIC),
        ),
        nowait=metadata_nowait,
        handler=handle_metadata,
        element_bytes=1_024,
        note="creates missing topics when the client asks and `topics.auto_create` is on",
    ),
    Api(
        key=ApiKey.API_VERSIONS,
        needs=(),
        nowait=api_versions_nowait,
        failure=one_code(ApiVersionsResponse),
        unsupported=unsupported_api_versions,
        before_identity=True,
        note="an unknown version gets a version 0 answer (KIP-511); no features are finalised",
    ),
    Api(
        key=ApiKey.DESCRIBE_CLUSTER,
        needs=(),
        nowait=describe_cluster_nowait,
        failure=one_code(DescribeClusterResponse),
        note="the one broker",
    ),
    Api(
        key=ApiKey.DESCRIBE_TOPIC_PARTITIONS,
        needs=(each(Operation.DESCRIBE, ResourceType.TOPIC),),
        nowait=describe_topic_partitions_nowait,
        handler=other_portions,
        element_bytes=768,
        note="pages with cursors, in the order of names",
    ),
)
