"""Who may take what: no second owner of a stream while the first one's WAL may hold its records (I1, I3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.depth import examples

from penstock.errors import ConfigError, ConflictError, FencedError, PenstockError
from penstock.metadata import owners
from penstock.metadata.commands import Command, Entry, new_entry
from penstock.metadata.commands.cluster import FormatCluster
from penstock.metadata.commands.nodes import RegisterNode, ReleaseWal, UseWal
from penstock.metadata.commands.objects import CommitUpload, PrepareObjects, UploadedObject, UploadedRange
from penstock.metadata.commands.streams import OpenStreams, TrimStreams
from penstock.metadata.commands.topics import CreateTopic
from penstock.metadata.image import Image

TOPIC_ID = b"t" * 16
NOW_MS = 1_000_000


class Log:
    """Folds commands one entry at a time, by the rules of ``version``."""

    def __init__(self) -> None:
        self.image = Image()

    def do(self, command: Command, version: int = 0) -> Any:
        entry = new_entry([command], "writer", NOW_MS)
        if version:
            entry = Entry(entry.commands, entry.writer, entry.now_ms, version)
        (result,) = self.image.fold(self.image.index + 1, entry).results
        return result

    def ok(self, command: Command, version: int = 0) -> Any:
        result = self.do(command, version)
        assert not isinstance(result, Exception), result
        return result

    def refused(self, command: Command) -> PenstockError:
        before = msgspec.msgpack.decode(self.image.to_snapshot(), strict=False)
        result = self.do(command)
        assert isinstance(result, PenstockError), result
        after = msgspec.msgpack.decode(self.image.to_snapshot(), strict=False)
        assert {**after, "index": 0} == {**before, "index": 0}, "a refused command changes nothing"
        return result

    def start(self, node_id: int, wal: str, found: str | None = None, version: int = 0) -> int:
        """Register, use the WAL, and open everything; the epoch."""
        found = wal if found is None else found
        command = RegisterNode(node_id, "x", found, f"place-{node_id}", unnamed=not wal)
        epoch: int = self.ok(command, version)
        self.ok(UseWal(node_id, epoch, wal, f"/wal of {node_id}"), version)
        self.ok(OpenStreams(node_id, epoch, list(self.image.streams.ids())), version)
        return epoch


@pytest.fixture
def log() -> Log:
    log = Log()
    log.ok(FormatCluster("cluster"))
    log.ok(CreateTopic("events", TOPIC_ID, 1))
    return log


def test_no_other_node_registers_while_a_wal_is_in_use_and_the_ways_out_are_told(log: Log) -> None:
    epoch = log.start(1, "w1", found="")
    for found in ("", "w2"):
        error = log.refused(RegisterNode(2, "b", found, "/there"))
        assert isinstance(error, ConfigError)
        for told in (
            "the WAL of node 1 only",
            "start that node again",
            "pointing wal.path to it",
            "broker.accept_lost_wal=w1",
            "holder=1 recorded=w1 recorded_at=/wal of 1",
            f"found={found or 'none'} found_at=/there",
        ):
            assert told in str(error)
    log.ok(OpenStreams(1, epoch, [1]))  # it wasn't fenced


def test_the_ways_out_are_those_of_the_kind_of_wal(log: Log) -> None:
    """A WAL in an object store has no wal.path, and is at the place of its node's id."""
    for location, way_back in (
        ("s3://bucket/wal/1/", "wal.prefix and [object_store]"),
        ("/wal", "broker.data_dir or wal.path back"),
        ("/dev/a, /dev/b", "broker.data_dir or wal.paths back"),
        ("/wal + s3://bucket/wal/1/", "tables in [wal] back to the places"),
        ("/a + /b", "tables in [wal] back to the places"),
    ):
        log.ok(RegisterNode(1, "x", "", "place"))
        epoch = log.image.nodes.require(1).epoch
        log.ok(UseWal(1, epoch, "w1", location))
        own = str(log.refused(RegisterNode(1, "y", "w2", "/elsewhere")))
        assert way_back in own
        assert "whose clean stop leaves everything to any other" in own
        other = str(log.refused(RegisterNode(2, "b", "", "/there")))
        assert ("pointing wal.path to it" in other) == (location == "/wal")
        assert ("pointing wal.paths to it" in other) == (location == "/dev/a, /dev/b")
        log.ok(ReleaseWal(1, epoch))


