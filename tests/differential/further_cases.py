"""What no single field makes odd: records that claim what they may not, names beside ids, configs of every kind."""

from __future__ import annotations

__all__ = ("FURTHER_CASES",)

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from crc32c import crc32c
from tests.differential.compare import Pair, create_topic
from tests.differential.corner_cases import ask, make, message
from tests.differential.odd_requests import GROUP, TIME_MS, TOPIC, OddRequest, sane_request, topic_id_of

from penstock.wire import ApiKey
from penstock.wire.record_builder import build_batch

_TRANSACTIONAL, _CONTROL = 0x10, 0x20


def _batch(attributes: int = 0, **settings: Any) -> bytes:
    """A batch with these attributes, and a checksum that fits."""
    data = build_batch([(b"key", b"value", (), TIME_MS)], **settings)
    data[21:23] = attributes.to_bytes(2, "big")
    data[17:21] = crc32c(memoryview(data)[21:]).to_bytes(4, "big")
    return bytes(data)


def claims_of_batches(pair: Pair) -> None:
    """Transactional and control batches, with and without ids and epochs, as every version of Produce has them."""
    make(pair, "claims")
    for version in (3, 7, 9, 12):
        for attributes in (0, _TRANSACTIONAL, _CONTROL, _TRANSACTIONAL | _CONTROL, 0x08, 0x40, 0x80):
            for producer_id, epoch, sequence in (
                (-1, -1, -1),
                (7, -1, -1),
                (7, -1, 0),
                (-1, 0, 0),
                (-1, 0, -1),
                (7, 0, -1),
                (7, 0, 0),
                (-2, -1, -1),
                (-2, 0, 0),
                (7, -2, 0),
                (7, 0, -2),
            ):
                records = _batch(
                    attributes, producer_id=producer_id, producer_epoch=epoch, base_sequence=sequence
                )
                data = {"name": "claims", "partition_data": [{"index": 0, "records": records}]}
                label = f"attributes {attributes}, producer {producer_id}, epoch {epoch}, sequence {sequence}"
                ask(pair, label, ApiKey.PRODUCE, version, acks=-1, timeout_ms=5000, topic_data=[data])
    twice = [
        {"name": "claims", "partition_data": [{"index": 0, "records": _batch(attributes)}]}
        for attributes in (_TRANSACTIONAL, 0)
    ]
    ask(pair, "transactional, then not", ApiKey.PRODUCE, 9, acks=-1, timeout_ms=5000, topic_data=twice)


def kinds_of_configs(pair: Pair) -> None:
    """Resources of every kind, by names of every form, all of their configs or some."""
    for kind in (-1, 0, 1, 2, 3, 4, 7, 8, 9, 16, 32, 64):
        for name in ("", "1", "2", "01", "-1", "no", "x y", TOPIC):
            for keys in (None, [], ["no"], ["interval.ms", "consumer.session.timeout.ms", "root", "kafka"]):
                if kind in (4, 8) and name and not keys:
                    continue  # all that Kafka has
                resource = {"resource_type": kind, "resource_name": name, "configuration_keys": keys}
                label = f"resource {kind} {name!r}, {keys}"
                flags = {"include_synonyms": keys is None, "include_documentation": keys is None}
                ask(pair, label, ApiKey.DESCRIBE_CONFIGS, 4, resources=[resource], **flags)


def empty_values(pair: Pair) -> None:
    """Configs that are set to nothing, blanks, lists with holes, or the wrong kind of number."""
    make(pair, "empty-values")
    for name, values in _CONFIG_VALUES.items():
        for value in values:
            config = {"name": name, "value": value}
            topic = {
                "name": "created-empty",
                "num_partitions": 1,
                "replication_factor": 1,
                "assignments": [],
                "configs": [config],
            }
            label = f"{name}={value!r}"
            ask(
                pair,
                f"created with {label}",
                ApiKey.CREATE_TOPICS,
                7,
                topics=[topic],
                timeout_ms=5000,
                validate_only=True,
            )
            for operation in (_SET, _APPEND, _SUBTRACT):
                change = {
                    "resource_type": 2,
                    "resource_name": "empty-values",
                    "configs": [config | {"config_operation": operation}],
                }
                ask(
                    pair,
                    f"operation {operation}, {label}",
                    ApiKey.INCREMENTAL_ALTER_CONFIGS,
                    1,
                    resources=[change],
                    validate_only=True,
                )


