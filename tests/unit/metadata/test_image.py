"""The metadata image: what each command decides, and that folding is deterministic."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from penstock.errors import (
    AlreadyExistsError,
    ConfigError,
    ConflictError,
    CorruptError,
    FencedError,
    InvalidRequestError,
    NewerVersionError,
    NotFoundError,
    PenstockError,
)
from penstock.metadata import snapshot as snapshot_module
from penstock.metadata.commands import COMMANDS, Command, Entry, decode_entry, encode_entry, new_entry
from penstock.metadata.commands.cluster import FormatCluster, SkipLost
from penstock.metadata.commands.lake import ClaimLake, SetLakeMaintained, SetLakeState
from penstock.metadata.commands.nodes import RegisterNode, ReleaseWal, SetWord, UseWal
from penstock.metadata.commands.objects import (
    AbandonObjects,
    CommitUpload,
    ForgetObjects,
    PrepareObjects,
    UploadedObject,
    UploadedRange,
)
from penstock.metadata.commands.producer_ids import AllocateProducerIds
from penstock.metadata.commands.streams import OpenStreams, TrimStreams
from penstock.metadata.commands.topics import AddPartitions, CreateTopic, DeleteTopic, SetTopicConfigs
from penstock.metadata.image import Image
from penstock.metadata.versions import METADATA_VERSION

TOPIC_ID = b"t" * 16
NOW_MS = 1_000_000


class Log:
    """Folds commands one entry at a time."""

    def __init__(self) -> None:
        self.image = Image()
        self.entries: list[Entry] = []

    def do(self, *commands: Command, now_ms: int = NOW_MS) -> list[object]:
        entry = new_entry(list(commands), "writer", now_ms)
        self.entries.append(entry)
        return list(self.image.fold(self.image.index + 1, entry).results)

    def ok(self, command: Command, now_ms: int = NOW_MS) -> Any:
        (result,) = self.do(command, now_ms=now_ms)
        assert not isinstance(result, Exception), result
        return result

    def refused(self, command: Command) -> PenstockError:
        before = self.image.to_snapshot()
        (result,) = self.do(command)
        assert isinstance(result, PenstockError)
        after = Image.from_snapshot(before)
        after.index += 1
        assert after.to_snapshot() == self.image.to_snapshot(), "a refused command changes nothing"
        return result


@pytest.fixture
def log() -> Log:
    log = Log()
    log.ok(FormatCluster("cluster"))
    log.ok(RegisterNode(1, "a"))
    log.ok(CreateTopic("events", TOPIC_ID, 2))
    log.ok(OpenStreams(1, 2, [1, 2, 3, 4]))
    return log


def upload(log: Log, *ranges: tuple[int, int, int], size: int = 10) -> int:
    object_id: int
    (object_id,) = log.ok(PrepareObjects(1, 2, 1, NOW_MS + 1000))
    uploaded = [UploadedRange(stream, start, end, size, NOW_MS) for stream, start, end in ranges]
    log.ok(CommitUpload(1, 2, [UploadedObject(object_id, 100, uploaded)]))
    return object_id


def test_a_topic_gets_a_log_and_a_state_stream_per_partition(log: Log) -> None:
    topic = log.image.topics.named("events")
    assert topic is not None
    assert (topic.log_streams, topic.state_streams) == ([1, 3], [2, 4])
    log.ok(AddPartitions(TOPIC_ID, 3))
    assert (topic.log_streams, topic.state_streams) == ([1, 3, 5], [2, 4, 6])


def test_a_topic_name_is_taken_once(log: Log) -> None:
    assert isinstance(log.refused(CreateTopic("events", b"u" * 16, 1)), AlreadyExistsError)


def test_how_many_partitions_clients_have_made_is_known_without_a_look_at_their_topics(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = log.image.topics.client_partitions()
    log.ok(CreateTopic("a", b"a" * 16, 2))
    log.ok(CreateTopic("b", b"b" * 16, 3))
    log.ok(CreateTopic("internal", b"i" * 16, 50, internal=True))
    log.ok(AddPartitions(b"b" * 16, 7))
    log.do(CreateTopic("a", b"c" * 16, 9), AddPartitions(b"b" * 16, 1), DeleteTopic(b"c" * 16))  # refused
    log.ok(DeleteTopic(b"a" * 16))
    log.ok(CreateTopic("long", b"l" * 16, 1, {"k": "v" * 9_000}))
    log.ok(SetTopicConfigs(b"b" * 16, {"k": "v" * 3_600, "short": "v" * 1_000}))
    log.ok(DeleteTopic(b"l" * 16))
    again = Image.from_snapshot(log.image.to_snapshot())
    assert log.image.topics.config_places() == again.topics.config_places() == 2
    for topic in log.image.topics.all():
        monkeypatch.setattr(topic, "log_streams", None)
    assert log.image.topics.client_partitions() == again.topics.client_partitions() == made + 7


def test_partitions_never_shrink(log: Log) -> None:
    assert isinstance(log.refused(AddPartitions(TOPIC_ID, 2)), InvalidRequestError)


def test_configs_are_replaced_whole(log: Log) -> None:
    log.ok(SetTopicConfigs(TOPIC_ID, {"retention.ms": "1"}))
    log.ok(SetTopicConfigs(TOPIC_ID, {"retention.bytes": "2"}))
    assert log.image.topics.require(TOPIC_ID).configs == {"retention.bytes": "2"}


def test_a_later_registration_fences_the_earlier_life_of_the_node(log: Log) -> None:
    assert log.ok(RegisterNode(1, "b")) == 5
    for command in (
        OpenStreams(1, 2, [1]),
        TrimStreams(1, 2, [(1, 1)]),
        PrepareObjects(1, 2, 1, NOW_MS),
        CommitUpload(1, 2, []),
        AllocateProducerIds(1, 2, 10),
        UseWal(1, 2, "w", "there"),
        ReleaseWal(1, 2),
    ):
        assert isinstance(log.refused(command), FencedError)
    log.ok(OpenStreams(1, 5, [1]))


def test_a_node_whose_wal_is_in_use_starts_with_that_one_only(log: Log) -> None:
    """I1, I3: with another WAL, or none, it is refused, and the life that goes on isn't fenced."""
    log.ok(UseWal(1, 2, "w1", "/old on host-a"))
    for found in ("", "w2"):
        error = log.refused(RegisterNode(1, "b", found, "/new on host-b"))
        assert isinstance(error, ConfigError)
        for told in (
            "recorded=w1",
            "/old on host-a",
            f"found={found or 'none'}",
            "/new on host-b",
            "lost_wal=w1",
        ):
            assert told in str(error)
    log.ok(OpenStreams(1, 2, [1]))
    epoch = log.ok(RegisterNode(1, "b", "w1", "/moved"))
    assert log.image.nodes.require(1).wal_in_use, "what was in it is in it still"
    assert isinstance(log.refused(UseWal(1, epoch, "w2", "/moved")), ConfigError)
    log.ok(UseWal(1, epoch, "w1", "/moved"))
    assert log.image.nodes.require(1).wal_location == "/moved"


