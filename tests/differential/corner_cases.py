"""More scripts for both brokers: what a request says twice, sequences of producers, members that come back."""

from __future__ import annotations

__all__ = ("CORNER_CASES",)

import itertools
import types
import typing
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any, Final

import msgspec
from tests.differential.compare import Pair, create_topic, wait_until
from tests.differential.odd_requests import TIME_MS, OddRequest, load_schema, topic_id_of
from tests.differential.side import Side

from penstock.wire import ApiKey
from penstock.wire.messages._index import INDEX
from penstock.wire.record_builder import build_batch

#: Stands for the id of a producer, of a fetch session, and for records that carry the id.
_PRODUCER: Final = 111_222_333
_SESSION: Final = -7778
_RECORDS: Final = b"@records"
_SEQUENCE_MAX: Final = 2**31 - 1
_SET, _DELETE, _APPEND = 0, 1, 2
_marks: Final = itertools.count(1_000_000)


def message(api_key: int, **values: Any) -> Any:
    """A request made of dicts, lists and scalars."""
    module = import_module(f"penstock.wire.messages.{INDEX[api_key][0]}")
    return _built(getattr(module, load_schema(INDEX[api_key][0])["name"]), values)


def _built(kind: Any, value: Any) -> Any:
    choices = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if isinstance(value, dict):
        (struct,) = (one for one in choices if isinstance(one, type) and issubclass(one, msgspec.Struct))
        hints = typing.get_type_hints(struct)
        return struct(**{name: _built(hints[name], each) for name, each in value.items()})
    if isinstance(value, list):
        (array,) = (one for one in choices if typing.get_origin(one) in (list, Sequence))
        return [_built(typing.get_args(array)[0], each) for each in value]
    return value


def ask(pair: Pair, label: str, api_key: int, version: int, **values: Any) -> None:
    """One step that is compared."""
    pair.compare(api_key, version, OddRequest(label, message(api_key, **values)))


def make(pair: Pair, name: str, partitions: int = 1) -> None:
    """A topic with three records in each partition."""
    for side in pair.sides:
        create_topic(side, name, partitions)


def wait_for_configs(pair: Pair, topic: str) -> None:
    """Change one more config and wait until it is told: Kafka's controller answers before its broker knows."""
    resource = {"resource_type": 2, "resource_name": topic}
    mark = {"name": "segment.ms", "config_operation": _SET, "value": str(next(_marks))}
    marked = message(ApiKey.INCREMENTAL_ALTER_CONFIGS, resources=[resource | {"configs": [mark]}])
    keys = {"configuration_keys": [mark["name"]]}
    asked = message(ApiKey.DESCRIBE_CONFIGS, resources=[resource | keys])

    def is_behind(side: Side) -> int:
        (result,) = side.ask_message(ApiKey.DESCRIBE_CONFIGS, 4, asked).results
        return int(result.configs[0].value != mark["value"])

    for side in pair.sides:
        side.ask_message(ApiKey.INCREMENTAL_ALTER_CONFIGS, 1, marked)
        wait_until(partial(is_behind, side))