def test_after_a_clean_stop_another_node_takes_everything(log: Log) -> None:
    epoch = log.start(1, "w1", found="")
    log.ok(ReleaseWal(1, epoch))
    second = log.start(2, "w2", found="")
    assert {stream.node_id for stream in log.image.streams.all()} == {2}
    assert isinstance(log.refused(RegisterNode(1, "c", "w1")), ConfigError)
    log.ok(ReleaseWal(2, second))
    log.start(1, "w1")


def test_a_node_that_found_the_wal_of_another_takes_it_over_and_fences_that_node(log: Log) -> None:
    epoch = log.start(1, "w1", found="")
    opened = log.image.streams.require(1).epoch
    second = log.ok(RegisterNode(2, "b", "w1", "/there"))
    assert (log.image.streams.require(1).node_id, log.image.streams.require(1).epoch) == (2, opened), (
        "it can be recovered"
    )
    for command in (
        UseWal(1, epoch, "w1", "/here"),
        OpenStreams(1, epoch, [1]),
        TrimStreams(1, epoch, [(1, 1)]),
        PrepareObjects(1, epoch, 1, NOW_MS),
        ReleaseWal(1, epoch),
    ):
        assert isinstance(log.refused(command), FencedError)
    assert isinstance(log.refused(RegisterNode(1, "c", "")), ConfigError)
    log.ok(UseWal(2, second, "w1", "/there"))
    log.ok(OpenStreams(2, second, [1, 2]))
    third = log.ok(RegisterNode(3, "c", "w1"))  # and on
    assert third == log.image.nodes.require(2).epoch
    assert log.image.streams.require(1).node_id == 3


def test_a_node_whose_wal_was_taken_over_does_not_take_it_back_by_being_started_as_it_was(log: Log) -> None:
    log.start(1, "w1", found="")
    second = log.start(2, "w1")
    refused = log.refused(RegisterNode(1, "c", "w1"))
    assert isinstance(refused, ConfigError)
    assert "node 2 took this WAL over" in str(refused)
    assert log.image.nodes.require(2).epoch == second, "nobody was fenced"
    log.ok(ReleaseWal(2, second))
    log.start(1, "w1")


def test_streams_that_had_nothing_in_the_wal_stay_whose_they_are(log: Log) -> None:
    epoch = log.start(1, "w1", found="")
    log.ok(ReleaseWal(1, epoch))
    epoch = log.ok(RegisterNode(1, "b", "w1"))
    log.ok(UseWal(1, epoch, "w1", "/here"))
    log.ok(OpenStreams(1, epoch, [1]))
    assert owners.holder_of(log.image.nodes, log.image.streams.require(2)) is None
    log.ok(RegisterNode(2, "b", "w1"))
    assert [stream.node_id for stream in log.image.streams.all()] == [2, 1]


def test_the_wal_of_another_node_is_given_up_by_name_and_never_taken_again_by_anybody(log: Log) -> None:
    epoch = log.start(1, "w1", found="")
    log.refused(RegisterNode(2, "b", "", lost_wals=["w2"]))
    second = log.ok(RegisterNode(2, "b", "", lost_wals=["w0", "w1"]))
    assert log.image.nodes.require(1).lost_wals == ["w1"]
    assert isinstance(log.refused(ReleaseWal(1, epoch)), FencedError)
    for node_id in (1, 2, 3):
        assert "given up" in str(log.refused(RegisterNode(node_id, "c", "w1", lost_wals=["w1"])))
    log.ok(UseWal(2, second, "w2", "there"))
    log.ok(OpenStreams(2, second, [1, 2]))


def test_a_wal_that_is_found_isnt_given_up(log: Log) -> None:
    log.start(1, "w1", found="")
    log.ok(RegisterNode(2, "b", "w1", lost_wals=["w1"]))
    assert log.image.nodes.require(1).lost_wals == []
    assert log.image.nodes.require(2).wal == "w1"


def test_of_two_nodes_that_registered_one_uses_its_wal(log: Log) -> None:
    first = log.ok(RegisterNode(1, "a"))
    second = log.ok(RegisterNode(2, "b"))
    log.ok(UseWal(2, second, "w2", "there"))
    assert "the WAL of node 2 only" in str(log.refused(UseWal(1, first, "w1", "here")))


def test_a_wal_without_identity_counts_and_has_a_name_that_no_later_life_has(log: Log) -> None:
    epoch = log.start(1, "")
    error = log.refused(RegisterNode(2, "b", ""))
    assert f"accept_lost_wal=unnamed-1-{epoch}" in str(error)
    assert "recorded_at=/wal of 1" in str(error)
    assert "wal.path" not in str(error), "there is no telling whether it would be that one"
    for found in ("", "w1"):  # with another kind of WAL, which tells
        assert f"recorded=unnamed-1-{epoch}" in str(log.refused(RegisterNode(1, "b", found)))
    later = log.start(1, "")  # the same node takes it for its own
    log.refused(RegisterNode(2, "b", "", lost_wals=[f"unnamed-1-{epoch}"]))
    log.ok(RegisterNode(2, "b", "", lost_wals=[f"unnamed-1-{later}"]))


