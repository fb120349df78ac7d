"""CreateTopics v2-7, DeleteTopics v1-6, CreatePartitions v0-3."""

from __future__ import annotations

__all__ = ("APIS", "handle_create_partitions", "handle_create_topics", "handle_delete_topics")

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Final

import anyio.lowlevel

from penstock.api.authorization import DENIED, NOBODY, each
from penstock.api.configs import config_entry
from penstock.api.context import RequestContext
from penstock.api.deadline import Deadline
from penstock.api.declaration import Api
from penstock.api.errors import (
    OPERATING_ERRORS,
    TIMED_OUT,
    controller_code_of,
    error_message_of,
    is_expected,
    quoted,
)
from penstock.api.lookup import check_topic_permitted, existing_topic, find_topic
from penstock.api.names import RESERVED_TOPICS, by_metric_name, metric_name, topic_name_fault
from penstock.errors import InvalidRequestError, again, kept
from penstock.log.errors import KafkaError
from penstock.log.manager import LogManager
from penstock.log.topic import NewTopic, Topic
from penstock.log.topic_config import TopicConfig, TopicConfigTable
from penstock.spi.authorizer import CLUSTER_NAME, Operation, ResourceType
from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.create_partitions import (
    CreatePartitionsRequest,
    CreatePartitionsResponse,
    CreatePartitionsTopic,
    CreatePartitionsTopicResult,
)
from penstock.wire.messages.create_topics import (
    CreatableTopic,
    CreatableTopicConfigs,
    CreatableTopicResult,
    CreateTopicsRequest,
    CreateTopicsResponse,
)
from penstock.wire.messages.delete_topics import (
    DeletableTopicResult,
    DeleteTopicsRequest,
    DeleteTopicsResponse,
    DeleteTopicState,
)
from penstock.work.pieces import in_portions

_DEFAULT: Final = -1
_BY_ID_VERSION: Final = 6
_ZERO_ID: Final = bytes(16)
#: Topics that are counted, looked at, grown or described with their configs in one go, if that takes no waiting.
_NAMES: Final = 500
_CHECKS: Final = 50
_GROWTHS: Final = 20
#: Configs, or assigned partitions, of a topic that count as another topic.
_PARTS_OF_CHECK: Final = 10
_DESCRIPTIONS: Final = 10
#: Kafka's bound for one request; ours are larger where one topic may be.
_PARTITIONS_AT_ONCE_MAX: Final = 10_000


async def handle_create_topics(request: CreateTopicsRequest, context: RequestContext) -> CreateTopicsResponse:
    """CreateTopics: each topic for itself, those that are valid in one go."""
    times = Counter([topic.name async for topic in in_portions(request.topics, _NAMES)])
    results: dict[str, CreatableTopicResult] = {}
    valid: list[NewTopic] = []
    logs, deadline = context.api.logs, Deadline(request.timeout_ms)
    table = logs.topic_configs.of_request()
    denied = NOBODY
    if not context.may(Operation.CREATE, ResourceType.CLUSTER, CLUSTER_NAME):
        denied = context.denied(Operation.CREATE, ResourceType.TOPIC, times)
    left = [
        name
        async for name in in_portions(times, _NAMES)
        if times[name] == 1 and name not in denied and name not in RESERVED_TOPICS
    ]
    try:
        if left:  # one that is being deleted won't be there
            _check_time(request.timeout_ms)
            await _check_total(request.topics, frozenset(left), context)
            changing = [name async for name in in_portions(left, _NAMES) if logs.is_changing(name)]
            await deadline.of(logs.wait_changed(changing))
    except KafkaError as error:
        # as in Kafka, which doesn't look further, and answers what is named twice twice
        late, why = error.error_code, str(error)
        return CreateTopicsResponse(
            topics=[
                CreatableTopicResult(name=asked.name, error_code=late, error_message=why, configs=[])
                async for asked in in_portions(request.topics, _NAMES)
            ]
        )
    taken = by_metric_name(logs.topics())
    await anyio.lowlevel.checkpoint()  # that was a portion of its own
    hidden = context.denied(Operation.DESCRIBE_CONFIGS, ResourceType.TOPIC, times)
    async for asked in in_portions(request.topics, _CHECKS, more=_more_checks):
        if asked.name in results:
            continue
        result = results[asked.name] = CreatableTopicResult(name=asked.name, error_message=None, configs=[])
        try:
            _check_once(asked.name, times)
            check_topic_permitted(asked.name, denied)
            valid.append(_new_topic(asked, taken, context, table))
        except KafkaError as error:
            result.error_code = error.error_code
            result.error_message = str(error)
    unset = {name: _described(config, None) for name, config in table.known.items()} if valid else {}
    if request.validate_only:
        counted = 0
        async for new in in_portions(valid, _DESCRIPTIONS):
            result = results[new.name]
            try:
                context.api.logs.check_room(new.partition_count, counted)
            except KafkaError as error:
                _refuse(result, error)
                continue
            counted += new.partition_count
            _describe(result, new, _ZERO_ID, hidden, table, unset)
    elif valid:
        created: Sequence[Topic | Exception]
        context.changed_topics(sum([new.partition_count async for new in in_portions(valid, _NAMES)]))
        try:
            created = await deadline.of(logs.create_topics(valid))
        except OPERATING_ERRORS as error:
            created = [kept(error)] * len(valid)
        async for new, outcome in in_portions(zip(valid, created, strict=True), _DESCRIPTIONS):
            result = results[new.name]
            if isinstance(outcome, Exception):
                _refuse(result, outcome)
            else:
                _describe(result, new, outcome.id, hidden, table, unset)
    return CreateTopicsResponse(topics=list(results.values()))


