"""Both brokers side by side: the world that requests meet, what differs between two answers, and the report."""

from __future__ import annotations

__all__ = ("Difference", "Pair", "Report", "differences", "grouped")

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from tests.differential.meant import MEANT, SKIPPED, Meant
from tests.differential.odd_requests import (
    GROUP,
    LIVE_GROUP,
    MEMBER,
    TOPIC,
    VICTIM,
    OddRequest,
    records,
    topic_id_of,
)
from tests.differential.side import TEXT, Side
from tests.patience import HANG_S

from penstock.wire import ApiKey, ErrorCode
from penstock.wire.messages import (
    consumer_group_heartbeat,
    create_topics,
    delete_groups,
    delete_topics,
    describe_cluster,
    describe_groups,
    find_coordinator,
    heartbeat,
    init_producer_id,
    join_group,
    leave_group,
    list_groups,
    metadata,
    offset_commit,
    produce,
    sync_group,
)

#: Topics of the brokers' own, made before anything is compared: which request makes one is Kafka's affair.
_INTERNAL: Final = ("__consumer_offsets", "__transaction_state")
#: Fields that name an item of a list.
_NAMES: Final = (
    "name",
    "api_key",
    "topic",
    "group_id",
    "topic_id",
    "partition_index",
    "partition",
    "index",
    "member_id",
)
#: Requests of these may end the membership of MEMBER.
_ENDS_MEMBERSHIP: Final = frozenset({ApiKey.LEAVE_GROUP, ApiKey.SYNC_GROUP, ApiKey.JOIN_GROUP})


@dataclass(frozen=True, slots=True)
class Difference:
    """One field that the brokers answer differently."""

    api: str
    version: int
    request: str
    path: str
    kafka: Any
    penstock: Any

    def __str__(self) -> str:
        where = f"{self.api} v{self.version}: {self.request}"
        return f"{where}\n    {self.path or 'answer'}: kafka={_short(self.kafka)} penstock={_short(self.penstock)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def differences(kafka: Any, penstock: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(path, Kafka's value, Penstock's value) of each field that differs; lists by name where they have names."""
    if isinstance(kafka, dict) and isinstance(penstock, dict):
        for name in kafka.keys() | penstock.keys():
            below = f"{path}.{name}" if path else name
            yield from differences(kafka.get(name), penstock.get(name), below)
    elif isinstance(kafka, list) and isinstance(penstock, list):
        if (named := _by_name(kafka)) is not None and (others := _by_name(penstock)) is not None:
            for name in named.keys() | others.keys():
                yield from differences(named.get(name), others.get(name), f"{path}[{name}]")
        elif len(kafka) == len(penstock):
            for ours, theirs in zip(kafka, penstock, strict=True):
                yield from differences(ours, theirs, path)
        else:
            yield path, kafka, penstock
    elif penstock == TEXT and not kafka:
        pass  # more than Kafka says of what went wrong is no difference
    elif kafka != penstock or type(kafka) is not type(penstock):
        yield path, kafka, penstock


def _by_name(items: list[Any]) -> dict[Any, Any] | None:
    """The items by what names them, None if nothing does."""
    for name in _NAMES:
        if items and all(isinstance(each, dict) and name in each for each in items):
            found = {each[name]: each for each in items}
            return found if len(found) == len(items) else None
    return None if items else {}


def grouped(found: Iterable[Difference]) -> str:
    """The same difference of many requests once, with where it was first and how often."""
    groups: dict[tuple[str, str, str, str], list[Difference]] = {}
    for each in found:
        key = (each.api, re.sub(r"\[.*?\]", "[]", each.path), _short(each.kafka), _short(each.penstock))
        groups.setdefault(key, []).append(each)
    lines = []
    for (api, path, kafka, penstock), items in groups.items():
        versions = sorted({each.version for each in items})
        labels = list(dict.fromkeys(each.request for each in items))
        more = f" and {len(labels) - 4} more" if len(labels) > 4 else ""
        lines.append(
            f"{api} v{versions[0]}-{versions[-1]} {path or 'answer'}: kafka={kafka} penstock={penstock}"
        )
        lines.append(f"    {len(items)} times: {'; '.join(labels[:4])}{more}")
    return "\n".join(lines)