def test_a_stream_that_is_opened_without_a_recorded_wal_may_have_something_somewhere(log: Log) -> None:
    epoch = log.ok(RegisterNode(1, "a"))
    log.ok(OpenStreams(1, epoch, []))
    assert not log.image.nodes.require(1).wal_in_use
    log.ok(OpenStreams(1, epoch, [1]))
    assert "recorded_at=unknown" in str(log.refused(RegisterNode(2, "b", "")))
    assert owners.holder_of(log.image.nodes, log.image.streams.require(1)) is log.image.nodes.require(1)
    log.ok(UseWal(1, epoch, "w1", "there"))
    assert owners.holder_of(log.image.nodes, log.image.streams.require(1)) is log.image.nodes.require(1)


def test_only_the_owner_trims_and_commits(log: Log) -> None:
    epoch = log.start(1, "w1", found="")
    log.ok(ReleaseWal(1, epoch))
    (object_id,) = log.ok(PrepareObjects(1, epoch, 1, NOW_MS))
    log.start(2, "w2", found="")
    commit = CommitUpload(1, epoch, [UploadedObject(object_id, 1, [UploadedRange(1, 0, 1, 1, 0)])])
    for command in (commit, TrimStreams(1, epoch, [(1, 1)])):
        assert "another node owns the stream" in str(log.refused(command))


def test_entries_of_version_1_fold_by_the_rules_of_their_time(log: Log) -> None:
    """What a broker of that time did stands: the log of a store that two of them took from each other opens."""
    first = log.start(1, "w1", found="", version=1)
    second = log.start(2, "w2", found="", version=1)
    log.ok(TrimStreams(1, first, [(2, 5)]), version=1)
    (object_id,) = log.ok(PrepareObjects(1, first, 1, NOW_MS), version=1)
    late = CommitUpload(1, first, [UploadedObject(object_id, 1, [UploadedRange(1, 0, 1, 1, 0)])])
    log.ok(late, version=1)
    assert log.image.streams.require(1).node_id == 2
    # the rules of today see both WALs: neither node starts alone until the other's is named
    assert "the WAL of node 1 only" in str(log.refused(RegisterNode(2, "c", "w2")))
    assert "the WAL of node 2 only" in str(log.refused(RegisterNode(1, "c", "w1")))
    assert second == log.image.nodes.require(2).epoch
    log.ok(RegisterNode(2, "c", "w2", lost_wals=["w1"]))


def test_a_node_that_was_renamed_under_version_1_keeps_its_wal(log: Log) -> None:
    log.start(1, "w1", found="", version=1)
    log.start(2, "w1", version=1)
    epoch = log.start(2, "w1")
    assert [node.wal_in_use for node in log.image.nodes.all()] == [False, True]
    log.ok(ReleaseWal(2, epoch))
    log.start(3, "w3", found="")


def test_a_snapshot_of_version_2_says_that_unrecorded_wals_may_hold_something(log: Log) -> None:
    log.start(1, "w1", found="")
    log.ok(ReleaseWal(1, log.image.nodes.require(1).epoch))
    stored = msgspec.msgpack.decode(log.image.to_snapshot(), strict=False)
    stored["version"] = 2
    for node in stored["nodes"].values():
        del node["wal_since"]
    assert not Image.from_snapshot(msgspec.msgpack.encode(stored)).nodes.require(1).wal_in_use, (
        "it stopped cleanly"
    )
    stored["nodes"][1].update(wal="", wal_location="")
    image = Image.from_snapshot(msgspec.msgpack.encode(stored))
    assert image.nodes.require(1).wal_unknown
    assert Image.from_snapshot(image.to_snapshot()).to_snapshot() == image.to_snapshot()


# -- histories ----------------------------------------------------------------------------------------------


@dataclass
class Wal:
    """Acknowledged records: (stream, epoch of its opening, offset, value); owned by whoever opened it last."""

    name: str
    records: list[tuple[int, int, int, int]] = field(default_factory=list)
    owner: Process | None = None
    lost: bool = False


@dataclass(eq=False)
class Process:
    """A broker's life: registered -> uses its WAL -> recovered -> opened its streams -> stopped, killed, fenced."""

    node_id: int
    wal: Wal
    found: str
    epoch: int = 0
    state: str = "new"
    #: Where each open stream goes on, and under which epoch.
    open: dict[int, tuple[int, int]] = field(default_factory=dict)


