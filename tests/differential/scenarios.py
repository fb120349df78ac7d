"""What needs more than one request: the same script for both brokers, every answer compared."""

from __future__ import annotations

__all__ = ("SCENARIOS", "Scenario")

from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeAlias

from tests.differential.compare import Pair, ask_to_create, create_topic, join_alone, wait_until
from tests.differential.odd_requests import TIME_MS, OddRequest, topic_id_of
from tests.differential.side import Side

from penstock.wire import ApiKey
from penstock.wire.messages import (
    alter_configs,
    create_topics,
    delete_groups,
    delete_records,
    delete_topics,
    describe_configs,
    describe_groups,
    fetch,
    incremental_alter_configs,
    join_group,
    leave_group,
    list_offsets,
    offset_for_leader_epoch,
    produce,
    sync_group,
)
from penstock.wire.record_builder import build_batch

Scenario: TypeAlias = Callable[[Pair], None]

_EARLIEST: Final = -2
_LATEST: Final = -1
_MAX_TIMESTAMP: Final = -3
_BROKER: Final = 4
#: Stands for the id of a fetch session.
_SESSION: Final = -7777
_SET, _DELETE = 0, 1


def ask(pair: Pair, label: str, api_key: int, version: int, message: Any) -> None:
    """One step that is compared."""
    pair.compare(api_key, version, OddRequest(label, message))


def tell(pair: Pair, api_key: int, version: int, message: Any) -> list[Any]:
    """One step that is not compared; both answers."""
    return [side.ask_message(api_key, version, message) for side in pair.sides]


def make(pair: Pair, name: str, partitions: int = 1) -> None:
    """A topic with three records in each partition."""
    for side in pair.sides:
        create_topic(side, name, partitions)


def delete(pair: Pair, name: str) -> None:
    """Delete a topic."""
    state = delete_topics.DeleteTopicState(name=name)
    request = delete_topics.DeleteTopicsRequest(topics=[state], topic_names=[], timeout_ms=10_000)
    for answer in tell(pair, ApiKey.DELETE_TOPICS, 6, request):
        assert answer.responses[0].error_code == 0


def write(pair: Pair, topic: str, *timestamps: int) -> None:
    """A batch with one record at each of the times."""
    records = bytes(build_batch([(b"key", b"value", (), timestamp) for timestamp in timestamps]))
    data = produce.TopicProduceData(
        name=topic, partition_data=[produce.PartitionProduceData(index=0, records=records)]
    )
    request = produce.ProduceRequest(acks=-1, timeout_ms=5000, topic_data=[data])
    for answer in tell(pair, ApiKey.PRODUCE, 9, request):
        assert answer.responses[0].partition_responses[0].error_code == 0


def offsets(pair: Pair, label: str, topic: str, *timestamps: int) -> None:
    """ListOffsets of partition 0 at each of the timestamps."""
    for timestamp in timestamps:
        partition = list_offsets.ListOffsetsPartition(partition_index=0, timestamp=timestamp)
        wanted = list_offsets.ListOffsetsTopic(name=topic, partitions=[partition])
        request = list_offsets.ListOffsetsRequest(replica_id=-1, topics=[wanted])
        ask(pair, f"{label}: offset at {timestamp - TIME_MS if timestamp > 0 else timestamp}", 2, 8, request)


def delete_up_to(pair: Pair, topic: str, offset: int) -> None:
    """DeleteRecords of partition 0."""
    partition = delete_records.DeleteRecordsPartition(partition_index=0, offset=offset)
    wanted = delete_records.DeleteRecordsTopic(name=topic, partitions=[partition])
    request = delete_records.DeleteRecordsRequest(topics=[wanted], timeout_ms=10_000)
    ask(pair, f"records before {offset} are deleted", ApiKey.DELETE_RECORDS, 2, request)


def offsets_by_time(pair: Pair) -> None:
    """Lookups by time, before and after the log start moves past the record with the greatest timestamp."""
    make(pair, "times")
    everything = (_EARLIEST, _LATEST, _MAX_TIMESTAMP, 0, TIME_MS - 1, TIME_MS, TIME_MS + 50, TIME_MS + 101)
    offsets(pair, "times", "times", *everything)
    write(pair, "times", TIME_MS + 100, TIME_MS + 50, TIME_MS + 10)
    write(pair, "times", TIME_MS + 20)
    offsets(pair, "out of order", "times", *everything)
    for start in (3, 4, 5, 6, 7):
        delete_up_to(pair, "times", start)
        offsets(pair, f"from {start} on", "times", *everything)
    write(pair, "times", TIME_MS + 5)
    offsets(pair, "written again", "times", *everything)


