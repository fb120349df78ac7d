"""DescribeConfigs, AlterConfigs, IncrementalAlterConfigs and ListConfigResources: one clause of the protocol each."""

from __future__ import annotations

import gc
from collections import Counter
from itertools import islice

import pytest
from tests.patience import HANG_S
from tests.unit.api.fakes import FakeLogs, make_context

from penstock.api import config_changes, configs, topics
from penstock.log.errors import KafkaError
from penstock.log.partition_config import PartitionConfig
from penstock.log.topic_config import (
    TOPIC_CONFIGS,
    TopicConfig,
    TopicConfigTable,
    effective_values,
)
from penstock.server.admission import throttled
from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.alter_configs import AlterableConfig as OldConfig
from penstock.wire.messages.alter_configs import AlterConfigsRequest
from penstock.wire.messages.alter_configs import AlterConfigsResource as OldResource
from penstock.wire.messages.create_topics import CreatableTopic, CreatableTopicConfig, CreateTopicsRequest
from penstock.wire.messages.describe_configs import (
    DescribeConfigsRequest,
    DescribeConfigsResource,
    DescribeConfigsResponse,
)
from penstock.wire.messages.incremental_alter_configs import (
    AlterableConfig,
    AlterConfigsResource,
    IncrementalAlterConfigsRequest,
)
from penstock.wire.messages.list_config_resources import ListConfigResourcesRequest
from penstock.wire.registry import decode_response, encode_response
from penstock.wire.splice import EncodedBody

pytestmark = pytest.mark.anyio

TOPIC, BROKER = 2, 4


async def test_describe_configs_gives_all_with_their_sources(logs: FakeLogs) -> None:
    logs.topics()["t"].configs["retention.ms"] = "1000"
    logs.broker_defaults = {"max.message.bytes": "500"}
    named_none: tuple[list[str] | None, ...] = (None, [])
    for keys in named_none:
        request = DescribeConfigsRequest(
            resources=[
                DescribeConfigsResource(resource_type=TOPIC, resource_name="t", configuration_keys=keys)
            ],
            include_synonyms=True,
        )
        response = configs.describe_configs_nowait(request, make_context(logs, 4))
        encode_response(ApiKey.DESCRIBE_CONFIGS, 4, 1, response)
        found = {c.name: (c.value, c.config_source, len(c.synonyms)) for c in response.results[0].configs}
        assert set(found) == set(TOPIC_CONFIGS)
        assert found["retention.ms"] == ("1000", 1, 1), "log.retention.ms has no default in Kafka"
        assert found["max.message.bytes"] == ("500", 4, 2)
        assert found["cleanup.policy"] == ("delete", 5, 1)


async def described(
    request: DescribeConfigsRequest, logs: FakeLogs, version: int = 4
) -> DescribeConfigsResponse:
    """The answer to ``request``, as it is on the wire."""
    response = await configs.handle_describe_configs(request, make_context(logs, version))
    frame = b"".join(encode_response(ApiKey.DESCRIBE_CONFIGS, version, 1, response))
    message = decode_response(ApiKey.DESCRIBE_CONFIGS, version, frame[4:])[1]
    assert isinstance(message, DescribeConfigsResponse)
    return message


@pytest.mark.parametrize("version", [1, 4])
@pytest.mark.parametrize("with_more", [False, True])
async def test_configs_of_many_resources_are_told_as_those_of_few(
    logs: FakeLogs, version: int, with_more: bool
) -> None:
    """Many are encoded in portions: of topics that set nothing, some, or all; others, and what isn't there."""
    logs.broker_defaults = {"max.message.bytes": "500"}
    names = [logs.add(f"many-{number}").name for number in range(40)]
    for number, name in enumerate(names):
        for key in islice(TOPIC_CONFIGS, number % 5, number, 1 + number % 3):
            logs.topics()[name].configs[key] = str(number)
    asked: list[list[str] | None] = [None, ["retention.ms", "max.message.bytes", "preallocate"]]
    resources = [
        DescribeConfigsResource(resource_type=kind, resource_name=name, configuration_keys=keys)
        for keys in asked
        for kind, name in [*((TOPIC, name) for name in (*names, "absent", "")), (BROKER, "7"), (32, "group")]
    ]

    def request(asked: list[DescribeConfigsResource]) -> DescribeConfigsRequest:
        return DescribeConfigsRequest(
            resources=asked, include_synonyms=with_more, include_documentation=with_more
        )

    few = [(await described(request([one]), logs, version)).results[0] for one in resources]
    assert (await described(request(resources), logs, version)).results == few