class Histories(RuleBasedStateMachine):
    """Several nodes and WALs, any interleaving of starts, appends, uploads, stops, kills, take-overs and losses.

    ``door`` is the rule of a cluster of one broker; without it, the rule for streams has to do alone.
    """

    door = True

    def __init__(self) -> None:
        super().__init__()
        self.log = Log()
        self.wals: dict[str, Wal] = {}
        self.processes: list[Process] = []
        #: What was acknowledged, by (stream, offset): once, unless its WAL was given up.
        self.acknowledged: dict[tuple[int, int], int] = {}
        self.committed: dict[tuple[int, int], int] = {}
        self.values = 0
        self._patch = pytest.MonkeyPatch()
        if not self.door:
            self._patch.setattr(owners, "_check_alone", lambda *_: None)

    def teardown(self) -> None:
        self._patch.undo()

    @initialize()
    def begin(self) -> None:
        self.log.ok(FormatCluster("cluster"))
        self.log.ok(CreateTopic("events", TOPIC_ID, 1))

    def live(self, state: str) -> list[Process]:
        return [process for process in self.processes if process.state == state]

    def tell(self, process: Process, command: Command) -> Any:
        """What a broker does with an answer: it ends when it is refused or fenced."""
        result = self.log.do(command)
        if isinstance(result, Exception):
            process.state = "ended"
        return result

    @rule(node_id=st.integers(1, 3), name=st.sampled_from(["w1", "w2", "w3"]), lost=st.booleans())
    def register(self, node_id: int, name: str, lost: bool) -> None:
        wal = self.wals.get(name) or Wal(name)
        process = Process(node_id, wal, name if name in self.wals else "")
        given_up = sorted(self.wals.keys() - {name}) if lost else []
        result = self.tell(process, RegisterNode(node_id, "x", process.found, "p", lost_wals=given_up))
        if isinstance(result, Exception):
            return
        process.epoch, process.state = result, "registered"
        self.processes.append(process)
        for node in self.log.image.nodes.all():
            for gone in node.lost_wals:
                if not self.wals[gone].lost:
                    self.wals[gone].lost = True
                    for stream, _, offset, value in self.wals[gone].records:
                        if self.committed.get((stream, offset)) != value:
                            del self.acknowledged[stream, offset]

    @precondition(lambda self: self.live("registered"))
    @rule(data=st.data())
    def use(self, data: st.DataObject) -> None:
        process = data.draw(st.sampled_from(self.live("registered")))
        process.wal = self.wals.setdefault(process.wal.name, process.wal)
        before = process.wal.owner
        if before is not None and before is not process:
            if before.epoch > process.epoch:
                process.state = "ended"  # the WAL itself knows a newer owner
                return
            before.state = "ended"  # opening a WAL fences who had it
        process.wal.owner = process
        if not isinstance(
            self.tell(process, UseWal(process.node_id, process.epoch, process.wal.name, "p")), Exception
        ):
            process.state = "using"

    @precondition(lambda self: self.live("using"))
    @rule(data=st.data())
    def recover(self, data: st.DataObject) -> None:
        process = data.draw(st.sampled_from(self.live("using")))
        for stream, epoch, offset, _ in process.wal.records:
            state = self.log.image.streams.require(stream)
            assert epoch == state.epoch or offset < state.end, "recovery finds what another owner passed over"
        self.upload(process)
        if process.state == "using":
            process.state = "recovered"

    @precondition(lambda self: self.live("recovered"))
    @rule(data=st.data(), streams=st.sets(st.sampled_from([1, 2]), min_size=1))
    def open_streams(self, data: st.DataObject, streams: set[int]) -> None:
        process = data.draw(st.sampled_from(self.live("recovered")))
        fresh = sorted(streams - process.open.keys())  # a life opens a stream once
        result = self.log.do(OpenStreams(process.node_id, process.epoch, fresh))
        if isinstance(result, ConflictError):
            assert not self.door, "the door was open, so nobody else has anything"
            return
        if isinstance(result, Exception):
            process.state = "ended"
            return
        for stream in result:
            state = self.log.image.streams.require(stream)
            process.open[stream] = (state.epoch, max(state.start, state.end))

    @precondition(lambda self: any(process.open for process in self.live("recovered")))
    @rule(data=st.data())
    def append(self, data: st.DataObject) -> None:
        """Acknowledged by the WAL alone, whatever metadata say meanwhile."""
        process = data.draw(st.sampled_from([p for p in self.live("recovered") if p.open]))
        stream = data.draw(st.sampled_from(sorted(process.open)))
        epoch, offset = process.open[stream]
        if process.wal.lost:
            return  # the operator said that nobody has it
        assert (stream, offset) not in self.acknowledged, "two owners acknowledged the same offset"
        self.values += 1
        process.wal.records.append((stream, epoch, offset, self.values))
        self.acknowledged[stream, offset] = self.values
        process.open[stream] = (epoch, offset + 1)

    @precondition(lambda self: self.live("recovered"))
    @rule(data=st.data())
    def upload_something(self, data: st.DataObject) -> None:
        self.upload(data.draw(st.sampled_from(self.live("recovered"))))

    def upload(self, process: Process) -> None:
        for record in list(process.wal.records):
            stream, _, offset, value = record
            if offset >= self.log.image.streams.require(stream).end:
                prepared = self.tell(process, PrepareObjects(process.node_id, process.epoch, 1, NOW_MS))
                if isinstance(prepared, Exception):
                    assert isinstance(prepared, FencedError)
                    return
                ranges = [UploadedRange(stream, offset, offset + 1, 1, 0)]
                commit = CommitUpload(
                    process.node_id, process.epoch, [UploadedObject(prepared[0], 1, ranges)]
                )
                result = self.tell(process, commit)
                assert not isinstance(result, Exception), result
                self.committed[stream, offset] = value
            process.wal.records.remove(record)

    @precondition(lambda self: self.live("recovered"))
    @rule(data=st.data())
    def stop(self, data: st.DataObject) -> None:
        process = data.draw(st.sampled_from(self.live("recovered")))
        self.upload(process)
        if process.state == "recovered":
            self.tell(process, ReleaseWal(process.node_id, process.epoch))
            process.state = "ended"

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.processes)).state = "ended"

    @invariant()
    def every_acknowledged_record_is_committed_or_its_owner_is_the_one_with_the_wal(self) -> None:
        held: dict[tuple[int, int], int] = {}
        for wal in self.wals.values():
            for stream, epoch, offset, value in () if wal.lost else wal.records:
                state = self.log.image.streams.require(stream)
                if offset >= state.end:
                    assert (stream, offset) not in held
                    held[stream, offset] = value
                    assert state.epoch == epoch, "opened by another owner while the WAL had something of it"
                    holder = owners.holder_of(self.log.image.nodes, state)
                    assert holder is not None
                    assert holder.wal == wal.name
        assert {**held, **self.committed} == self.acknowledged