def records_without_time(pair: Pair) -> None:
    """Lookups by time among records that have none, or times below none, until one comes that has a time."""
    everything = (_EARLIEST, _LATEST, _MAX_TIMESTAMP, 0, TIME_MS)
    for name, times in (("untimed", (-1, -1)), ("below", (-2,)), ("mixed", (-1, -2))):
        for side in pair.sides:
            made = ask_to_create(side, name, 1)
            assert made.error_code == 0, (side.name, made)
            side.learn(topic_id_of(name), bytes(made.topic_id))
            wait_until(partial(_list_error, side, name))
        write(pair, name, *times)
        offsets(pair, f"{name}: {times}", name, *everything)
        write(pair, name, -1)
        offsets(pair, f"{name}: {times}, then one without", name, *everything)
        write(pair, name, -1, TIME_MS)
        offsets(pair, f"{name}: {times}, then one with a time", name, *everything)


def _list_error(side: Side, topic: str) -> int:
    partition = list_offsets.ListOffsetsPartition(partition_index=0, timestamp=-1)
    wanted = list_offsets.ListOffsetsTopic(name=topic, partitions=[partition])
    answer = side.ask_message(ApiKey.LIST_OFFSETS, 8, list_offsets.ListOffsetsRequest(topics=[wanted]))
    return int(answer.topics[0].partitions[0].error_code)


def leader_epochs(pair: Pair) -> None:
    """Where epochs end, of a new log, one with a moved start and one that is empty again."""
    make(pair, "epochs")
    for label in ("new", "moved", "empty"):
        for epoch in (-2, -1, 0, 1, 7):
            partition = offset_for_leader_epoch.OffsetForLeaderPartition(
                partition=0, current_leader_epoch=-1, leader_epoch=epoch
            )
            wanted = offset_for_leader_epoch.OffsetForLeaderTopic(topic="epochs", partitions=[partition])
            request = offset_for_leader_epoch.OffsetForLeaderEpochRequest(replica_id=-2, topics=[wanted])
            ask(pair, f"{label}: epoch {epoch}", ApiKey.OFFSET_FOR_LEADER_EPOCH, 4, request)
        delete_up_to(pair, "epochs", 2 if label == "new" else 3)


def _fetch(topic: str, session_id: int, epoch: int, *, by_id: bool, named: bool = True) -> fetch.FetchRequest:
    partition = fetch.FetchPartition(partition=0, fetch_offset=0, partition_max_bytes=1 << 20)
    wanted = fetch.FetchTopic(
        topic="" if by_id else topic, topic_id=topic_id_of(topic), partitions=[partition]
    )
    return fetch.FetchRequest(
        max_wait_ms=0,
        min_bytes=0,
        max_bytes=1 << 20,
        session_id=session_id,
        session_epoch=epoch,
        topics=[wanted] if named else [],
        forgotten_topics_data=[],
    )


def sessions(pair: Pair, *, by_id: bool) -> None:
    """A fetch session goes on while its topic is deleted and made again."""
    name, version = ("session-ids", 13) if by_id else ("session-names", 12)
    make(pair, name)
    opened = tell(pair, ApiKey.FETCH, version, _fetch(name, 0, 0, by_id=by_id))
    for side, answer in zip(pair.sides, opened, strict=True):
        assert answer.session_id
        side.learn(_SESSION, answer.session_id)

    def go_on(label: str, epoch: int, *, named: bool = False) -> None:
        ask(pair, label, ApiKey.FETCH, version, _fetch(name, _SESSION, epoch, by_id=by_id, named=named))

    go_on("all is known", 1)
    delete(pair, name)
    go_on("the topic is deleted", 2)
    go_on("it still is", 3)
    make(pair, name)
    go_on("it is made again", 4)
    go_on("it still is there", 5)
    go_on("it is named anew", 6, named=True)
    go_on("an old epoch", 3)


