"""Requests with several faults at once: which of them is told, and of which partitions."""

from __future__ import annotations

__all__ = ("FIRST_FAULTS",)

import itertools
from collections.abc import Callable
from typing import Any, Final

from crc32c import crc32c
from tests.differential.compare import Pair, create_topic, delete_topic
from tests.differential.corner_cases import ask, make, message
from tests.differential.odd_requests import GROUP, LIVE_GROUP, TIME_MS, TOPIC, topic_id_of

from penstock.wire import ApiKey
from penstock.wire.record_builder import build_batch

#: With a shorter length, the last byte of its times is the beginning of the next one's: always below zero, whenever
#: this runs.
_GOOD: Final = bytes(build_batch([(b"key", b"value", (), TIME_MS | 0xFF)]))
_INTERNAL: Final = "__consumer_offsets"


def _changed(at: int, value: bytes, *, sealed: bool = False, batch: bytes = _GOOD) -> bytes:
    """The batch with other bytes there, and a checksum that fits if ``sealed``."""
    data = bytearray(batch)
    data[at : at + len(value)] = value
    if sealed:
        data[17:21] = crc32c(memoryview(data)[21:]).to_bytes(4, "big")
    return bytes(data)


def _of_length(length: int) -> bytes:
    return _changed(8, length.to_bytes(4, "big", signed=True))


#: What isn't one whole batch, each in its own way.
_FRAMES: Final = {
    "version 3": _changed(16, b"\3"),
    "a second one of version 3": _GOOD + _changed(16, b"\3"),
    "a second one": _GOOD * 2,
    "version 1": _changed(16, b"\1"),
    "version 1, too short": _changed(16, b"\1", batch=_of_length(13)),
    "length -1": _of_length(-1),
    "length 13": _of_length(13),
    "length 14": _of_length(14),
    "length 14, and no more": _of_length(14)[:26],
    "length 14, of a transaction": _changed(22, b"\x10", batch=_of_length(14))[:26],
    "length 38, and no more": _of_length(38)[:50],
    "length 39, and no more": _of_length(39)[:51],
    "length 48": _of_length(48),
    "length 48, and no more": _of_length(48)[:60],
    "length 49": _of_length(49),
    "one byte too many": _of_length(len(_GOOD) - 11),
    "one byte too few": _of_length(len(_GOOD) - 13),
    "11 bytes": _of_length(3)[:11],
    "12 bytes": _of_length(3)[:12],
    "17 bytes": _changed(16, b"\3")[:17],
    "no bytes": b"",
    "a wrong checksum": _changed(17, bytes(4)),
    "a wrong count": _changed(57, b"\0\0\0\7", sealed=True),
    "zstd": bytes(build_batch([(b"key", b"value", (), TIME_MS)], codec=4)),
    "of a transaction": _changed(22, b"\x10", sealed=True),
    "nothing wrong": _GOOD,
}


def frames(pair: Pair) -> None:
    """What is no batch beside one that is good, wrong acks, topics that aren't there, and the coordinators' own."""
    make(pair, "frames", 2)

    def write(label: str, version: int, acks: int, *parts: tuple[str, int, bytes]) -> None:
        topics: dict[str, list[dict[str, Any]]] = {}
        for name, index, data in parts:
            topics.setdefault(name, []).append({"index": index, "records": data})
        topic_data = [{"name": name, "partition_data": data} for name, data in topics.items()]
        ask(pair, label, ApiKey.PRODUCE, version, acks=acks, timeout_ms=5000, topic_data=topic_data)

    for label, data in _FRAMES.items():
        for version, acks in ((3, -1), (9, -1), (9, 2)):
            text = f"{label}, acks={acks}"
            write(text, version, acks, ("frames", 0, data))
            write(f"{text}, behind a good one", version, acks, ("frames", 0, _GOOD), ("frames", 1, data))
            write(f"{text}, of the coordinators", version, acks, (_INTERNAL, 0, data))
            write(f"{text}, of no topic", version, acks, ("frames", 0, _GOOD), ("no", 0, data))


#: Faults of one batch, which may come together: (position, bytes).
_FAULTS: Final = {
    "base offset": (0, b"\0\0\0\0\0\0\0\5"),
    "count": (57, b"\0\0\0\7"),
    "last delta": (23, b"\0\0\0\7"),
    "control": (22, b"\x20"),
    "producer without sequence": (43, b"\0\0\0\0\0\0\0\7"),
    "record": (61, b"\x63"),
}