def sequences(pair: Pair) -> None:
    """An idempotent producer: duplicates, gaps, the window, epochs, sequences that wrap, records that are deleted."""

    def begin(topic: str) -> None:
        make(pair, topic)
        request = message(ApiKey.INIT_PRODUCER_ID, transactional_id=None, transaction_timeout_ms=1000)
        for side in pair.sides:
            side.values[_PRODUCER] = side.ask_message(ApiKey.INIT_PRODUCER_ID, 4, request).producer_id

    def write(label: str, topic: str, sequence: int, count: int = 1, epoch: int = 0) -> None:
        for side in pair.sides:
            side.values[_RECORDS] = bytes(
                build_batch(
                    [(b"key", b"value", (), TIME_MS)] * count,
                    producer_id=side.values[_PRODUCER],
                    producer_epoch=epoch,
                    base_sequence=sequence,
                )
            )
        data = {"name": topic, "partition_data": [{"index": 0, "records": _RECORDS}]}
        ask(pair, label, ApiKey.PRODUCE, 9, acks=-1, timeout_ms=5000, topic_data=[data])
        latest = {"name": topic, "partitions": [{"partition_index": 0, "timestamp": -1}]}
        ask(pair, f"{label}: the end", ApiKey.LIST_OFFSETS, 8, replica_id=-1, topics=[latest])

    begin("sequences")
    for label, sequence, count in (("first", 0, 1), ("three", 1, 3), ("part of them", 1, 1), ("more", 0, 4)):
        write(label, "sequences", sequence, count)
        write(f"{label} again", "sequences", sequence, count)
    for sequence in (9, *range(4, 12), 0, 7, 6):
        write(f"sequence {sequence}", "sequences", sequence)
    for epoch, sequence in ((1, 13), (1, 0), (0, 12), (0, 11), (1, 0), (7, 0), (32767, 0), (32767, 1)):
        write(f"epoch {epoch}, sequence {sequence}", "sequences", sequence, epoch=epoch)
    begin("wrap")
    for sequence, count in (
        (_SEQUENCE_MAX - 2, 1),
        (_SEQUENCE_MAX - 1, 4),
        (_SEQUENCE_MAX - 1, 4),
        (2, 1),
        (0, 1),
    ):
        write(f"wrap: {sequence}, {count} records", "wrap", sequence, count)
    begin("unknown")
    for sequence in (5, 5, 6):
        write(f"unknown: {sequence}", "unknown", sequence)
    all_records = {"name": "unknown", "partitions": [{"partition_index": 0, "offset": -1}]}
    ask(pair, "all is deleted", ApiKey.DELETE_RECORDS, 2, topics=[all_records], timeout_ms=5000)
    for sequence in (6, 17, 7):
        write(f"after deletion: {sequence}", "unknown", sequence)


def twice(pair: Pair) -> None:
    """What is named twice in one request, by its name or by its id, whether it is there or not."""
    make(pair, "twice")
    by_name, by_id = {"name": "twice"}, {"name": None, "topic_id": topic_id_of("twice")}
    unknown = {"name": None, "topic_id": b"\x09" * 16}
    for label, states in (
        ("name", [by_name, by_name]),
        ("id", [by_id, by_id]),
        ("name and id", [by_name, by_id]),
        ("unknown name", [{"name": "no"}, {"name": "no"}]),
        ("unknown id", [unknown, unknown]),
    ):
        ask(pair, f"{label} twice", ApiKey.DELETE_TOPICS, 6, topics=states, timeout_ms=5000)
    group = "left-twice"
    protocol = {"name": "range", "metadata": b"bytes"}
    ask(
        pair,
        "a static member joins",
        ApiKey.JOIN_GROUP,
        5,
        group_id=group,
        group_instance_id="one",
        session_timeout_ms=30_000,
        rebalance_timeout_ms=30_000,
        protocol_type="consumer",
        protocols=[protocol],
    )
    named = {"member_id": "", "group_instance_id": "one"}
    ask(pair, "and leaves twice", ApiKey.LEAVE_GROUP, 5, group_id=group, members=[named, named])


def cursors(pair: Pair) -> None:
    """Pages of DescribeTopicPartitions, from any cursor, also with topics that aren't there."""
    for name, partitions in (("page-a", 3), ("page-b", 1), ("page-c", 2)):
        make(pair, name, partitions)
    names = ("page-c", "no", "page-a", "page-b", "zz")
    for limit in (1, 2, 3, 4, 5, 6, 7):
        for topic in ("page-a", "page-b", "page-c", "no", "zz"):
            for partition in (0, 1, 2, 3):
                cursor = {"topic_name": topic, "partition_index": partition}
                ask(
                    pair,
                    f"{limit} from {topic}-{partition}",
                    ApiKey.DESCRIBE_TOPIC_PARTITIONS,
                    0,
                    topics=[{"name": name} for name in names],
                    response_partition_limit=limit,
                    cursor=cursor,
                )