_SET, _DELETE, _APPEND, _SUBTRACT = range(4)
_NUMBERS: Final = ("", " ", "1.5", "1e3", "0x10", "+1", "1_000", "-0", "01")
_CONFIG_VALUES: Final = {
    "cleanup.policy": (
        "",
        " ",
        ",",
        "compact",
        "compact,",
        ",delete",
        "compact,delete",
        "delete,delete",
        "Delete",
        "none",
    ),
    "retention.ms": _NUMBERS,
    "retention.bytes": _NUMBERS,
    "segment.bytes": (*_NUMBERS, "1", "14", "1048576"),
    "max.message.bytes": (*_NUMBERS, "0", "2147483648"),
    "min.cleanable.dirty.ratio": ("", "1.5", ".5", "-0.1", "1e-1", "Infinity"),
    "message.timestamp.type": ("", "createtime", "CreateTime ", "NoTimestampType"),
    "compression.type": ("", "none", "GZIP", "producer ", "zstd"),
    "compression.gzip.level": ("0", "10", "-1", "9"),
    "compression.lz4.level": ("0", "18", "1"),
    "compression.zstd.level": ("23", "-131073", "0"),
    "unclean.leader.election.enable": ("", "TRUE", "yes", "1", " true"),
    "leader.replication.throttled.replicas": ("", "*", "none", "0:1", "0:1,", "x", "0:1,1:2", "*,0:1"),
    "preallocate": ("", "False"),
    "segment.ms": ("0", "1"),
    "min.insync.replicas": ("0", "1", "2"),
    "message.timestamp.before.max.ms": ("-1", "0"),
    "delete.retention.ms": ("-1",),
    "local.retention.ms": ("-2", "-1", "-3", "5"),
}


def limits_of_fetches(pair: Pair) -> None:
    """Sizes that are nothing or less, of the request and of its partitions, with and without a minimum."""
    make(pair, "limits", 2)
    for version, level in ((4, 0), (16, 0), (16, 1)):
        for max_bytes in (-(2**31), -1, 0, 1, 1 << 20):
            for partition_max in (-1, 0, 1, 1 << 20):
                for minimum in (0, 1):
                    partitions = [
                        {"partition": index, "fetch_offset": 0, "partition_max_bytes": partition_max}
                        for index in (0, 1)
                    ]
                    topic = {"topic": "limits", "topic_id": topic_id_of("limits"), "partitions": partitions}
                    ask(
                        pair,
                        f"max_bytes={max_bytes}, {partition_max} of each, min_bytes={minimum} level={level}",
                        ApiKey.FETCH,
                        version,
                        max_wait_ms=0,
                        min_bytes=minimum,
                        max_bytes=max_bytes,
                        isolation_level=level,
                        session_epoch=-1,
                        topics=[topic],
                        forgotten_topics_data=[],
                    )


def tags(pair: Pair) -> None:
    """Tagged fields: unknown ones, also twice and out of order, and counts and sizes that say more than there is."""
    for label, data in (
        ("none", b"\0"),
        ("one", b"\1\5\1a"),
        ("one twice", b"\2\5\1a\5\1b"),
        ("two, out of order", b"\2\6\1a\5\1b"),
        ("a large one", b"\1\xff\xff\xff\xff\x0f\1a"),
        ("fewer than counted", b"\5\5\1a"),
        ("fewer bytes than said", b"\1\5\x40a"),
        ("a size below zero", b"\1\5\xff\xff\xff\xff\x0f"),
        ("a count of two bytes", b"\x80\0"),
        ("a count of six bytes", b"\x80\x80\x80\x80\x80\0"),
        ("a count of 2^32 - 1", b"\xff\xff\xff\xff\x0f"),
    ):
        for api_key, version in ((ApiKey.METADATA, 12), (ApiKey.DESCRIBE_CLUSTER, 2)):
            request = OddRequest(label, sane_request(api_key, version), edit=partial(_ending, data))
            pair.compare(api_key, version, request)


def tags_of_known_fields(pair: Pair) -> None:
    """The cluster id of a Fetch in a size that isn't its own, and the replica's state in a version before it came."""
    for label, data in (
        ("a cluster id", b"\1\0\2\2x"),
        ("a size too large", b"\1\0\3\2xy"),
        ("the state of a replica", b"\1\1\x0d" + b"\xff" * 12 + b"\0"),
    ):
        request = OddRequest(label, message(ApiKey.FETCH, topics=[]), edit=partial(_ending, data))
        pair.compare(ApiKey.FETCH, 12, request)