def _more_checks(asked: CreatableTopic) -> int:
    return len(asked.configs) // _PARTS_OF_CHECK + len(asked.assignments) // _PARTS_OF_CHECK


def _refuse(result: CreatableTopicResult | DeletableTopicResult, outcome: Exception) -> None:
    if not is_expected(outcome):
        raise again(outcome)  # a bug to be shown, and no answer for a client
    result.error_code = controller_code_of(outcome)
    result.error_message = error_message_of(outcome)


def _check_once(name: str, times: Counter[str]) -> None:
    if times[name] > 1:
        raise KafkaError(ErrorCode.INVALID_REQUEST, f"topic is in the request twice: name={quoted(name)}")


def _check_time(timeout_ms: int) -> None:
    if timeout_ms <= 0:
        raise KafkaError(ErrorCode.REQUEST_TIMED_OUT, TIMED_OUT)


async def _check_total(topics: list[CreatableTopic], names: frozenset[str], context: RequestContext) -> None:
    """Kafka refuses a request as a whole where it is of more partitions than its controller takes at once."""
    asked_for = in_portions(topics, _NAMES)
    partitions = sum(
        [max(0, _partitions_asked(one, context)) async for one in asked_for if one.name in names]
    )
    partitions_max = max(context.api.settings.partitions_per_topic_max, _PARTITIONS_AT_ONCE_MAX)
    if partitions > partitions_max:
        raise KafkaError(
            ErrorCode.POLICY_VIOLATION,
            f"one request creates at most {partitions_max} partitions: partitions={partitions}",
        )


def _partitions_asked(asked: CreatableTopic, context: RequestContext) -> int:
    if asked.assignments:
        return len(asked.assignments)
    count = asked.num_partitions
    return context.api.settings.partitions_default if count == _DEFAULT else count


def _new_topic(
    asked: CreatableTopic, taken: Mapping[str, str], context: RequestContext, table: TopicConfigTable
) -> NewTopic:
    """``taken`` has the topics that are there by the names that their metrics have.

    Of several faults the one is told that Kafka finds first: a kept name, the topic's size, its name, its configs.
    """
    if asked.name in RESERVED_TOPICS:
        raise KafkaError(
            ErrorCode.INVALID_REQUEST, f"the name is kept for the cluster itself: name={asked.name}"
        )
    partitions = _partitions_asked(asked, context)
    partitions_max = context.api.settings.partitions_per_topic_max
    if partitions > partitions_max:
        raise KafkaError(
            ErrorCode.POLICY_VIOLATION,
            f"a topic has at most {partitions_max} partitions: partitions={partitions}",
        )
    fault = topic_name_fault(asked.name)
    if fault is not None:
        raise KafkaError(ErrorCode.INVALID_TOPIC_EXCEPTION, fault)
    if asked.name in context.api.logs.topics():
        raise KafkaError(ErrorCode.TOPIC_ALREADY_EXISTS, f"topic exists already: name={asked.name}")
    other = taken.get(metric_name(asked.name))
    if other is not None:
        raise KafkaError(
            ErrorCode.INVALID_TOPIC_EXCEPTION,
            f"topic differs from another one only in '.' and '_', which metrics can't tell apart: "
            f"name={asked.name} other={other}",
        )
    configs = table.validate_all({config.name: config.value for config in asked.configs})
    return NewTopic(name=asked.name, partition_count=_partition_count(asked, context), configs=configs)