@pytest.mark.parametrize("found", ["", "w2"])
def test_after_a_clean_stop_any_wal_will_do(log: Log, found: str) -> None:
    log.ok(UseWal(1, 2, "w1", "there"))
    log.ok(ReleaseWal(1, 2))
    epoch = log.ok(RegisterNode(1, "b", found))
    log.ok(UseWal(1, epoch, "w2", "there"))
    assert isinstance(log.refused(RegisterNode(1, "c", "w1")), ConfigError)


def test_a_lost_wal_is_given_up_by_name_and_for_ever(log: Log) -> None:
    """The name of another one doesn't help, so a forgotten setting accepts no later loss."""
    log.ok(UseWal(1, 2, "w1", "there"))
    assert isinstance(log.refused(RegisterNode(1, "b", "w2", lost_wal="w2")), ConfigError)
    epoch = log.ok(RegisterNode(1, "b", "w1", lost_wal="w1"))
    assert log.image.nodes.require(1).lost_wals == [], "it was found"
    epoch = log.ok(RegisterNode(1, "b", "", lost_wal="w1"))
    assert log.image.nodes.require(1).lost_wals == ["w1"]
    log.ok(RegisterNode(1, "b", "w3"))  # the life that accepted ended before it used a WAL
    epoch = log.image.nodes.require(1).epoch
    log.ok(UseWal(1, epoch, "w2", "there"))
    assert isinstance(log.refused(RegisterNode(1, "c", "w3", lost_wal="w1")), ConfigError)
    log.ok(ReleaseWal(1, epoch))
    assert "given up" in str(log.refused(RegisterNode(1, "c", "w1", lost_wal="w1")))