async def test_an_answer_about_many_topics_keeps_what_they_have_in_common_once(logs: FakeLogs) -> None:
    """With documentation, the configs of 10,000 topics are 100 MB: as much memory as a small broker has."""
    resources = [
        DescribeConfigsResource(resource_type=TOPIC, resource_name=logs.add(f"many-{number}").name)
        for number in range(200)
    ]
    logs.topics()["many-7"].configs["retention.ms"] = "1000"
    request = DescribeConfigsRequest(resources=resources, include_synonyms=True, include_documentation=True)
    response = await configs.handle_describe_configs(request, make_context(logs, 4))
    assert isinstance(response, EncodedBody)
    size, kept = sum(map(len, response.buffers)), {id(one): len(one) for one in response.buffers}
    assert sum(kept.values()) < size / 20


async def test_a_body_that_is_encoded_already_tells_for_how_long_its_client_is_throttled(
    logs: FakeLogs,
) -> None:
    absent = [DescribeConfigsResource(resource_type=TOPIC, resource_name=f"{number}") for number in range(20)]
    request = DescribeConfigsRequest(resources=absent)
    response = throttled(await configs.handle_describe_configs(request, make_context(logs, 4)), 700)
    frame = b"".join(encode_response(ApiKey.DESCRIBE_CONFIGS, 4, 1, response))
    message = decode_response(ApiKey.DESCRIBE_CONFIGS, 4, frame[4:])[1]
    assert isinstance(message, DescribeConfigsResponse)
    assert (message.throttle_time_ms, len(message.results)) == (700, 20)


class Compared(str):
    """A text that counts how often texts like it are compared with another one."""

    __slots__ = ()
    times = 0

    def __eq__(self, other: object) -> bool:
        Compared.times += 1
        return str.__eq__(self, other) is True

    __hash__ = str.__hash__