def faults_together(pair: Pair) -> None:
    """Two faults in one batch, of which the size and the checksum may be others, and where the log start is told."""
    make(pair, "together")
    name_of_limit = {"name": "max.message.bytes", "value": "200", "config_operation": 0}
    for is_large, is_torn in itertools.product((False, True), repeat=2):
        if is_large:
            limited = {"resource_type": 2, "resource_name": "together", "configs": [name_of_limit]}
            ask(pair, "a limit is set", ApiKey.INCREMENTAL_ALTER_CONFIGS, 1, resources=[limited])
        value = b"v" * (300 if is_large else 20)
        whole = bytes(build_batch([(b"key", value, (), TIME_MS)] * 3))
        for size in (0, 1, 2):
            for together in itertools.combinations(_FAULTS.items(), size):
                data = whole
                for _, (at, change) in together:
                    data = _changed(at, change, sealed=True, batch=data)
                if is_torn:
                    data = _changed(17, bytes(4), batch=data)
                label = " and ".join(name for name, _ in together)
                part = {"name": "together", "partition_data": [{"index": 0, "records": data}]}
                text = f"{label or 'no fault'}, large={is_large} torn={is_torn}"
                ask(pair, text, ApiKey.PRODUCE, 9, acks=-1, timeout_ms=5000, topic_data=[part])


def unknown_isolation_levels(pair: Pair) -> None:
    """An isolation level that nobody knows, beside sessions that aren't there and topics that aren't."""
    make(pair, "isolated")
    part = {"partition": 0, "fetch_offset": 0, "partition_max_bytes": 1 << 20}
    for version, session, name in itertools.product(
        (4, 12, 13), ((0, -1), (0, 0), (5, 3), (0, 3), (5, 0), (5, -1)), ("isolated", "no", None)
    ):
        topic_id = topic_id_of(name) if name == "isolated" else b"\x09" * 16
        topic = {"topic": "" if version >= 13 else name, "topic_id": topic_id, "partitions": [part]}
        ask(
            pair,
            f"{name} in session {session}",
            ApiKey.FETCH,
            version,
            max_wait_ms=0,
            min_bytes=0,
            max_bytes=1 << 20,
            isolation_level=2,
            session_id=session[0],
            session_epoch=session[1],
            topics=[] if name is None else [topic],
            forgotten_topics_data=[],
        )


def commits_of_what_is_not_there(pair: Pair) -> None:
    """Offsets of topics and partitions that aren't there, named twice or without partitions, beside some that are."""
    make(pair, "committed", 2)
    topics: list[tuple[str, list[int]]] = [
        ("committed", [0]),
        ("committed", [1, 1]),
        ("committed", [7]),
        ("committed", []),
        ("no", [0]),
        ("no", []),
    ]
    for version, group in itertools.product((2, 9, 10), (GROUP, LIVE_GROUP)):
        for size in (1, 2):
            for together in itertools.combinations_with_replacement(topics, size):
                asked = [
                    {
                        "name": "" if version >= 10 else name,
                        "topic_id": topic_id_of(name) if name == "committed" else b"\x09" * 16,
                        "partitions": [{"partition_index": one, "committed_offset": 1} for one in indexes],
                    }
                    for name, indexes in together
                ]
                ask(pair, f"{group}: {together}", ApiKey.OFFSET_COMMIT, version, group_id=group, topics=asked)


def growth(pair: Pair) -> None:
    """CreatePartitions with a count and with assignments that both may be wrong."""
    make(pair, "growth", 2)
    choices: tuple[list[list[int]] | None, ...] = (None, [], [[1]], [[]], [[2]], [[1], [1]], [[1], [1, 2]])
    for name, count, assignments, timeout_ms in itertools.product(
        ("growth", "no", _INTERNAL),
        (-1, 1, 2, 3, 4, 10_001),
        choices,
        (5000, 0),
    ):
        if name == "growth" and count == 10_001 and assignments is None:
            continue  # which Kafka does
        topic = {
            "name": name,
            "count": count,
            "assignments": None if assignments is None else [{"broker_ids": ids} for ids in assignments],
        }
        ask(
            pair,
            f"{name} to {count}, {assignments}, timeout_ms={timeout_ms}",
            ApiKey.CREATE_PARTITIONS,
            3,
            topics=[topic],
            timeout_ms=timeout_ms,
            validate_only=True,
        )