def _partition_count(asked: CreatableTopic, context: RequestContext) -> int:
    settings = context.api.settings
    node_id = context.api.logs.node_id
    if asked.assignments:
        if asked.num_partitions != _DEFAULT or asked.replication_factor != _DEFAULT:
            raise KafkaError(
                ErrorCode.INVALID_REQUEST,
                "with a replica assignment, partition count and replication factor must be -1",
            )
        if sorted(a.partition_index for a in asked.assignments) != list(range(len(asked.assignments))):
            raise KafkaError(
                ErrorCode.INVALID_REPLICA_ASSIGNMENT,
                "assigned partitions must be numbered from 0 without a gap",
            )
        for assignment in asked.assignments:
            _check_replicas(assignment.broker_ids, node_id)
        count = len(asked.assignments)
    else:
        count = settings.partitions_default if asked.num_partitions == _DEFAULT else asked.num_partitions
    is_no_factor = asked.replication_factor < _DEFAULT or asked.replication_factor == 0
    if count < 1 and not is_no_factor:
        raise KafkaError(ErrorCode.INVALID_PARTITIONS, f"a topic has a partition or more: partitions={count}")
    if not asked.assignments and asked.replication_factor not in {_DEFAULT, 1}:
        raise KafkaError(
            ErrorCode.INVALID_REPLICATION_FACTOR,
            "replication factor must be 1 or -1: there is one broker, and durability comes from the "
            f"write-ahead log: replication_factor={asked.replication_factor}",
        )
    return count


def _check_replicas(broker_ids: Sequence[int], node_id: int) -> None:
    if list(broker_ids) != [node_id]:
        raise KafkaError(
            ErrorCode.INVALID_REPLICA_ASSIGNMENT,
            f"each partition has one replica, on the one broker there is: node_id={node_id}",
        )


def _describe(
    result: CreatableTopicResult,
    new: NewTopic,
    topic_id: bytes,
    hidden: Collection[str],
    table: TopicConfigTable,
    unset: Mapping[str, CreatableTopicConfigs],
) -> None:
    """``unset`` are the configs as topics have them that don't set them: the same objects for thousands of topics."""
    result.topic_id = topic_id
    if new.name in hidden:  # KIP-525
        result.topic_config_error_code = DENIED[ResourceType.TOPIC]
        return
    result.num_partitions = new.partition_count
    result.replication_factor = 1
    # never null: Java's admin client dies of it
    result.configs = [
        _described(config, new.configs[name]) if name in new.configs else unset[name]
        for name, config in table.known.items()
    ]


def _described(config: TopicConfig, override: str | None) -> CreatableTopicConfigs:
    entry = config_entry(config, override)
    return CreatableTopicConfigs(
        name=entry.name, value=entry.value, read_only=False, config_source=entry.config_source
    )


async def handle_delete_topics(request: DeleteTopicsRequest, context: RequestContext) -> DeleteTopicsResponse:
    """DeleteTopics by name, from v6 on also by id."""
    logs = context.api.logs
    if context.version >= _BY_ID_VERSION:
        asked = request.topics
    else:
        asked = [DeleteTopicState(name=name) async for name in in_portions(request.topic_names)]
    # one that is being created will be there, and one that is being deleted won't
    deadline = Deadline(request.timeout_ms)
    names_asked = [
        name async for one in in_portions(asked) if (name := _name_asked(one, context)) is not None
    ]
    denied = context.denied(Operation.DELETE, ResourceType.TOPIC, names_asked)
    hidden = context.denied(Operation.DESCRIBE, ResourceType.TOPIC, names_asked)
    asked_times = Counter([_key(state) async for state in in_portions(asked, _NAMES) if _is_clear(state)])
    left = [
        state
        async for state in in_portions(asked)
        if _is_clear(state) and asked_times[_key(state)] == 1 and state.name not in denied
    ]
    try:
        if left:  # else there is nothing to wait for, nor to be late with
            _check_time(request.timeout_ms)
            await deadline.of(logs.wait_changed([one.name for one in left if one.name is not None]))
    except KafkaError as error:
        responses = [_not_deleted(state, error) async for state in in_portions(asked)]
        return DeleteTopicsResponse(responses=responses)
    results, found = await _find_deletable(asked, asked_times, context, denied, hidden)
    times = Counter([name async for name, _ in in_portions(found, _NAMES)])
    names: dict[str, DeletableTopicResult] = {}
    #: Of those that were asked for by id: one that comes with the name meanwhile is another topic.
    ids: dict[str, bytes] = {}
    twice: set[str] = set()
    dropped: set[int] = set()
    async for name, result in in_portions(found):
        result.name = name
        topic = logs.topics().get(name)
        if bytes(result.topic_id) != _ZERO_ID:
            ids[name] = bytes(result.topic_id)
        elif topic is not None:  # else somebody deleted it meanwhile, which the outcome says
            result.topic_id = topic.id
        if times[name] > 1:  # once by its name and once by its id
            result.error_code = ErrorCode.INVALID_REQUEST
            result.error_message = f"topic is in the request twice: name={name}"
            if name in twice:
                dropped.add(id(result))
            twice.add(name)
            continue
        names[name] = result
    if names:
        outcomes: Sequence[Exception | None]
        context.changed_topics(sum([_partitions(logs, name) async for name in in_portions(names, _NAMES)]))
        try:
            outcomes = await deadline.of(logs.delete_topics(list(names), ids))
        except OPERATING_ERRORS as error:
            outcomes = [kept(error)] * len(names)
        async for result, outcome in in_portions(zip(names.values(), outcomes, strict=True)):
            if outcome is not None:
                _refuse(result, outcome)
    responses = [one async for one in in_portions(results, _NAMES) if id(one) not in dropped]
    return DeleteTopicsResponse(responses=responses)