def test_logs_and_snapshots_from_before_wals_were_recorded_fold_as_ever(log: Log) -> None:
    """I7 over versions: a snapshot of version 1 and an entry without the new fields give the image of today."""
    old = msgspec.msgpack.decode(log.image.to_snapshot(), strict=False)
    old["version"] = 1
    for node in old["nodes"].values():
        for added in ("wal", "wal_location", "wal_in_use", "lost_wals"):
            del node[added]
    image = Image.from_snapshot(msgspec.msgpack.encode(old))
    assert image.to_snapshot() == log.image.to_snapshot()
    command = {"type": "node", "node_id": 1, "incarnation": "b"}
    entry = decode_entry(5, msgspec.msgpack.encode({"commands": [command], "writer": "w", "now_ms": 1}))
    assert image.fold(5, entry).results == [5]
    log.ok(RegisterNode(1, "b"))
    assert image.to_snapshot() == log.image.to_snapshot()


def test_commits_continue_the_stream(log: Log) -> None:
    upload(log, (1, 0, 10), (3, 0, 5))
    upload(log, (1, 10, 12))
    stream = log.image.streams.require(1)
    assert [(r.start, r.end) for r in stream.ranges] == [(0, 10), (10, 12)]
    assert stream.end == 12


@pytest.mark.parametrize("bad", [(5, 12), (11, 12), (10, 10), (12, 11)])
def test_a_commit_with_a_gap_or_an_overlap_is_refused_whole(log: Log, bad: tuple[int, int]) -> None:
    upload(log, (1, 0, 10))
    (object_id,) = log.ok(PrepareObjects(1, 2, 1, NOW_MS))
    ranges = [UploadedRange(3, 0, 4, 1, 0), UploadedRange(1, *bad, 1, 0)]
    error = log.refused(CommitUpload(1, 2, [UploadedObject(object_id, 1, ranges)]))
    assert isinstance(error, ConflictError)
    assert log.image.streams.require(3).end == 0


def test_an_object_is_committed_once(log: Log) -> None:
    object_id = upload(log, (1, 0, 10))
    error = log.refused(CommitUpload(1, 2, [UploadedObject(object_id, 1, [UploadedRange(1, 10, 11, 1, 0)])]))
    assert isinstance(error, NotFoundError)


def test_trimming_releases_objects_that_nothing_refers_to(log: Log) -> None:
    shared = upload(log, (1, 0, 10), (3, 0, 5))
    own = upload(log, (1, 10, 20))
    log.ok(TrimStreams(1, 2, [(1, 20)]), now_ms=NOW_MS + 7)
    assert log.image.objects.require(shared).state == "committed"
    assert log.image.objects.require(own).state == "destroyed"
    assert log.image.objects.require(own).at_ms == NOW_MS + 7
    log.ok(TrimStreams(1, 2, [(3, 5)]))
    assert log.image.objects.require(shared).state == "destroyed"
    log.ok(ForgetObjects([shared, own]))
    assert not log.image.objects


def test_trimming_past_what_is_committed_leaves_no_gap_that_matters(log: Log) -> None:
    log.ok(TrimStreams(1, 2, [(1, 15)]))
    object_id = upload(log, (1, 0, 10))
    assert log.image.objects.require(object_id).state == "destroyed", "everything in it was deleted before"
    upload(log, (1, 12, 20))
    assert [(r.start, r.end) for r in log.image.streams.require(1).ranges] == [(12, 20)]


def test_deleting_a_topic_frees_its_objects_but_not_those_shared_with_others(log: Log) -> None:
    log.ok(CreateTopic("other", b"o" * 16, 1))
    log.ok(OpenStreams(1, 2, [5, 6]))
    own = upload(log, (1, 0, 10))
    shared = upload(log, (1, 10, 20), (5, 0, 3))
    assert log.ok(DeleteTopic(TOPIC_ID)) == [1, 3, 2, 4]
    assert log.image.objects.require(own).state == "destroyed"
    assert log.image.objects.require(shared).state == "committed"
    assert log.image.topics.named("events") is None


def test_a_commit_for_a_deleted_stream_is_tolerated(log: Log) -> None:
    (object_id,) = log.ok(PrepareObjects(1, 2, 1, NOW_MS))
    log.ok(DeleteTopic(TOPIC_ID))
    log.ok(CommitUpload(1, 2, [UploadedObject(object_id, 1, [UploadedRange(1, 0, 4, 1, 0)])]))
    assert log.image.objects.require(object_id).state == "destroyed"