_SET, _DELETE, _APPEND = range(3)
#: Changes of configs: (name, operation, value).
_CHANGES: Final[tuple[tuple[tuple[str, int, str | None], ...], ...]] = (
    (),
    (("retention.ms", _SET, None),),
    (("retention.ms", _DELETE, None),),
    (("retention.ms", _APPEND, None),),
    (("retention.ms", _APPEND, "5"),),
    (("retention.ms", _SET, "5"), ("retention.ms", _SET, "6")),
    (("no.such", _SET, "1"),),
    (("no.such", _SET, None),),
    (("no.such", _DELETE, None),),
    (("no.such", _APPEND, "1"),),
    (("cleanup.policy", _APPEND, "nonsense"),),
    (("interval.ms", _SET, "x"),),
    (("consumer.session.timeout.ms", _SET, "x"),),
    (("no.such", _SET, "x"), ("root", _APPEND, "x")),
    (("root", _APPEND, "x"), ("no.such", _SET, "x")),
)


def faults_of_config_changes(pair: Pair) -> None:
    """Changes that are wrong in themselves, of resources that aren't there or can't be."""
    make(pair, "changed")
    for kind, name in (
        *((2, name) for name in ("changed", "no", "", "a b", _INTERNAL)),
        *((8, name) for name in ("1", "2", "", "x")),
        *((kind, name) for kind in (16, 32) for name in ("s", "")),
        *((4, name) for name in ("1", "", "2", "x")),
        (0, "x"),
        (64, ""),
    ):
        for changes in _CHANGES:
            configs = [
                {"name": key, "config_operation": operation, "value": value}
                for key, operation, value in changes
            ]
            resource = {"resource_type": kind, "resource_name": name, "configs": configs}
            label = f"resource {kind} {name!r}: {changes}"
            ask(pair, label, ApiKey.INCREMENTAL_ALTER_CONFIGS, 1, resources=[resource], validate_only=True)
            if all(operation == _SET for _, operation, _ in changes) and kind == 2:
                ask(pair, f"{label}, all", ApiKey.ALTER_CONFIGS, 2, resources=[_as_before(resource)])


def _as_before(resource: dict[str, Any]) -> dict[str, Any]:
    """The resource as AlterConfigs has it."""
    configs = [{"name": one["name"], "value": one["value"]} for one in resource["configs"]]
    return resource | {"configs": configs}


def sessions_out_of_step(pair: Pair) -> None:
    """A session by ids that goes on by names in a wrong epoch, and one whose topic is made again and is smaller."""
    make(pair, "steps", 2)
    session = -7780

    def request(epoch: int, *indexes: int, level: int = 0) -> dict[str, Any]:
        partitions = [{"partition": one, "fetch_offset": 9, "partition_max_bytes": 99} for one in indexes]
        topic = {"topic_id": topic_id_of("steps"), "partitions": partitions}
        return {
            "max_wait_ms": 0,
            "min_bytes": 0,
            "max_bytes": 1 << 20,
            "isolation_level": level,
            "session_id": session if epoch else 0,
            "session_epoch": epoch,
            "topics": [topic] if indexes else [],
            "forgotten_topics_data": [],
        }

    for side in pair.sides:
        opened = side.ask_message(ApiKey.FETCH, 13, message(ApiKey.FETCH, **request(0, 0, 1, 2)))
        side.learn(session, opened.session_id)
    ask(pair, "offsets that aren't there, in level 1", ApiKey.FETCH, 13, **request(1, 0, level=1))
    ask(pair, "by names in an old epoch", ApiKey.FETCH, 12, **request(1))
    ask(pair, "by names", ApiKey.FETCH, 12, **request(2))
    for side in pair.sides:
        delete_topic(side, "steps")
        create_topic(side, "steps", 1)
    ask(pair, "the topic is smaller now", ApiKey.FETCH, 13, **request(2))


def strangers(pair: Pair) -> None:
    """Requests about what isn't there, with something else wrong too."""
    for member, session_ms, version in itertools.product(("", "no"), (1, 2**31 - 1), (0, 5)):
        ask(
            pair,
            f"member {member!r} with a session of {session_ms} ms",
            ApiKey.JOIN_GROUP,
            version,
            group_id="of-strangers",
            member_id=member,
            session_timeout_ms=session_ms,
            rebalance_timeout_ms=1000,
            protocol_type="consumer",
            protocols=[{"name": "range", "metadata": b"bytes"}],
        )
    for name, operations in itertools.product(("no", "a b", TOPIC), (False, True)):
        ask(
            pair,
            f"{name} with its operations: {operations}",
            ApiKey.METADATA,
            10,
            topics=[{"name": name}],
            allow_auto_topic_creation=False,
            include_topic_authorized_operations=operations,
        )
    for election, timeout_ms in itertools.product((0, 1, 2), (0, 5000)):
        wanted = [{"topic": TOPIC, "partitions": [0, 7]}]
        ask(
            pair,
            f"election {election} in {timeout_ms} ms",
            ApiKey.ELECT_LEADERS,
            2,
            election_type=election,
            topic_partitions=wanted,
            timeout_ms=timeout_ms,
        )


