"""What is named twice in one request, once rightly and once wrongly; batches with a fault and a producer's fault."""

from __future__ import annotations

__all__ = ("TWICE_CASES",)

from collections.abc import Callable
from typing import Any, Final

from crc32c import crc32c
from tests.differential.compare import Pair
from tests.differential.corner_cases import ask, make, message
from tests.differential.odd_requests import GROUP, TIME_MS, TOPIC, VICTIM, topic_id_of

from penstock.wire import ApiKey
from penstock.wire.record_builder import build_batch

#: Stands for the id of a producer, and for records that carry it.
_PRODUCER: Final = 111_222_334
_RECORDS: Final = b"@records of a producer"
_GOOD: Final = bytes(build_batch([(b"key", b"value", (), TIME_MS)]))


def _in_one_and_in_two(name: str, field: str, first: Any, second: Any) -> list[list[dict[str, Any]]]:
    """Two entries of a topic that is named once, and of one that is named twice."""
    return [
        [{"name": name, field: [first, second]}],
        [{"name": name, field: [first]}, {"name": name, field: [second]}],
    ]


def commits_twice(pair: Pair) -> None:
    """A partition with two offsets, of which one or both can't be committed."""
    make(pair, "committed-twice")
    long = "x" * 5_000
    asked = [{"name": "committed-twice", "partition_indexes": [0]}]
    for number, (one, two) in enumerate(((long, "b"), ("a", long), ("a", "b"), (long, long))):
        entries = [
            {"partition_index": 0, "committed_offset": 10 * number + at, "committed_metadata": metadata}
            for at, metadata in enumerate((one, two))
        ]
        for topics in _in_one_and_in_two("committed-twice", "partitions", *entries):
            label = f"{len(topics)} topics, metadata {one[:2]}, then {two[:2]}"
            ask(pair, label, ApiKey.OFFSET_COMMIT, 8, group_id=GROUP, topics=topics)
            ask(pair, f"{label}: kept", ApiKey.OFFSET_FETCH, 7, group_id=GROUP, topics=asked)


def deletions_twice(pair: Pair) -> None:
    """Offsets of topics that are named again, with partitions that are there and that aren't."""
    for group in (GROUP, "no"):
        for named in (
            ((TOPIC, 0), (TOPIC, 0)),
            ((TOPIC, 0), (TOPIC, 9)),
            ((TOPIC, 9), ("no", 0), (TOPIC, 1)),
            (("no", 0), ("no", 1)),
        ):
            topics = [{"name": name, "partitions": [{"partition_index": index}]} for name, index in named]
            ask(pair, f"{named} of {group}", ApiKey.OFFSET_DELETE, 0, group_id=group, topics=topics)


def fetches_twice(pair: Pair) -> None:
    """Topics that are named again with another one in between."""
    make(pair, "fetched-twice", 2)
    for version in (4, 13):
        for indexes in ((0, 1), (0, 0), (9, 0), (0, 9)):
            topics = [
                {
                    "topic": name,
                    "topic_id": b"\x09" * 16 if name == "no" else topic_id_of(name),
                    "partitions": [{"partition": index, "fetch_offset": 3, "partition_max_bytes": 1 << 20}],
                }
                for name, index in (
                    ("fetched-twice", indexes[0]),
                    ("no", 0),
                    (TOPIC, 0),
                    ("fetched-twice", indexes[1]),
                )
            ]
            ask(
                pair,
                f"partitions {indexes}",
                ApiKey.FETCH,
                version,
                max_wait_ms=0,
                session_epoch=-1,
                topics=topics,
            )


def produced_twice(pair: Pair) -> None:
    """A partition with two batches, of which one isn't a batch."""
    make(pair, "produced-twice")
    for first, second in ((b"", _GOOD), (_GOOD[:20], _GOOD), (_GOOD, b""), (_GOOD, _GOOD), (b"", b"")):
        entries = [{"index": 0, "records": records} for records in (first, second)]
        for topics in _in_one_and_in_two("produced-twice", "partition_data", *entries):
            label = f"{len(topics)} topics, {len(first)} bytes, then {len(second)}"
            ask(pair, label, ApiKey.PRODUCE, 9, acks=-1, timeout_ms=5000, topic_data=topics)


def two_faults(pair: Pair) -> None:
    """A batch that its producer may not send now, and that is wrong as such."""
    make(pair, "two-faults")
    request = message(ApiKey.INIT_PRODUCER_ID, transactional_id=None, transaction_timeout_ms=1000)
    for side in pair.sides:
        side.values[_PRODUCER] = side.ask_message(ApiKey.INIT_PRODUCER_ID, 4, request).producer_id

    def write(label: str, sequence: int, epoch: int, time_ms: int = TIME_MS, length: bytes = b"") -> None:
        for side in pair.sides:
            data = build_batch(
                [(b"key", b"value", (), time_ms)],
                producer_id=side.values[_PRODUCER],
                producer_epoch=epoch,
                base_sequence=sequence,
            )
            data[61 : 61 + len(length)] = length
            data[17:21] = crc32c(memoryview(data)[21:]).to_bytes(4, "big")
            side.values[_RECORDS] = bytes(data)
        topic = {"name": "two-faults", "partition_data": [{"index": 0, "records": _RECORDS}]}
        ask(pair, label, ApiKey.PRODUCE, 9, acks=-1, timeout_ms=5000, topic_data=[topic])

    write("the first", 0, 0)
    for label, sequence, epoch in (
        ("in sequence", 1, 0),
        ("a gap", 7, 0),
        ("a duplicate", 0, 0),
        ("a new epoch", 5, 1),
    ):
        write(f"{label}, a record that is too long", sequence, epoch, length=b"\x7f")
        write(f"{label}, a time that is too late", sequence, epoch, TIME_MS + 10**10)


def described_twice(pair: Pair) -> None:
    """Resources whose configs are all asked for, and that are named again."""
    known, none, other = (2, TOPIC), (2, "no-such-topic"), (2, VICTIM)
    for asked in (
        [known, known],
        [none, none],
        [known, other, known],
        [none, known, none],
    ):
        for keys in (None, [], ["retention.ms"]):
            resources = [
                {"resource_type": kind, "resource_name": name, "configuration_keys": keys}
                for kind, name in asked
            ]
            label = f"{[name for _, name in asked]} with {keys}"
            ask(pair, label, ApiKey.DESCRIBE_CONFIGS, 4, resources=resources, include_synonyms=False)


#: By name.
TWICE_CASES: Final[dict[str, Callable[[Pair], None]]] = {
    "commits twice": commits_twice,
    "deletions twice": deletions_twice,
    "fetches twice": fetches_twice,
    "produced twice": produced_twice,
    "two faults": two_faults,
    "described twice": described_twice,
}