def groups(pair: Pair) -> None:
    """A group through its life, described at each step, as members come and go."""
    name = "life"

    def describe(label: str) -> None:
        request = describe_groups.DescribeGroupsRequest(groups=[name])
        ask(pair, f"{label}: described", ApiKey.DESCRIBE_GROUPS, 5, request)
        ask(pair, f"{label}: described in version 6", ApiKey.DESCRIBE_GROUPS, 6, request)

    describe("before")
    for side in pair.sides:
        side.learn("@first", join_alone(side, name))
    describe("stable")
    protocol = join_group.JoinGroupRequestProtocol(name="range", metadata=b"other")
    again = join_group.JoinGroupRequest(
        group_id=name,
        session_timeout_ms=300_000,
        rebalance_timeout_ms=300_000,
        member_id="@first",
        protocol_type="consumer",
        protocols=[protocol],
    )
    ask(pair, "the member joins with other metadata", ApiKey.JOIN_GROUP, 3, again)
    describe("between join and sync")
    mine = sync_group.SyncGroupRequestAssignment(member_id="@first", assignment=b"second")
    synced = sync_group.SyncGroupRequest(
        group_id=name, generation_id=2, member_id="@first", assignments=[mine]
    )
    ask(pair, "it syncs", ApiKey.SYNC_GROUP, 3, synced)
    describe("stable again")
    ask(
        pair,
        "it is deleted too early",
        ApiKey.DELETE_GROUPS,
        2,
        delete_groups.DeleteGroupsRequest(groups_names=[name]),
    )
    left = leave_group.LeaveGroupRequest(group_id=name, member_id="@first")
    ask(pair, "the member leaves", ApiKey.LEAVE_GROUP, 2, left)
    describe("empty")
    ask(
        pair, "it is deleted", ApiKey.DELETE_GROUPS, 2, delete_groups.DeleteGroupsRequest(groups_names=[name])
    )
    describe("deleted")


def name_collisions(pair: Pair) -> None:
    """Topics whose metrics would have the same names."""
    make(pair, "dots.and_more")
    for name in ("dots_and.more", "dots_and_more", "dots.and.more", "dots.and_more", "dots-and_more"):
        topic = create_topics.CreatableTopic(name=name, num_partitions=1, replication_factor=1)
        request = create_topics.CreateTopicsRequest(topics=[topic], timeout_ms=10_000, validate_only=True)
        ask(pair, f"{name} beside dots.and_more", ApiKey.CREATE_TOPICS, 4, request)


def broker_configs(pair: Pair) -> None:
    """What kafka-reassign-partitions does to a broker: throttles are set and taken away again, set or not."""
    for name in (
        "leader.replication.throttled.rate",
        "follower.replication.throttled.rate",
        "no.such.config",
    ):
        for operation, value in ((_DELETE, None), (_SET, "1000000"), (_DELETE, "")):
            if name.startswith("no.") and operation == _SET:
                continue
            change = incremental_alter_configs.AlterableConfig(
                name=name, config_operation=operation, value=value
            )
            resource = incremental_alter_configs.AlterConfigsResource(
                resource_type=_BROKER, resource_name="1", configs=[change]
            )
            request = incremental_alter_configs.IncrementalAlterConfigsRequest(resources=[resource])
            ask(pair, f"{name}: {('set', 'delete')[operation]}", ApiKey.INCREMENTAL_ALTER_CONFIGS, 1, request)
    nothing = alter_configs.AlterConfigsResource(resource_type=_BROKER, resource_name="1", configs=[])
    ask(pair, "none is set", ApiKey.ALTER_CONFIGS, 2, alter_configs.AlterConfigsRequest(resources=[nothing]))
    wanted = [
        "auto.create.topics.enable",
        "num.partitions",
        "advertised.listeners",
        "message.max.bytes",
        "node.id",
    ]
    described = describe_configs.DescribeConfigsResource(
        resource_type=_BROKER, resource_name="1", configuration_keys=wanted
    )
    ask(
        pair,
        "described",
        ApiKey.DESCRIBE_CONFIGS,
        4,
        describe_configs.DescribeConfigsRequest(resources=[described], include_synonyms=True),
    )


def topic_synonyms(pair: Pair) -> None:
    """All configs of a topic that sets one of them, with where each value comes from."""
    for side in pair.sides:
        create_topic(side, "synonyms", 1, retention_ms="1000")
    described = describe_configs.DescribeConfigsResource(
        resource_type=2, resource_name="synonyms", configuration_keys=None
    )
    request = describe_configs.DescribeConfigsRequest(resources=[described], include_synonyms=True)
    ask(pair, "all with synonyms", ApiKey.DESCRIBE_CONFIGS, 4, request)


#: By name.
SCENARIOS: Final[dict[str, Scenario]] = {
    "offsets by time": offsets_by_time,
    "records without time": records_without_time,
    "leader epochs": leader_epochs,
    "fetch sessions by name": lambda pair: sessions(pair, by_id=False),
    "fetch sessions by id": lambda pair: sessions(pair, by_id=True),
    "the life of a group": groups,
    "name collisions": name_collisions,
    "broker configs": broker_configs,
    "synonyms of topic configs": topic_synonyms,
}