def lengths_below_zero(pair: Pair) -> None:
    """Compact lengths of more than 31 bits, which are less than nothing in Java."""
    for api_key, version, request in (
        (ApiKey.HEARTBEAT, 4, sane_request(ApiKey.HEARTBEAT, 4)),  # ends with a name that may be null
        (
            ApiKey.DESCRIBE_USER_SCRAM_CREDENTIALS,
            0,
            message(ApiKey.DESCRIBE_USER_SCRAM_CREDENTIALS, users=None),
        ),
        (ApiKey.FIND_COORDINATOR, 4, message(ApiKey.FIND_COORDINATOR, coordinator_keys=[])),  # none that may
    ):
        for length in (b"\xff\xff\xff\xff\x0f", b"\x81\x80\x80\x80\x08", b"\x80\x80\x80\x80\x08"):
            edit = partial(_ending_with_length, length)
            pair.compare(api_key, version, OddRequest(f"length {length.hex()}", request, edit=edit))


def _ending_with_length(length: bytes, frame: bytes) -> bytes:
    """The frame with another length, of one byte so far, before its tagged fields, of which there are none."""
    return frame[:-2] + length + frame[-1:]


def later_versions(pair: Pair) -> None:
    """ApiVersions of versions that nobody has: answered (KIP-511), unless the header isn't one."""
    for version in (5, 6, 127, 32767):
        for label, data in (
            ("nothing behind the client id", b""),
            ("no tags", b"\0"),
            ("a tag", b"\1\0\3abc"),
            ("a torn tag", b"\1\0\3a"),
            ("a body of its own", b"\0\xff\xff"),
        ):
            edit = partial(_of_version, version, data)
            request = OddRequest(
                f"version {version}, {label}", sane_request(ApiKey.API_VERSIONS, 3), edit=edit
            )
            pair.compare(ApiKey.API_VERSIONS, 3, request)


def _of_version(version: int, data: bytes, frame: bytes) -> bytes:
    """The request with another version and what comes behind its client id."""
    return frame[:2] + version.to_bytes(2, "big") + frame[4:8] + b"\0\1c" + data


def negative_times(pair: Pair) -> None:
    """Records of times before 1970, which aren't the one that stands for none, as they are and compressed anew."""
    for name, kind in (("before", "producer"), ("before-packed", "gzip")):
        for side in pair.sides:
            create_topic(side, name, 1, compression_type=kind)
        for time_ms in (-3, -2, -1, 0):
            data = build_batch([(b"key", b"value", (), TIME_MS)])
            data[27:43] = 2 * time_ms.to_bytes(8, "big", signed=True)
            data[17:21] = crc32c(memoryview(data)[21:]).to_bytes(4, "big")
            written = {"name": name, "partition_data": [{"index": 0, "records": bytes(data)}]}
            label = f"a record of {time_ms} ms, {kind}"
            ask(pair, label, ApiKey.PRODUCE, 9, acks=-1, timeout_ms=5_000, topic_data=[written])
    # as if it was the time of its append
    data[22] |= 0x08
    data[27:43] = b"\xff" * 16
    data[17:21] = crc32c(memoryview(data)[21:]).to_bytes(4, "big")
    written = {"name": "before", "partition_data": [{"index": 0, "records": bytes(data)}]}
    ask(pair, "no time of append", ApiKey.PRODUCE, 9, acks=-1, timeout_ms=5_000, topic_data=[written])


def elections(pair: Pair) -> None:
    """The type of an election is looked at where there is something to elect."""
    make(pair, "elected")
    for version in (1, 2):
        for kind in (0, 1, 2, -1):
            for partitions in (None, [], [{"topic": "elected", "partitions": [0, 7]}]):
                election = {"election_type": kind, "topic_partitions": partitions, "timeout_ms": 5_000}
                ask(pair, f"type {kind} of {partitions}", ApiKey.ELECT_LEADERS, version, **election)


def _ending(data: bytes, frame: bytes) -> bytes:
    """The frame with other tagged fields at its end."""
    assert frame.endswith(b"\0")
    return frame[:-1] + data