def test_only_prepared_objects_can_be_abandoned(log: Log) -> None:
    committed = upload(log, (1, 0, 10))
    (prepared,) = log.ok(PrepareObjects(1, 2, 1, NOW_MS))
    assert log.ok(AbandonObjects([committed, prepared])) == [prepared]
    assert log.image.objects.require(committed).state == "committed"


def test_leader_epochs_grow_with_each_opening_and_keep_where_each_began(log: Log) -> None:
    assert log.image.streams.require(1).leader_epochs == [(0, 0)]
    log.ok(OpenStreams(1, 2, [1]))
    assert log.image.streams.require(1).leader_epochs == [(1, 0)], "the first leader wrote nothing"
    upload(log, (1, 0, 10))
    log.ok(OpenStreams(1, 2, [1]))
    assert log.image.streams.require(1).leader_epochs == [(1, 0), (2, 10)]
    log.ok(TrimStreams(1, 2, [(1, 10)]))
    assert log.image.streams.require(1).leader_epochs == [(2, 10)]


def test_producer_ids_are_handed_out_once(log: Log) -> None:
    assert log.ok(AllocateProducerIds(1, 2, 100)) == 1
    assert log.ok(AllocateProducerIds(1, 2, 100)) == 101


def test_object_ids_are_never_used_again(log: Log) -> None:
    first = upload(log, (1, 0, 10))
    log.ok(TrimStreams(1, 2, [(1, 10)]))
    log.ok(ForgetObjects([first]))
    assert upload(log, (1, 10, 20)) == first + 1


#: Each command there is, with arguments that may be refused or not.
RANDOM: dict[type[Command], st.SearchStrategy[Command]] = {
    CreateTopic: st.builds(
        CreateTopic,
        st.sampled_from(["a", "b", "c"]),
        st.binary(min_size=16, max_size=16),
        st.integers(1, 3),
    ),
    DeleteTopic: st.builds(DeleteTopic, st.just(TOPIC_ID)),
    RegisterNode: st.builds(
        RegisterNode,
        st.integers(1, 2),
        st.just("x"),
        st.sampled_from(["", "w1", "w2", "w3"]),
        st.just("place"),
        st.sampled_from(["", "w1", "w2", "w3"]),
    ),
    UseWal: st.builds(
        UseWal,
        st.integers(1, 2),
        st.integers(1, 6),
        st.sampled_from(["w1", "w2", "w3"]),
        st.just("place"),
    ),
    ReleaseWal: st.builds(ReleaseWal, st.integers(1, 2), st.integers(1, 6)),
    AddPartitions: st.builds(AddPartitions, st.just(TOPIC_ID), st.integers(1, 4)),
    SetTopicConfigs: st.builds(
        SetTopicConfigs, st.just(TOPIC_ID), st.dictionaries(st.just("k"), st.sampled_from("ab"))
    ),
    ClaimLake: st.builds(ClaimLake, st.just(TOPIC_ID), st.just(1), st.integers(1, 6)),
    SetLakeState: st.builds(
        SetLakeState, st.just(TOPIC_ID), st.integers(1, 9), st.sampled_from(("running", "failed"))
    ),
    SetLakeMaintained: st.builds(
        SetLakeMaintained,
        st.just(TOPIC_ID),
        st.integers(1, 9),
        st.integers(0, 9),
        st.sampled_from(("", "failed")),
        st.just(0),
        st.just({"files": 1}),
    ),
    OpenStreams: st.builds(
        OpenStreams, st.just(1), st.integers(1, 6), st.lists(st.integers(1, 6), max_size=3)
    ),
    PrepareObjects: st.builds(
        PrepareObjects, st.just(1), st.integers(1, 6), st.integers(1, 2), st.just(NOW_MS)
    ),
    CommitUpload: st.builds(
        CommitUpload,
        st.just(1),
        st.integers(1, 6),
        st.lists(
            st.builds(
                UploadedObject,
                st.integers(1, 4),
                st.just(1),
                st.lists(
                    st.builds(
                        UploadedRange,
                        st.integers(1, 6),
                        st.integers(0, 9),
                        st.integers(0, 9),
                        st.just(1),
                        st.just(0),
                    ),
                    max_size=3,
                ),
            ),
            max_size=2,
        ),
    ),
    TrimStreams: st.builds(
        TrimStreams,
        st.just(1),
        st.integers(1, 6),
        st.lists(st.tuples(st.integers(1, 6), st.integers(0, 12)), max_size=2),
    ),
    AbandonObjects: st.builds(AbandonObjects, st.lists(st.integers(1, 4), max_size=2)),
    ForgetObjects: st.builds(ForgetObjects, st.lists(st.integers(1, 4), max_size=2)),
    FormatCluster: st.builds(FormatCluster, st.just("again")),
    SkipLost: st.builds(SkipLost, st.integers(0, 9), st.integers(0, 3)),
    SetWord: st.builds(
        SetWord,
        st.just(1),
        st.integers(2, 3),
        st.sampled_from(["wal/w/a", "lake_compactor/l/b"]),
        st.sampled_from(["x", ""]),
        st.sampled_from(["", "x"]),
    ),
    AllocateProducerIds: st.builds(AllocateProducerIds, st.just(1), st.integers(1, 6), st.integers(1, 9)),
}
commands = st.lists(st.one_of(*RANDOM.values()), max_size=25)