def forgotten(pair: Pair) -> None:
    """Fetch sessions: partitions that come, go, and do both in one request; a session that begins with nothing."""
    make(pair, "forgotten", 2)

    def asked(*partitions: int) -> list[dict[str, Any]]:
        named = [{"partition": one, "fetch_offset": 0, "partition_max_bytes": 1 << 20} for one in partitions]
        return [{"topic": "forgotten", "partitions": named}] if partitions else []

    def request(session: int, epoch: int, topics: list[Any], gone: tuple[int, ...] = ()) -> dict[str, Any]:
        return {
            "max_wait_ms": 0,
            "min_bytes": 0,
            "max_bytes": 1 << 20,
            "session_id": session,
            "session_epoch": epoch,
            "topics": topics,
            "forgotten_topics_data": [{"topic": "forgotten", "partitions": list(gone)}] if gone else [],
        }

    for first in ((), (0,)):
        opened = message(ApiKey.FETCH, **request(0, 0, asked(*first)))
        for side in pair.sides:
            side.learn(_SESSION, side.ask_message(ApiKey.FETCH, 12, opened).session_id)
        for epoch, (label, came, gone) in enumerate(
            (
                ("one comes", (1,), ()),
                ("the other goes", (), (0,)),
                ("one comes and goes", (0,), (0,)),
                ("one that is there comes and goes", (1,), (1,)),
                ("nothing is left", (), ()),
                ("what isn't there goes", (), (7,)),
            ),
            start=1,
        ):
            ask(pair, label, ApiKey.FETCH, 12, **request(_SESSION, epoch, asked(*came), gone))


def special_timestamps(pair: Pair) -> None:
    """Special timestamps of each version, of partitions that are there and that aren't, in any epoch."""
    make(pair, "special")
    for version in (1, 6, 7, 8, 9, 10, 11):
        for timestamp in range(-8, 0):
            for epoch in (-1, 0, 1, -2) if version > 3 else (-1,):
                partitions = [
                    {"partition_index": index, "timestamp": timestamp, "current_leader_epoch": epoch}
                    for index in (0, 1)
                ]
                topic = {"name": "special", "partitions": partitions}
                ask(pair, f"{timestamp} in epoch {epoch}", ApiKey.LIST_OFFSETS, version, topics=[topic])


def config_changes(pair: Pair) -> None:
    """Changes of configs that aren't set, aren't known, or are of what has no name."""
    make(pair, "changes")

    def change(label: str, *configs: tuple[str, int, str | None]) -> None:
        changes = [{"name": name, "config_operation": how, "value": value} for name, how, value in configs]
        resource = {"resource_type": 2, "resource_name": "changes", "configs": changes}
        ask(pair, label, ApiKey.INCREMENTAL_ALTER_CONFIGS, 1, resources=[resource])
        wait_for_configs(pair, "changes")
        wanted = {
            "resource_type": 2,
            "resource_name": "changes",
            "configuration_keys": ["retention.bytes", "retention.ms"],
        }
        ask(
            pair, f"{label}: described", ApiKey.DESCRIBE_CONFIGS, 4, resources=[wanted], include_synonyms=True
        )

    change("delete what isn't set", ("retention.ms", _DELETE, None))
    change("delete what isn't known", ("no.such.config", _DELETE, None))
    change("delete both, and set", ("no", _DELETE, None), ("retention.bytes", _SET, "-2"))
    change("set what isn't known", ("no.such.config", _SET, "1"))
    change("set and delete", ("retention.ms", _SET, "5"), ("retention.ms", _DELETE, None))
    change("append to a number", ("retention.ms", _APPEND, "5"))
    for kind in (2, 4, 16, 32):
        for name in ("", "no"):
            resource = {"resource_type": kind, "resource_name": name, "configuration_keys": ["no"]}
            ask(pair, f"resource {kind} {name!r}", ApiKey.DESCRIBE_CONFIGS, 4, resources=[resource])


#: By name.
CORNER_CASES: Final[dict[str, Callable[[Pair], None]]] = {
    "sequences of producers": sequences,
    "what is named twice": twice,
    "pages of partitions": cursors,
    "forgotten partitions": forgotten,
    "special timestamps": special_timestamps,
    "changes of configs": config_changes,
}