def names_and_ids(pair: Pair) -> None:
    """Topics by name, by id, by both, by neither, and by a name and an id of two topics, beside each other."""
    make(pair, "named")
    make(pair, "other")
    name, an_id, other = "named", topic_id_of("named"), topic_id_of("other")
    forms: dict[str, dict[str, Any]] = {
        "name": {"name": name, "topic_id": bytes(16)},
        "id": {"name": None, "topic_id": an_id},
        "both": {"name": name, "topic_id": an_id},
        "a name and another id": {"name": name, "topic_id": other},
        "neither": {"name": None, "topic_id": bytes(16)},
        "an empty name": {"name": "", "topic_id": bytes(16)},
        "an unknown id": {"name": None, "topic_id": b"\x09" * 16},
        "a reserved id": {"name": None, "topic_id": b"\0" * 15 + b"\1"},
        "an unknown name": {"name": "no", "topic_id": bytes(16)},
        "an illegal name": {"name": "a b", "topic_id": bytes(16)},
        "another name": {"name": "other", "topic_id": bytes(16)},
    }
    for version in (10, 12, 13):
        for first, one in forms.items():
            ask(pair, first, ApiKey.METADATA, version, topics=[one], allow_auto_topic_creation=False)
            for second, two in forms.items():
                ask(
                    pair,
                    f"{first}, then {second}",
                    ApiKey.METADATA,
                    version,
                    topics=[one, two],
                    allow_auto_topic_creation=False,
                )
    for first, one in forms.items():
        if first in ("name", "id", "another name", "an illegal name"):
            continue
        ask(pair, f"deleted: {first}", ApiKey.DELETE_TOPICS, 6, topics=[one], topic_names=[], timeout_ms=5000)


def groups_twice(pair: Pair) -> None:
    """Groups, topics and partitions that are named again in one request about groups."""
    topic = {"name": TOPIC, "partition_indexes": [0]}
    both = {"name": TOPIC, "partition_indexes": [0, 0, 1]}
    for label, groups in (
        ("a group twice", [{"group_id": GROUP, "topics": [topic]}] * 2),
        (
            "a group twice, other topics",
            [{"group_id": GROUP, "topics": [topic]}, {"group_id": GROUP, "topics": None}],
        ),
        ("all topics first", [{"group_id": GROUP, "topics": None}, {"group_id": GROUP, "topics": [topic]}]),
        ("no topics first", [{"group_id": GROUP, "topics": []}, {"group_id": GROUP, "topics": [topic]}]),
        ("a topic twice", [{"group_id": GROUP, "topics": [topic, topic]}]),
        ("a partition twice", [{"group_id": GROUP, "topics": [both]}]),
        ("all topics twice", [{"group_id": GROUP, "topics": None}] * 2),
        ("an unknown group twice", [{"group_id": "no", "topics": [topic]}] * 2),
        ("an empty group twice", [{"group_id": "", "topics": [topic]}] * 2),
        ("two groups", [{"group_id": GROUP, "topics": [topic]}, {"group_id": "no", "topics": None}]),
        ("no groups", []),
    ):
        for version in (8, 9):
            for stable in (False, True):
                ask(
                    pair,
                    f"{label}, require_stable={stable}",
                    ApiKey.OFFSET_FETCH,
                    version,
                    groups=groups,
                    require_stable=stable,
                )
    for version in (1, 7):
        for topics in ([topic, topic], [both], [{"name": "", "partition_indexes": [0]}], []):
            ask(pair, f"{topics}", ApiKey.OFFSET_FETCH, version, group_id=GROUP, topics=topics)
    for keys in ([], [GROUP, GROUP], ["", GROUP], [GROUP, "other"]):
        for kind in (0, 1, 2, -1):
            ask(
                pair,
                f"{keys} of type {kind}",
                ApiKey.FIND_COORDINATOR,
                4,
                key_type=kind,
                coordinator_keys=keys,
            )
    shared = "group:AAAAAAAAAAAAAAAAAAAAAA:0"
    ask(pair, "a share group", ApiKey.FIND_COORDINATOR, 6, key_type=2, coordinator_keys=[shared])
    for names in ([], [GROUP, GROUP], ["no", "no"], ["", ""], ["no", GROUP]):
        ask(pair, f"{names} deleted", ApiKey.DELETE_GROUPS, 2, groups_names=names)
        ask(pair, f"{names} described", ApiKey.DESCRIBE_GROUPS, 5, groups=names)