def test_each_command_is_among_the_random_ones() -> None:
    assert not set(COMMANDS.values()) - set(RANDOM), "a new command gets its row in RANDOM"


@given(commands, st.integers(0, 25))
def test_replay_from_any_snapshot_gives_the_same_image_and_ranges_tile(todo: list[Command], cut: int) -> None:
    """I7 and I2: over any commands, replay from a snapshot anywhere gives equal bytes; live ranges tile."""
    log = Log()
    log.ok(FormatCluster("c"))
    log.ok(RegisterNode(1, "a"))
    log.ok(CreateTopic("events", TOPIC_ID, 2))
    snapshots = [log.image.to_snapshot()]
    for command in todo:
        log.do(command)
        snapshots.append(log.image.to_snapshot())
        for node in log.image.nodes.all():
            assert not node.wal_in_use or node.wal not in node.lost_wals, (
                "what was given up is never used again"
            )
        for stream in log.image.streams.all():
            position = stream.ranges[0].start if stream.ranges else None
            for r in stream.ranges:
                assert r.start == position, "no gap, no overlap"
                assert r.end > stream.start
                position = r.end
            if stream.ranges:
                assert stream.ranges[0].start <= stream.start
                assert position == stream.end
        held = sorted(i for o in log.image.objects.all() for i in [o.object_id] * o.live_ranges)
        referred = sorted(r.object_id for s in log.image.streams.all() for r in s.ranges)
        assert held == referred
    start = min(cut, len(todo))
    image = Image.from_snapshot(snapshots[start])
    for i, command in enumerate(todo[start:]):
        entry = decode_entry(0, encode_entry(new_entry([command], "writer", NOW_MS)))
        image.fold(image.index + 1, entry)
        assert image.to_snapshot() == snapshots[start + i + 1]


@given(commands, st.integers(0, 25), st.lists(st.integers(1, 3), min_size=1, max_size=20))
def test_a_snapshot_that_is_taken_while_commands_come_is_the_image_at_its_index(
    todo: list[Command], cut_at: int, rows: list[int]
) -> None:
    """Whatever is folded between its pieces, and wherever these are cut."""
    log = Log()
    log.ok(FormatCluster("c"))
    log.ok(RegisterNode(1, "a"))
    log.ok(CreateTopic("events", TOPIC_ID, 2))
    log.ok(OpenStreams(1, 2, [1, 2, 3, 4]))
    upload(log, (1, 0, 4), (3, 0, 2))
    upload(log, (1, 4, 6))
    prepared, unused = log.ok(PrepareObjects(1, 2, 2, NOW_MS))
    for command in todo[:cut_at]:
        log.do(command)
    late = [
        CommitUpload(1, 2, [UploadedObject(prepared, 1, [UploadedRange(3, 2, 3, 1, 0)])]),
        AbandonObjects([unused]),
        TrimStreams(1, 2, [(1, 4)]),
        OpenStreams(1, 2, [1, 3]),
        *todo[cut_at:],
        DeleteTopic(TOPIC_ID),
    ]
    expected = log.image.to_snapshot()
    pieces = []
    with pytest.MonkeyPatch.context() as patch, log.image.cut() as cut, log.image.cut() as second:
        patch.setattr(snapshot_module, "CUT_ROWS", rows[0])
        assert cut.index == second.index == log.image.index
        for piece in cut.pieces():
            pieces.append(piece)
            if late:
                log.do(late.pop(0))
        for command in late:
            log.do(command)
        assert b"".join(second.pieces()) == expected
    assert b"".join(pieces) == expected
    assert Image.from_snapshot(expected).to_snapshot() == expected
    assert not any(t.is_cut for t in (log.image.topics, log.image.streams, log.image.objects))