def _partitions(logs: LogManager, name: str) -> int:
    topic = logs.topics().get(name)
    return 0 if topic is None else topic.partition_count


async def _find_deletable(
    asked: Sequence[DeleteTopicState],
    asked_times: Counter[str | bytes],
    context: RequestContext,
    denied: Collection[str],
    hidden: Collection[str],
) -> tuple[list[DeletableTopicResult], list[tuple[str, DeletableTopicResult]]]:
    """A result for each topic that was asked, those refused with their errors; and the names of the others."""
    results: list[DeletableTopicResult] = []
    found: list[tuple[str, DeletableTopicResult]] = []
    repeated: set[str | bytes] = set()
    async for state in in_portions(asked):
        key = _key(state)
        if key in repeated and _is_clear(state):
            continue
        result = DeletableTopicResult(name=state.name, topic_id=state.topic_id)
        results.append(result)
        try:
            # whoever asks so has made a mistake: nothing of it is deleted, as in Kafka, whether it is there or not
            if asked_times[key] > 1 and _is_clear(state):
                repeated.add(key)
                raise KafkaError(ErrorCode.INVALID_REQUEST, "the topic is in the request twice")
            found.append((_name_to_delete(state, result, context, denied, hidden), result))
        except KafkaError as error:
            result.error_code = error.error_code
            result.error_message = str(error)
    return results, found


def _not_deleted(state: DeleteTopicState, error: KafkaError) -> DeletableTopicResult:
    return DeletableTopicResult(
        name=state.name, topic_id=state.topic_id, error_code=error.error_code, error_message=str(error)
    )


def _is_clear(state: DeleteTopicState) -> bool:
    """Whether a topic is named either by its name or by its id: what isn't clear is refused for itself alone."""
    return (state.name is None) != (bytes(state.topic_id) == _ZERO_ID)


def _key(state: DeleteTopicState) -> str | bytes:
    return bytes(state.topic_id) if state.name is None else state.name


def _name_asked(state: DeleteTopicState, context: RequestContext) -> str | None:
    """The topic's name, given or found by id; None if the id is no topic's."""
    if state.name is not None:
        return state.name
    topic = find_topic(state.topic_id, context)
    return None if topic is None else topic.name


def _name_to_delete(
    state: DeleteTopicState,
    result: DeletableTopicResult,
    context: RequestContext,
    denied: Collection[str],
    hidden: Collection[str],
) -> str:
    """The topic's name; whoever may describe a topic and not delete it is told its name, as in Kafka."""
    if state.name is None:
        if bytes(state.topic_id) == _ZERO_ID:
            raise KafkaError(
                ErrorCode.INVALID_REQUEST, "a topic is named by its name or by its id, not by neither"
            )
        topic = find_topic(state.topic_id, context)
        if topic is None:
            raise KafkaError(ErrorCode.UNKNOWN_TOPIC_ID, "there is no topic with this id")
        if topic.name in denied and topic.name not in hidden:
            result.name = topic.name
        if topic.name in denied or topic.name in hidden:
            raise KafkaError(DENIED[ResourceType.TOPIC], "not permitted: the topic of this id")
    else:
        if state.topic_id != _ZERO_ID:
            raise KafkaError(
                ErrorCode.INVALID_REQUEST, "a topic is named by its name or by its id, not by both"
            )
        check_topic_permitted(state.name, denied)
        topic = existing_topic(state.name, context)
    if topic.internal:
        raise KafkaError(
            ErrorCode.TOPIC_AUTHORIZATION_FAILED, f"internal topics can't be deleted: name={topic.name}"
        )
    return topic.name