@dataclass(slots=True)
class Report:
    """What was compared, by (API, version), and which meant differences were met, by (comparison, difference)."""

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    meant: Counter[tuple[str, int]] = field(default_factory=Counter)
    unexpected: list[Difference] = field(default_factory=list)
    met: Counter[tuple[str, Meant]] = field(default_factory=Counter)

    def add(self, where: str, api: str, version: int, request: str, kafka: Any, penstock: Any) -> None:
        """Enter one pair of answers, which was got in the comparison ``where``."""
        self.requests[api, version] += 1
        found = [Difference(api, version, request, *each) for each in differences(kafka, penstock)]
        unexpected = False
        for each in found:
            reason = next((meant for meant in MEANT if where in meant.where and meant.covers(each)), None)
            if reason is None:
                unexpected = True
                self.unexpected.append(each)
            else:
                self.met[where, reason] += 1
        if found and not unexpected:
            self.meant[api, version] += 1

    def __str__(self) -> str:
        """A table: one line per API, versions with the same counts of differences together."""
        odd = Counter(
            key
            for key in {(d.api, d.version, d.request): (d.api, d.version) for d in self.unexpected}.values()
        )
        lines = [f"{'API':<32}{'versions':>9}{'requests':>10}{'equal':>8}{'meant':>8}{'unexpected':>12}"]
        total = [0, 0, 0, 0]
        for api in dict.fromkeys(api for api, _ in self.requests):
            keys = [key for key in self.requests if key[0] == api]
            sums = [sum(counter[key] for key in keys) for counter in (self.requests, self.meant, odd)]
            row = [sums[0], sums[0] - sums[1] - sums[2], *sums[1:]]
            versions = [version for _, version in keys]
            shown = f"{min(versions)}-{max(versions)}" if min(versions) < max(versions) else str(versions[0])
            lines.append(f"{api:<32}{shown:>9}{row[0]:>10}{row[1]:>8}{row[2]:>8}{row[3]:>12}")
            total = [a + b for a, b in zip(total, row, strict=True)]
        lines.append(f"{'all':<32}{'':>9}{total[0]:>10}{total[1]:>8}{total[2]:>8}{total[3]:>12}")
        lines += ["", "Differences that are meant:"]
        met: Counter[Meant] = Counter()
        for (_, meant), count in self.met.items():
            met[meant] += count
        lines += [f"{count:>6}  {meant.name}: {meant.reason}" for meant, count in met.most_common()]
        return "\n".join(lines)


class Pair:
    """Kafka and Penstock in the same state."""

    def __init__(self, kafka: Side, penstock: Side, report: Report) -> None:
        self.kafka = kafka
        self.penstock = penstock
        self.report = report
        self._where = ""
        self._names = 0

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.kafka, self.penstock

    @contextmanager
    def comparing(self, where: str) -> Iterator[None]:
        """One comparison: it fails at what isn't meant, and where a difference that is meant isn't there any more."""
        self._where = where
        self.renew()
        before = len(self.report.unexpected)
        yield
        unexpected = self.report.unexpected[before:]
        assert not unexpected, f"{len(unexpected)} unexpected differences:\n{grouped(unexpected)}"
        absent = [
            meant.name
            for meant in MEANT
            if where in meant.where and not meant.is_left_behind and not self.report.met[where, meant]
        ]
        assert absent == [], f"differences that are meant and aren't there any more: {absent}"

    def compare(self, api_key: int, version: int, request: OddRequest, *, label: str = "") -> tuple[Any, Any]:
        """Ask both at once; what differs is in the report. Returns both answers as shown."""
        api = ApiKey(api_key).name.lower()
        if any(api == name and re.fullmatch(pattern, request.label) for name, pattern in SKIPPED):
            return None, None
        for side in self.sides:
            side.send(api_key, version, request)
        answers = [side.receive() for side in self.sides]
        kafka, penstock = (side.shown(answer) for side, answer in zip(self.sides, answers, strict=True))
        self.report.add(self._where, api, version, label or request.label, kafka, penstock)
        if api_key == ApiKey.CONSUMER_GROUP_HEARTBEAT:
            for side, answer in zip(self.sides, answers, strict=True):
                leave_as_consumer(side, version, request.message, answer)
        return kafka, penstock

    # -- the world ------------------------------------------------------------------------------------------

    def set_up(self) -> None:
        """Make what is there for good."""
        for side in self.sides:
            cluster = side.ask_message(ApiKey.DESCRIBE_CLUSTER, 0, describe_cluster.DescribeClusterRequest())
            side.learn("<cluster>", cluster.cluster_id)
            for api_key, message in (
                (ApiKey.FIND_COORDINATOR, find_coordinator.FindCoordinatorRequest(key=GROUP, key_type=0)),
                (ApiKey.INIT_PRODUCER_ID, init_producer_id.InitProducerIdRequest(transactional_id=None)),
            ):
                wait_until(partial(_code_of, side, api_key, 3, message))
            if (
                side is self.penstock
            ):  # there it takes more than to be asked for, as there are no transactions
                ask_to_create(side, _INTERNAL[1], 1)
            for name in _INTERNAL:
                topic = metadata.MetadataRequestTopic(name=name)
                request = metadata.MetadataRequest(topics=[topic], allow_auto_topic_creation=True)
                wait_until(partial(_code_of_topic, side, request))
                side.learn_topic(name)

    def renew(self) -> None:
        """Make what sane requests ask for, and remove everything else, whatever requests left behind.

        Names are new each time: a broker cleans up after a deleted topic in its own time. Kafka also creates topics
        that Metadata asked for in its own time, but in the order of requests: once VICTIM is there, so are those.
        """
        self._name_anew(TOPIC, VICTIM, GROUP)
        for side in self.sides:
            create_topic(side, TOPIC, 2)
            create_topic(side, VICTIM, 1)
            remove_other_topics(side, {side.values[TOPIC], side.values[VICTIM]})
            remove_all_groups(side)
            commit(side, GROUP)
        self.renew_live_group()

    def prepare(self, api_key: int) -> None:
        """Have there again what earlier requests of this API may have destroyed."""
        if api_key == ApiKey.DELETE_GROUPS:
            for side in self.sides:
                commit(side, "victim-group")
                commit(side, GROUP)
        if api_key in _ENDS_MEMBERSHIP and not all(self._is_live(side) for side in self.sides):
            self.renew_live_group()

    def renew_victim(self) -> None:
        """The victim as it was: three records, nothing deleted."""
        for side in self.sides:
            delete_topic(side, VICTIM)
        self._name_anew(VICTIM)
        for side in self.sides:
            create_topic(side, VICTIM, 1)

    def renew_live_group(self) -> None:
        """A group that no request met yet, with MEMBER in it."""
        self._name_anew(LIVE_GROUP)
        for side in self.sides:
            side.learn(MEMBER, join_alone(side, LIVE_GROUP))

    def _name_anew(self, *symbols: str) -> None:
        """Have them stand for names that are used for the first time."""
        for symbol in symbols:
            self._names += 1
            for side in self.sides:
                side.learn(symbol, f"{symbol}-{self._names}")

    def _is_live(self, side: Side) -> bool:
        request = heartbeat.HeartbeatRequest(group_id=LIVE_GROUP, generation_id=1, member_id=MEMBER)
        return bool(side.ask_message(ApiKey.HEARTBEAT, 3, request).error_code == 0)