def doubled_topics(pair: Pair) -> None:
    """Topics that are named twice, by both name and id or by neither, in no time at all or in enough."""
    make(pair, "doubled")
    both = {"name": "doubled", "topic_id": b"\x08" * 16}
    named, unclear = {"name": "no"}, {"name": None}
    for states in ([both, both], [both, unclear, named], [named, named, both], [unclear, unclear]):
        for timeout_ms in (0, 5000):
            label = f"deleted in {timeout_ms} ms: {states}"
            ask(pair, label, ApiKey.DELETE_TOPICS, 6, topics=states, timeout_ms=timeout_ms)
    topic = {"name": "created-doubled", "num_partitions": 1, "replication_factor": 1, "assignments": []}
    reserved = topic | {"name": "__cluster_metadata"}
    for topics in ([topic, topic], [topic, topic | {"name": "a b"}], [reserved], [topic, topic, reserved]):
        for timeout_ms in (0, 5000):
            label = f"created in {timeout_ms} ms: {[one['name'] for one in topics]}"
            ask(
                pair,
                label,
                ApiKey.CREATE_TOPICS,
                4,
                topics=topics,
                timeout_ms=timeout_ms,
                validate_only=True,
            )
    grown = {"name": "doubled", "count": 3, "assignments": None}
    for topics in ([grown, grown], [grown, grown, grown | {"name": "no"}]):
        for timeout_ms in (0, 5000):
            label = f"grown in {timeout_ms} ms: {[one['name'] for one in topics]}"
            ask(
                pair,
                label,
                ApiKey.CREATE_PARTITIONS,
                3,
                topics=topics,
                timeout_ms=timeout_ms,
                validate_only=True,
            )


def too_many_partitions(pair: Pair) -> None:
    """Topics that together have more partitions than one request creates, beside such as aren't created anyway."""
    fine, wrong = _new("many"), _new("many-wrong", replication_factor=-5)
    half, much = _new("many-half", num_partitions=5_000), _new("many-more", num_partitions=10_001)
    assigned = _new(
        "many-assigned",
        num_partitions=-1,
        replication_factor=-1,
        assignments=[{"partition_index": index, "broker_ids": [1]} for index in range(5_000)],
    )
    replica = {"partition_index": 0, "broker_ids": [1]}
    both = [_new("many-both", num_partitions=10_001, replication_factor=-1, assignments=[replica])]
    for topics in (
        both,
        [_new("many-below-none", num_partitions=-5_000), much],
        [fine, wrong, much],
        [half, assigned, fine],
        [half, half, assigned, fine],
        [fine, fine, much],
        [much, much, fine],
        [_new("__cluster_metadata", num_partitions=10_001), fine],
        [_new(TOPIC, num_partitions=10_001), fine],
        [_new("no name", num_partitions=10_001), fine],
    ):
        label = f"created: {[(one['name'], one['num_partitions']) for one in topics]}"
        for timeout_ms in (0, 5000):
            ask(
                pair,
                f"{label} in {timeout_ms} ms",
                ApiKey.CREATE_TOPICS,
                4,
                topics=topics,
                timeout_ms=timeout_ms,
                validate_only=True,
            )


def _new(name: str, **others: Any) -> dict[str, Any]:
    return {"name": name, "num_partitions": 1, "replication_factor": 1, "assignments": [], **others}


#: By name.
FIRST_FAULTS: Final[dict[str, Callable[[Pair], None]]] = {
    "frames": frames,
    "faults together": faults_together,
    "unknown isolation levels": unknown_isolation_levels,
    "commits of what isn't there": commits_of_what_is_not_there,
    "growth": growth,
    "faults of config changes": faults_of_config_changes,
    "sessions out of step": sessions_out_of_step,
    "strangers": strangers,
    "doubled topics": doubled_topics,
    "too many partitions": too_many_partitions,
}