def test_long_lists_of_configs_are_looked_through_once(
    logs: FakeLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred thousand items, appended to or taken from as many, would hold the broker for minutes."""
    name, count = "leader.replication.throttled.replicas", 500
    there = {name: ",".join(f"{number}:1" for number in range(count))}
    given = [Compared(f"{number}:1") for number in range(count // 2, count + count // 2)]
    monkeypatch.setattr(config_changes, "_given_items", lambda _value: given)
    left = {}
    for operation in (APPEND, SUBTRACT):
        change = AlterableConfig(name=name, config_operation=operation, value="given")
        left[operation] = config_changes.changed([change], TopicConfigTable(), there)[name].count(":")
    assert left == {APPEND: count + count // 2, SUBTRACT: count // 2}
    request = DescribeConfigsRequest(
        resources=[
            DescribeConfigsResource(resource_type=TOPIC, resource_name="t", configuration_keys=list(given))
        ]
    )
    assert configs.describe_configs_nowait(request, make_context(logs, 4)).results[0].configs == []
    assert Compared.times < 10 * count, "not each with each"


async def test_all_configs_of_a_resource_are_told_a_few_times_however_often_it_is_named(
    logs: FakeLogs,
) -> None:
    """The answer is hundreds of times as long as the question; what names its configs is answered each time."""
    named = DescribeConfigsResource(
        resource_type=TOPIC, resource_name="t", configuration_keys=["retention.ms"]
    )
    resources = [DescribeConfigsResource(resource_type=TOPIC, resource_name="t"), named] * 100
    request = DescribeConfigsRequest(resources=resources)
    response = await described(request, logs)
    assert Counter(len(result.configs) for result in response.results) == {len(TOPIC_CONFIGS): 17, 1: 100}


async def test_a_value_is_no_longer_than_a_string_may_be(logs: FakeLogs) -> None:
    """Appended to again and again, a list had no bound, and no answer could tell it."""
    name, items = "leader.replication.throttled.replicas", iter(range(100_000, 200_000))
    for code in (0, 0, 0, 0, ErrorCode.INVALID_CONFIG):
        value = ",".join(f"{next(items)}:1" for _ in range(900))
        assert await alter(logs, (name, APPEND, value)) == code
    assert len(logs.topics()["t"].configs[name]) == 4 * 900 * 9 - 1


async def test_a_long_value_is_told_some_times_only(logs: FakeLogs) -> None:
    """A resource with one key takes 50 bytes of a request: 20,000 of them were answered with 32 KiB each."""
    name = "leader.replication.throttled.replicas"
    logs.topics()["t"].configs[name] = "1" * 32_000
    named = DescribeConfigsResource(resource_type=TOPIC, resource_name="t", configuration_keys=[name])
    request = DescribeConfigsRequest(resources=[named] * 500)
    response = await described(request, logs)
    assert len(response.results) == 9
    assert {len(result.configs[0].value or "") for result in response.results} == {32_000}


@pytest.mark.parametrize("kind", [16, 32], ids=["client metrics", "groups"])
async def test_configs_of_what_need_not_be_there_are_told_of_some_only(logs: FakeLogs, kind: int) -> None:
    """A made-up group takes 8 bytes of a request, and 1,500 of the answer: a megabyte took 400 of memory."""
    resources = [
        DescribeConfigsResource(resource_type=kind, resource_name=f"{number}") for number in range(4_000)
    ]
    request = DescribeConfigsRequest(resources=resources)
    response = await described(request, logs)
    assert [result.resource_name for result in response.results] == [one.resource_name for one in resources]
    told = sum(len(result.configs) for result in response.results)
    assert configs._DEFAULTS_MAX - 20 < told <= configs._DEFAULTS_MAX
    codes = Counter(result.error_code for result in response.results if not result.configs)
    assert codes.keys() == {ErrorCode.INVALID_REQUEST}


def test_the_configs_of_many_topics_are_few_objects_for_the_collector(logs: FakeLogs) -> None:
    """It looks at all of them, again and again, while a long answer is made."""
    topics = 50
    resources = [
        DescribeConfigsResource(resource_type=TOPIC, resource_name=logs.add(f"many-{number}").name)
        for number in range(topics)
    ]
    context = make_context(logs, 4)
    is_enabled = gc.isenabled()
    gc.disable()
    try:
        before = gc.get_count()[0]
        response = configs.describe_configs_nowait(DescribeConfigsRequest(resources=resources), context)
        objects = gc.get_count()[0] - before
    finally:
        if is_enabled:
            gc.enable()
    assert len(response.results) == topics
    assert objects < topics * len(TOPIC_CONFIGS) / 2, "not one for each config"


async def test_describe_configs_of_the_broker_and_of_others(logs: FakeLogs) -> None:
    resources = [
        DescribeConfigsResource(resource_type=BROKER, resource_name="7", configuration_keys=None),
        DescribeConfigsResource(resource_type=BROKER, resource_name="8", configuration_keys=None),
        DescribeConfigsResource(resource_type=TOPIC, resource_name="unknown", configuration_keys=None),
        DescribeConfigsResource(resource_type=16, resource_name="metrics", configuration_keys=None),
        DescribeConfigsResource(resource_type=16, resource_name="", configuration_keys=None),
    ]
    context = make_context(
        logs, 4, broker_configs={"num.partitions": "1", "auto.create.topics.enable": "true"}
    )
    response = configs.describe_configs_nowait(DescribeConfigsRequest(resources=resources), context)
    assert [result.error_code for result in response.results] == [
        0,
        ErrorCode.INVALID_REQUEST,
        ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
        ErrorCode.NONE,
        ErrorCode.INVALID_REQUEST,
    ]
    assert [(c.name, c.value, c.read_only) for c in response.results[0].configs] == [
        ("auto.create.topics.enable", "true", True),
        ("log.dirs", "memory://", True),
        ("num.partitions", "1", True),
    ]


@pytest.mark.parametrize(
    ("version", "types", "code", "found"),
    [
        (0, [], ErrorCode.NONE, []),
        (1, [], ErrorCode.NONE, [("t", 2), ("u", 2), ("7", 4), ("7", 8)]),
        (1, [4], ErrorCode.NONE, [("7", 4)]),
        (1, [2, 32], ErrorCode.NONE, [("t", 2), ("u", 2)]),
        (1, [8, 16], ErrorCode.NONE, [("7", 8)]),
        (1, [2, 3], ErrorCode.UNSUPPORTED_VERSION, []),
    ],
)
def test_list_config_resources(
    logs: FakeLogs, version: int, types: list[int], code: ErrorCode, found: list[tuple[str, int]]
) -> None:
    logs.add("u", 1)
    request = ListConfigResourcesRequest(resource_types=types)
    response = configs.list_config_resources_nowait(request, make_context(logs, version))
    encode_response(ApiKey.LIST_CONFIG_RESOURCES, version, 1, response)
    assert response.error_code == code
    assert [(each.resource_name, each.resource_type) for each in response.config_resources] == found


async def alter(
    logs: FakeLogs, *changes: tuple[str, int, str | None], kind: int = TOPIC, validate_only: bool = False
) -> int:
    resource = AlterConfigsResource(
        resource_type=kind,
        resource_name="t" if kind == TOPIC else "7",
        configs=[AlterableConfig(name=n, config_operation=op, value=v) for n, op, v in changes],
    )
    request = IncrementalAlterConfigsRequest(resources=[resource], validate_only=validate_only)
    response = await configs.handle_incremental_alter_configs(request, make_context(logs, 1))
    assert bool(response.responses[0].error_message) == bool(response.responses[0].error_code)
    return response.responses[0].error_code


SET, DELETE, APPEND, SUBTRACT = range(4)


async def test_incremental_alter_sets_and_deletes(logs: FakeLogs) -> None:
    assert await alter(logs, ("retention.ms", SET, "1000"), ("retention.bytes", SET, "5")) == 0
    assert await alter(logs, ("retention.ms", DELETE, None)) == 0
    assert logs.topics()["t"].configs == {"retention.bytes": "5"}
    assert await alter(logs, ("retention.ms", SET, "7"), validate_only=True) == 0
    assert logs.topics()["t"].configs == {"retention.bytes": "5"}


async def test_deleting_a_config_that_is_not_set_or_not_known_succeeds(logs: FakeLogs) -> None:
    assert await alter(logs, ("retention.bytes", SET, "5")) == 0
    assert await alter(logs, ("retention.ms", DELETE, None), ("unknown.key", DELETE, None)) == 0
    assert logs.topics()["t"].configs == {"retention.bytes": "5"}


async def test_incremental_alter_of_lists_keeps_their_order(logs: FakeLogs) -> None:
    name = "leader.replication.throttled.replicas"
    assert await alter(logs, (name, SET, "0:7,1:7")) == 0
    assert await alter(logs, (name, APPEND, "2:7,0:7,2:7")) == 0
    assert logs.topics()["t"].configs[name] == "0:7,1:7,2:7"
    assert await alter(logs, (name, SUBTRACT, "1:7")) == 0
    assert logs.topics()["t"].configs[name] == "0:7,2:7"
    assert await alter(logs, (name, SET, "0:7,1:7,0:7")) == 0
    assert await alter(logs, (name, SUBTRACT, "0:7")) == 0
    assert logs.topics()["t"].configs[name] == "1:7,0:7"


@pytest.mark.parametrize(
    ("changes", "kind", "code"),
    [
        ([("unknown.key", SET, "1")], TOPIC, ErrorCode.INVALID_CONFIG),
        ([("unknown.key", APPEND, "1")], TOPIC, ErrorCode.INVALID_CONFIG),
        ([("retention.ms", APPEND, "1")], TOPIC, ErrorCode.INVALID_CONFIG),
        ([("retention.ms", 9, "1")], TOPIC, ErrorCode.INVALID_REQUEST),
        ([("retention.ms", SET, "1"), ("retention.ms", SET, "2")], TOPIC, ErrorCode.INVALID_REQUEST),
        ([("retention.ms", SET, None)], TOPIC, ErrorCode.INVALID_REQUEST),
        ([("cleanup.policy", APPEND, None)], TOPIC, ErrorCode.INVALID_REQUEST),
        ([("cleanup.policy", APPEND, "compact")], TOPIC, ErrorCode.INVALID_CONFIG),
        ([("cleanup.policy", APPEND, ",delete")], TOPIC, ErrorCode.INVALID_CONFIG),
        ([("cleanup.policy", SET, "delete,")], TOPIC, ErrorCode.INVALID_CONFIG),
        ([("retention.ms", SET, "1_000")], TOPIC, ErrorCode.INVALID_CONFIG),
        ([("retention.ms", SET, "\u0661")], TOPIC, ErrorCode.INVALID_CONFIG),
        ([("min.cleanable.dirty.ratio", SET, "0_1")], TOPIC, ErrorCode.INVALID_CONFIG),
        (
            [("min.compaction.lag.ms", SET, "10"), ("max.compaction.lag.ms", SET, "9")],
            TOPIC,
            ErrorCode.INVALID_CONFIG,
        ),
        ([("log.retention.ms", SET, "1")], BROKER, ErrorCode.INVALID_CONFIG),
        ([("x", SET, "1")], 16, ErrorCode.INVALID_REQUEST),
    ],
)
async def test_incremental_alter_is_all_or_nothing(
    logs: FakeLogs, changes: list[tuple[str, int, str | None]], kind: int, code: ErrorCode
) -> None:
    assert await alter(logs, ("max.message.bytes", SET, "9"), *changes, kind=kind) == code
    assert logs.topics()["t"].configs == {}


async def test_a_topic_without_cleanup_policy_keeps_its_records(logs: FakeLogs) -> None:
    """KIP-1247: deletion can be taken away; the limits of retention are kept and don't act."""
    assert await alter(logs, ("cleanup.policy", SUBTRACT, "delete")) == 0
    configs = {**logs.topics()["t"].configs, "retention.ms": "1"}
    assert configs["cleanup.policy"] == ""
    parsed = PartitionConfig.parse(effective_values(configs, {}), validate_full=False)
    assert (parsed.retention_ms, parsed.retention_bytes) == (-1, -1)


async def test_alter_configs_replaces_everything(logs: FakeLogs) -> None:
    await alter(logs, ("retention.ms", SET, "1000"))
    resource = OldResource(
        resource_type=TOPIC, resource_name="t", configs=[OldConfig(name="retention.bytes", value="5")]
    )
    response = await configs.handle_alter_configs(
        AlterConfigsRequest(resources=[resource]), make_context(logs, 2)
    )
    assert response.responses[0].error_code == 0
    assert logs.topics()["t"].configs == {"retention.bytes": "5"}


def test_unknown_topic_config_names_the_nearest() -> None:
    with pytest.raises(KafkaError, match=r"did you mean retention\.ms"):
        TopicConfigTable().validate("retension.ms", "1")


async def test_a_request_is_told_what_is_near_its_unknown_configs_some_times_only(logs: FakeLogs) -> None:
    """A suggestion takes half a millisecond: 14,000 of them, in one request, took seven seconds."""
    context, name, count = make_context(logs, 1), "retension.ms", 200
    messages: dict[str, list[str | None]] = {}
    altered = await configs.handle_incremental_alter_configs(
        IncrementalAlterConfigsRequest(
            resources=[
                AlterConfigsResource(
                    resource_type=TOPIC,
                    resource_name=f"{number}",
                    configs=[AlterableConfig(name=name, config_operation=SET, value="1")],
                )
                for number in range(count)
            ]
        ),
        context,
    )
    messages["IncrementalAlterConfigs"] = [one.error_message for one in altered.responses]
    replaced = await configs.handle_alter_configs(
        AlterConfigsRequest(
            resources=[
                OldResource(
                    resource_type=TOPIC,
                    resource_name=f"{number}",
                    configs=[OldConfig(name=name, value="1")],
                )
                for number in range(count)
            ]
        ),
        context,
    )
    messages["AlterConfigs"] = [one.error_message for one in replaced.responses]
    created = await topics.handle_create_topics(
        CreateTopicsRequest(
            topics=[
                CreatableTopic(
                    name=f"{number}",
                    num_partitions=1,
                    replication_factor=1,
                    assignments=[],
                    configs=[CreatableTopicConfig(name=name, value="1")],
                )
                for number in range(count)
            ],
            timeout_ms=int(HANG_S * 1000),
        ),
        context,
    )
    messages["CreateTopics"] = [one.error_message for one in created.topics]
    for api, told in messages.items():
        found = ["did you mean retention.ms?" in (message or "") for message in told]
        assert (len(found), found[0], sum(found) <= 20) == (count, True, True), api


def test_any_negative_retention_by_size_is_no_limit() -> None:
    assert TopicConfigTable().validate("retention.bytes", "-2") == "-2"


@pytest.mark.parametrize("value", ["1", "1:1,", "e1", ". "])
def test_what_a_value_may_be_is_seen_in_one_pass_however_long_it_is(value: str) -> None:
    """A ratio of 32,000 digits and a letter was matched in each of its ways, for 49 s, on the loop."""
    for name in TOPIC_CONFIGS:
        with pytest.raises(KafkaError):
            TopicConfigTable().validate(name, value * (1_000_000 // len(value)) + "!")


@pytest.mark.parametrize(
    ("name", "value", "stored"),
    [
        ("cleanup.policy", "delete,delete", "delete"),
        ("leader.replication.throttled.replicas", "3:1,3:1", "3:1,3:1"),
        ("min.cleanable.dirty.ratio", "1", "1.0"),
        ("min.cleanable.dirty.ratio", "+.250d", "0.25"),
        ("min.cleanable.dirty.ratio", "0.00012", "1.2E-4"),
        ("min.cleanable.dirty.ratio", "1e-5", "1.0E-5"),
    ],
)
def test_values_are_told_as_kafka_tells_them(name: str, value: str, stored: str) -> None:
    assert TopicConfigTable().validate(name, value) == stored


@pytest.mark.parametrize("config", TOPIC_CONFIGS.values(), ids=TOPIC_CONFIGS)
def test_default_of_each_topic_config_is_valid(config: TopicConfig) -> None:
    assert TopicConfigTable().validate(config.name, config.default) == config.default
    assert config.doc