def orders_of_checks(pair: Pair) -> None:
    """Two faults in one request: which of them is told."""
    make(pair, "orders")
    for acks in (2, -2, 32767):
        for name, index in (("orders", 0), ("orders", 7), ("no", 0), ("", 0), ("a b", 0)):
            data = {"name": name, "partition_data": [{"index": index, "records": _batch()}]}
            label = f"acks={acks}, {name!r}-{index}"
            ask(pair, label, ApiKey.PRODUCE, 9, acks=acks, timeout_ms=5000, topic_data=[data])
    for count in (-2, 0, 1, 10_001):
        for factor in (-2, 0, 1, 3):
            for config in (("retention.ms", "1"), ("retention.ms", "x"), ("no.such", "1")):
                topic = {
                    "name": "created-twice-wrong",
                    "num_partitions": count,
                    "replication_factor": factor,
                    "assignments": [],
                    "configs": [{"name": config[0], "value": config[1]}],
                }
                label = f"{count} partitions, {factor} replicas, {config}"
                ask(pair, label, ApiKey.CREATE_TOPICS, 4, topics=[topic], timeout_ms=5000, validate_only=True)
    for limit in (-1, 0, 1 << 20):
        for offset in (-1, 0, 2, 3, 4):
            for epoch in (-1, 0, 9):
                partition = {
                    "partition": 0,
                    "fetch_offset": offset,
                    "partition_max_bytes": limit,
                    "current_leader_epoch": epoch,
                }
                ask(
                    pair,
                    f"offset {offset}, limit {limit}, epoch {epoch}",
                    ApiKey.FETCH,
                    12,
                    max_wait_ms=0,
                    min_bytes=0,
                    max_bytes=1 << 20,
                    session_epoch=-1,
                    topics=[{"topic": "orders", "partitions": [partition]}],
                    forgotten_topics_data=[],
                )


def followers(pair: Pair) -> None:
    """Another broker that fetches as if it was a replica, and what it is told of the leader (KIP-951)."""
    make(pair, "followed")
    for side in pair.sides:
        side.learn_topic("followed")
    for version in (12, 15, 16, 18):
        for epoch in (-1, 0, 9):
            partition = {
                "partition": 0,
                "fetch_offset": 0,
                "partition_max_bytes": 1 << 20,
                "current_leader_epoch": epoch,
            }
            topic = {"topic": "followed", "topic_id": topic_id_of("followed"), "partitions": [partition]}
            ask(
                pair,
                f"version {version}, epoch {epoch}",
                ApiKey.FETCH,
                version,
                replica_id=2,
                replica_state={"replica_id": 2},
                max_wait_ms=0,
                min_bytes=0,
                topics=[topic],
            )


def read_committed_by(pair: Pair) -> None:
    """Who asks for what is committed, by the numbers that Kafka gives to those that aren't brokers."""
    make(pair, "committed-by")
    partition = {"partition": 0, "fetch_offset": 0, "partition_max_bytes": 1 << 20}
    for version, replica_id in itertools.product((4, 11, 12), (-1, -2, -3, -4)):
        ask(
            pair,
            f"replica {replica_id}",
            ApiKey.FETCH,
            version,
            replica_id=replica_id,
            isolation_level=1,
            max_wait_ms=0,
            min_bytes=0,
            topics=[{"topic": "committed-by", "partitions": [partition]}],
        )