def wait_until(error_code: Callable[[], int]) -> None:
    """Ask again until it isn't an error: Kafka's controller answers before its broker knows."""
    deadline = time.monotonic() + HANG_S
    while code := error_code():
        assert time.monotonic() < deadline, f"the broker doesn't get there: error_code={code}"
        time.sleep(0.005)


def ask_to_create(
    side: Side, name: str, partitions: int, **configs: str
) -> create_topics.CreatableTopicResult:
    """One CreateTopics; what came of it."""
    asked = create_topics.CreatableTopic(
        name=name,
        num_partitions=partitions,
        replication_factor=1,
        assignments=[],
        configs=[
            create_topics.CreatableTopicConfig(name=key.replace("_", "."), value=value)
            for key, value in configs.items()
        ],
    )
    made: create_topics.CreatableTopicResult
    (made,) = side.ask_message(
        ApiKey.CREATE_TOPICS, 7, create_topics.CreateTopicsRequest(topics=[asked], timeout_ms=10_000)
    ).topics
    return made


def create_topic(side: Side, name: str, partitions: int, **configs: str) -> None:
    """Create a topic, wait until it can be used, and put three records into each partition."""
    made = ask_to_create(side, name, partitions, **configs)
    assert made.error_code == 0, (side.name, made)
    side.learn(topic_id_of(name), bytes(made.topic_id))
    for index in range(partitions):
        for _ in range(3):
            wait_until(partial(_produce, side, name, index))
    request = metadata.MetadataRequest(
        topics=[metadata.MetadataRequestTopic(topic_id=bytes(made.topic_id), name=None)],
        allow_auto_topic_creation=False,
    )
    wait_until(lambda: side.ask_message(ApiKey.METADATA, 12, request).topics[0].error_code)


def delete_topic(side: Side, *names: str) -> None:
    """Delete topics, if they are there, and wait until nobody is told of them any more."""
    states = [delete_topics.DeleteTopicState(name=name) for name in names]
    request = delete_topics.DeleteTopicsRequest(topics=states, topic_names=[], timeout_ms=10_000)
    answer = side.ask_message(ApiKey.DELETE_TOPICS, 6, request)
    assert {each.error_code for each in answer.responses} <= {0, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION}, answer
    gone = {side.values.get(name, name) for name in names}
    wait_until(lambda: len(gone.intersection(_topic_names(side))))