class HistoriesInACluster(Histories):
    door = False


HISTORIES = settings(max_examples=examples(50), stateful_step_count=30, deadline=None)
TestHistories = Histories.TestCase
TestHistories.settings = HISTORIES
TestHistoriesInACluster = HistoriesInACluster.TestCase
TestHistoriesInACluster.settings = HISTORIES


def test_an_entry_says_how_far_its_writers_wal_got_and_no_other_wal_is_measured_by_it(log: Log) -> None:
    def ends() -> list[int]:
        return [node.wal_end for node in log.image.nodes.all()]

    def say(writer: str, wal_end: int) -> None:
        log.image.fold(log.image.index + 1, new_entry([], writer, NOW_MS, wal_end))

    epoch = log.ok(RegisterNode(1, "first", "", "here"))
    say("first", 5)
    assert ends() == [0], "nothing is in use yet"
    log.ok(UseWal(1, epoch, "a", "/a"))
    for wal_end in (7, 9, 8, 0):
        say("first", wal_end)
    say("a stranger", 100)
    assert ends() == [9]
    epoch = log.ok(RegisterNode(1, "second", "a", "here"))
    log.ok(UseWal(1, epoch, "a", "/a"))
    say("first", 100)
    assert ends() == [9], "after a crash it's the same WAL, and a fenced owner says nothing"
    epoch = log.ok(RegisterNode(2, "third", "a", "there"))
    assert ends() == [0, 9], "who takes the WAL over takes that too"
    assert Image.from_snapshot(log.image.to_snapshot()).nodes.require(2).wal_end == 9
    log.ok(UseWal(2, epoch, "a", "/a"))
    log.ok(ReleaseWal(2, epoch))
    epoch = log.ok(RegisterNode(2, "fourth", "", "there"))
    log.ok(UseWal(2, epoch, "b", "/b"))
    assert ends() == [0, 0], "another WAL counts its own positions"
    say("fourth", 3)
    log.ok(RegisterNode(2, "fifth", "", "there", lost_wals=["b"]))
    assert ends() == [0, 0]