def whole_requests(pair: Pair) -> None:
    """What is wrong with all of a request, and what is said to one that asks for nothing."""
    make(pair, "whole")
    named = {"resource_type": 2, "resource_name": "whole", "configuration_keys": ["retention.ms"]}
    for kind in (-1, 0, 1, 3, 8, 127):
        other = {"resource_type": kind, "resource_name": "x"}
        ask(pair, f"beside kind {kind}", ApiKey.DESCRIBE_CONFIGS, 4, resources=[named, other, named])
    level = {"resource_type": 8, "resource_name": "1", "configs": [{"name": "root", "value": "INFO"}]}
    ask(pair, "levels, the older way", ApiKey.ALTER_CONFIGS, 2, resources=[level], validate_only=True)
    twice = [{"partition_index": 0, "timestamp": -1}, {"partition_index": 0, "timestamp": -2}]
    topics = [{"name": "whole", "partitions": twice}, {"name": "no", "partitions": []}]
    for level_of_isolation in (-1, 0, 2):
        label = f"isolation {level_of_isolation}"
        ask(pair, label, ApiKey.LIST_OFFSETS, 5, isolation_level=level_of_isolation, topics=topics)
    for timeout in (-1, 0, 5000):
        label = f"nothing, {timeout} ms"
        ask(pair, label, ApiKey.ELECT_LEADERS, 2, election_type=9, topic_partitions=[], timeout_ms=timeout)
        to_itself: Any = {"name": "whole", "partitions": [{"partition_index": 0, "replicas": [1]}]}
        for allowed in (False, True):
            for topics in ([], [to_itself]):
                ask(
                    pair,
                    f"{timeout} ms, {allowed}: {topics}",
                    ApiKey.ALTER_PARTITION_REASSIGNMENTS,
                    1,
                    topics=topics,
                    timeout_ms=timeout,
                    allow_replication_factor_change=allowed,
                )


def patterns(pair: Pair) -> None:
    """Transactions by a pattern: what is one, and what isn't."""
    for states in ([], ["no"]):
        for pattern in (
            None,
            "",
            "a.*",
            "a{1,2}?|(?i:b)",
            r"[^\]-a[:digit:]]",
            "*",
            "a++",
            "[z-a]",
            "(?=a)",
            r"\1",
            "(",
        ):
            ask(
                pair,
                f"{pattern!r} in {states}",
                ApiKey.LIST_TRANSACTIONS,
                2,
                state_filters=states,
                transactional_id_pattern=pattern,
            )


def times_of_producers(pair: Pair) -> None:
    """The time that is told of an idempotent producer: of its last record, or of when that came."""
    make(pair, "timed")
    data = build_batch([(b"key", b"value", (), 1_000)], producer_id=7, producer_epoch=0, base_sequence=0)
    written = {"name": "timed", "partition_data": [{"index": 0, "records": bytes(data)}]}
    ask(pair, "written", ApiKey.PRODUCE, 9, acks=-1, timeout_ms=5_000, topic_data=[written])
    asked = {"name": "timed", "partition_indexes": [0]}
    ask(pair, "described", ApiKey.DESCRIBE_PRODUCERS, 0, topics=[asked])


def no_ids(pair: Pair) -> None:
    """Topics of the id zero, in sessions and without."""
    partition = {"partition": 0, "fetch_offset": 0, "partition_max_bytes": 1 << 20}
    for epoch in (0, -1):
        for topic_id in (bytes(16), b"\x09" * 16):
            topics = [{"topic_id": topic_id, "partitions": [partition]}]
            label = f"epoch {epoch}, id {topic_id[0]}"
            ask(pair, label, ApiKey.FETCH, 16, max_wait_ms=0, session_epoch=epoch, topics=topics)


def configs_of_groups(pair: Pair) -> None:
    """Configs of groups and of subscriptions to metrics: those that are known, and values that aren't right."""
    for kind, name, values in (
        (32, "consumer.session.timeout.ms", ("50000", "x", "1")),
        (16, "interval.ms", ("1000", "x")),
        (32, "no.such", ("1",)),
    ):
        for value in values:
            resource = {
                "resource_type": kind,
                "resource_name": "configured",
                "configs": [{"name": name, "value": value}],
            }
            ask(
                pair,
                f"resource {kind}, {name}={value}",
                ApiKey.INCREMENTAL_ALTER_CONFIGS,
                1,
                resources=[resource],
                validate_only=True,
            )


#: By name.
FURTHER_CASES: Final[dict[str, Callable[[Pair], None]]] = {
    "claims of batches": claims_of_batches,
    "kinds of configs": kinds_of_configs,
    "empty values": empty_values,
    "limits of fetches": limits_of_fetches,
    "tags": tags,
    "tags of known fields": tags_of_known_fields,
    "lengths below zero": lengths_below_zero,
    "later versions": later_versions,
    "elections": elections,
    "negative times": negative_times,
    "names and ids": names_and_ids,
    "groups twice": groups_twice,
    "orders of checks": orders_of_checks,
    "whole requests": whole_requests,
    "followers": followers,
    "read committed by": read_committed_by,
    "patterns": patterns,
    "times of producers": times_of_producers,
    "no ids": no_ids,
    "configs of groups": configs_of_groups,
}