def remove_other_topics(side: Side, kept: set[str]) -> None:
    """Delete all topics but these and the brokers' own."""
    names = _topic_names(side)
    assert kept <= names, (side.name, names)
    others = names - kept.union(_INTERNAL)
    if others:
        delete_topic(side, *others)


def remove_all_groups(side: Side) -> None:
    """Make the members of all groups leave, and delete the groups."""
    listed = list_groups.ListGroupsRequest(states_filter=[], types_filter=[])
    names = [each.group_id for each in side.ask_message(ApiKey.LIST_GROUPS, 5, listed).groups]
    described = describe_groups.DescribeGroupsRequest(groups=names)
    for group in side.ask_message(ApiKey.DESCRIBE_GROUPS, 5, described).groups:
        left = leave_group.LeaveGroupRequest(
            group_id=group.group_id,
            members=[leave_group.MemberIdentity(member_id=each.member_id) for each in group.members],
        )
        if group.members:
            side.ask_message(ApiKey.LEAVE_GROUP, 4, left)
    side.ask_message(ApiKey.DELETE_GROUPS, 2, delete_groups.DeleteGroupsRequest(groups_names=names))
    left_over = side.ask_message(ApiKey.LIST_GROUPS, 5, listed).groups
    assert left_over == [], (side.name, left_over)


def leave_as_consumer(side: Side, version: int, joined: Any, answer: Any) -> None:
    """Leave the group again that ConsumerGroupHeartbeat made one a member of (KIP-848)."""
    if getattr(answer, "member_epoch", 0) > 0:
        request = consumer_group_heartbeat.ConsumerGroupHeartbeatRequest(
            group_id=joined.group_id, member_id=answer.member_id or joined.member_id, member_epoch=-1
        )
        assert side.ask_message(ApiKey.CONSUMER_GROUP_HEARTBEAT, version, request).error_code == 0


def _topic_names(side: Side) -> set[str]:
    request = metadata.MetadataRequest(topics=None, allow_auto_topic_creation=False)
    return {topic.name for topic in side.ask_message(ApiKey.METADATA, 12, request).topics}


def _code_of_topic(side: Side, request: metadata.MetadataRequest) -> int:
    (topic,) = side.ask_message(ApiKey.METADATA, 9, request).topics
    return int(topic.error_code)


def _code_of(side: Side, api_key: int, version: int, message: Any) -> int:
    return int(side.ask_message(api_key, version, message).error_code)


def _produce(side: Side, topic: str, partition: int) -> int:
    data = produce.PartitionProduceData(index=partition, records=records())
    request = produce.ProduceRequest(
        acks=-1, timeout_ms=5000, topic_data=[produce.TopicProduceData(name=topic, partition_data=[data])]
    )
    (answer,) = side.ask_message(ApiKey.PRODUCE, 9, request).responses
    return int(answer.partition_responses[0].error_code)


def commit(side: Side, group: str) -> None:
    """Commit an offset of TOPIC from outside of the group, which makes the group if there is none."""
    partition = offset_commit.OffsetCommitRequestPartition(
        partition_index=0, committed_offset=1, committed_metadata="note"
    )
    request = offset_commit.OffsetCommitRequest(
        group_id=group,
        topics=[offset_commit.OffsetCommitRequestTopic(name=TOPIC, partitions=[partition])],
    )

    def error_code() -> int:
        (topic,) = side.ask_message(ApiKey.OFFSET_COMMIT, 8, request).topics
        return int(topic.partitions[0].error_code)

    wait_until(error_code)


def join_alone(side: Side, group: str) -> str:
    """Join as the only member, in generation 1 with an assignment; its id."""
    protocol = join_group.JoinGroupRequestProtocol(name="range", metadata=b"bytes")
    request = join_group.JoinGroupRequest(
        group_id=group,
        session_timeout_ms=300_000,
        rebalance_timeout_ms=300_000,
        protocol_type="consumer",
        protocols=[protocol],
    )
    joined = side.ask_message(ApiKey.JOIN_GROUP, 3, request)
    assert (joined.error_code, joined.generation_id) == (0, 1), (side.name, joined)
    mine = sync_group.SyncGroupRequestAssignment(member_id=joined.member_id, assignment=b"bytes")
    synced = side.ask_message(
        ApiKey.SYNC_GROUP,
        3,
        sync_group.SyncGroupRequest(
            group_id=group, generation_id=1, member_id=joined.member_id, assignments=[mine]
        ),
    )
    assert synced.error_code == 0, (side.name, synced)
    return str(joined.member_id)