def test_snapshots_of_version_1_are_read(log: Log) -> None:
    """Ranges were lists, and objects listed their streams."""
    upload(log, (1, 0, 10), (3, 0, 5))
    upload(log, (1, 10, 12))
    stored = msgspec.msgpack.decode(log.image.to_snapshot(), strict=False)
    stored["version"] = 1
    for stream_id, stream in stored["streams"].items():
        stream["ranges"] = [
            list(msgspec.structs.astuple(r)) for r in log.image.streams.require(stream_id).ranges
        ]
    for held, live in zip(stored["objects"].values(), [[1, 3], [1]], strict=True):
        del held["live_ranges"]
        held["live"] = live
    again = Image.from_snapshot(msgspec.msgpack.encode(stored))
    assert again.to_snapshot() == log.image.to_snapshot()
    stored["streams"][1]["ranges"] = b"not whole"
    with pytest.raises(CorruptError, match="can't be read"):
        Image.from_snapshot(msgspec.msgpack.encode(stored))


def test_entries_of_a_newer_format_are_refused_in_one_sentence() -> None:
    newer = encode_entry(Entry([FormatCluster("c")], "w", 1, version=METADATA_VERSION + 1))
    versions = f"version={METADATA_VERSION + 1} known={METADATA_VERSION}"
    with pytest.raises(NewerVersionError, match=f"newer penstock, upgrade this one: index=7 {versions}"):
        decode_entry(7, newer)
    unknown = msgspec.msgpack.encode(
        {"version": METADATA_VERSION + 1, "commands": [{"type": "what comes later"}]}
    )
    with pytest.raises(NewerVersionError, match=versions):
        decode_entry(7, unknown)
    with pytest.raises(CorruptError, match="can't be read"):
        decode_entry(7, msgspec.msgpack.encode({"commands": [{"type": "nobody knows"}]}))
    with pytest.raises(CorruptError, match="index=7"):
        decode_entry(7, b"\xff\xff")


@given(commands)
def test_snapshots_of_version_3_say_who_leads_as_their_entries_do(todo: list[Command]) -> None:
    """I7 over versions: what isn't in the old snapshot follows from what is, as if all entries were folded anew."""
    log = Log()
    log.ok(FormatCluster("c"))
    log.ok(RegisterNode(1, "a"))
    log.ok(CreateTopic("events", TOPIC_ID, 2))
    log.ok(OpenStreams(1, 2, [1, 2, 3, 4]))
    for command in todo:
        log.do(command)
        stored = msgspec.msgpack.decode(log.image.to_snapshot(), strict=False)
        stored["version"] = 3
        del stored["controller"]
        for topic in stored["topics"].values():
            del topic["leaders"]
        image = Image.from_snapshot(msgspec.msgpack.encode(stored))
        for topic in log.image.topics.all():
            assert image.topics.require(topic.topic_id).leaders == topic.leaders
        epochs = [node.epoch for node in log.image.nodes.all()]
        if epochs.count(max(epochs)) == 1:  # else a node was fenced by the one that registered last
            assert image.to_snapshot() == log.image.to_snapshot()


def test_who_leads_follows_from_openings_registrations_and_stops(log: Log) -> None:
    def leaders() -> list[int]:
        return log.image.topics.require(TOPIC_ID).leaders

    assert (leaders(), log.image.controller) == ([1, 1], 1)
    log.ok(AddPartitions(TOPIC_ID, 3))
    assert leaders() == [1, 1, -1], "nobody opened it"
    log.ok(OpenStreams(1, 2, [6]))
    assert leaders() == [1, 1, -1], "that is the stream of its producers' state"
    log.ok(OpenStreams(1, 2, [5]))
    assert leaders() == [1, 1, 1]
    log.ok(ReleaseWal(1, 2))
    assert leaders() == [-1, -1, -1]
    epoch = log.ok(RegisterNode(2, "b"))
    assert (leaders(), log.image.controller) == ([-1, -1, -1], 2)
    log.ok(OpenStreams(2, epoch, [3, 4]))
    assert leaders() == [-1, 2, -1]
    log.ok(RegisterNode(2, "c"))
    assert leaders() == [-1, -1, -1], "it has to open them again"