async def handle_create_partitions(
    request: CreatePartitionsRequest, context: RequestContext
) -> CreatePartitionsResponse:
    """CreatePartitions: one result per topic, always."""
    deadline = Deadline(request.timeout_ms)
    times = Counter([topic.name async for topic in in_portions(request.topics, _NAMES)])
    denied = context.denied(Operation.ALTER, ResourceType.TOPIC, times)
    if request.timeout_ms <= 0:
        left = [name async for name in in_portions(times, _NAMES) if times[name] == 1 and name not in denied]
        if left:  # as in Kafka, which doesn't look further, and answers what is named twice twice
            late = ErrorCode.REQUEST_TIMED_OUT
            return CreatePartitionsResponse(
                results=[
                    CreatePartitionsTopicResult(name=asked.name, error_code=late, error_message=TIMED_OUT)
                    async for asked in in_portions(request.topics, _NAMES)
                ]
            )
    results: dict[str, CreatePartitionsTopicResult] = {}
    counted = 0
    async for asked in in_portions(
        request.topics, _GROWTHS, more=lambda one: len(one.assignments or ()) // _PARTS_OF_CHECK
    ):
        if asked.name in results:
            continue
        result = results[asked.name] = CreatePartitionsTopicResult(name=asked.name)
        try:
            _check_once(asked.name, times)
            check_topic_permitted(asked.name, denied)
            if context.api.logs.is_changing(asked.name):
                await deadline.of(context.api.logs.wait_changed([asked.name]))
            added = _check_growth(asked, context)
            if request.validate_only:
                context.api.logs.check_room(added, counted)
                counted += added
            else:
                context.changed_topics(added)
                await deadline.of(_grow(asked, context))
        except OPERATING_ERRORS as error:
            result.error_code = controller_code_of(error)
            result.error_message = str(error)
    return CreatePartitionsResponse(results=list(results.values()))


async def _grow(asked: CreatePartitionsTopic, context: RequestContext) -> None:
    try:
        await context.api.logs.create_partitions(asked.name, asked.count)
    except InvalidRequestError as error:  # somebody else added as many meanwhile
        raise KafkaError(ErrorCode.INVALID_PARTITIONS, str(error)) from error


def _check_growth(asked: CreatePartitionsTopic, context: RequestContext) -> int:
    """How many partitions the topic would get.

    Of several faults the one is told that Kafka finds first; what only Penstock refuses comes last.
    """
    topic = existing_topic(asked.name, context)
    if asked.count <= topic.partition_count:
        raise KafkaError(
            ErrorCode.INVALID_PARTITIONS,
            f"a topic can only get more partitions: "
            f"name={asked.name} partitions={topic.partition_count} asked={asked.count}",
        )
    if asked.assignments is not None:
        if len(asked.assignments) != asked.count - topic.partition_count:
            raise KafkaError(
                ErrorCode.INVALID_REPLICA_ASSIGNMENT, "there must be one assignment for each new partition"
            )
        for assignment in asked.assignments:
            _check_replicas(assignment.broker_ids, context.api.logs.node_id)
    if topic.internal:
        raise KafkaError(ErrorCode.INVALID_REQUEST, f"internal topics don't grow: name={topic.name}")
    maximum = context.api.settings.partitions_per_topic_max
    if asked.count > maximum:
        raise KafkaError(
            ErrorCode.INVALID_PARTITIONS,
            f"a topic has at most {maximum} partitions: name={asked.name} asked={asked.count}",
        )
    return asked.count - topic.partition_count


APIS: Final = (
    Api(
        key=ApiKey.CREATE_TOPICS,
        # the cluster's permission covers all topics; configs are shown to who may describe them (KIP-525)
        needs=(
            each(Operation.CREATE, ResourceType.CLUSTER),
            each(Operation.CREATE, ResourceType.TOPIC),
            each(Operation.DESCRIBE_CONFIGS, ResourceType.TOPIC),
        ),
        handler=handle_create_topics,
        element_bytes=768,
    ),
    Api(
        key=ApiKey.DELETE_TOPICS,
        needs=(each(Operation.DELETE, ResourceType.TOPIC), each(Operation.DESCRIBE, ResourceType.TOPIC)),
        handler=handle_delete_topics,
    ),
    Api(
        key=ApiKey.CREATE_PARTITIONS,
        needs=(each(Operation.ALTER, ResourceType.TOPIC),),
        handler=handle_create_partitions,
    ),
)
