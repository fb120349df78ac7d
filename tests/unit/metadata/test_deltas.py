"""Deltas: who follows them has the image's picture, without having read the commands."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.metadata.test_image import NOW_MS, TOPIC_ID, commands

from penstock.metadata import deltas as d
from penstock.metadata.commands import Command, decode_entry, encode_entry, new_entry
from penstock.metadata.commands.cluster import FormatCluster
from penstock.metadata.commands.nodes import RegisterNode
from penstock.metadata.commands.topics import CreateTopic
from penstock.metadata.image import Image
from penstock.metadata.state import Moment, State

START: list[Command] = [FormatCluster("c"), RegisterNode(1, "a"), CreateTopic("events", TOPIC_ID, 2)]


class Picture:
    """What a subscriber keeps: it looks up what deltas name, and never looks at anything else."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.rows: dict[tuple[str, Any], bytes] = {}
        self.cluster_id = ""
        self.controller = -1
        self.next_ids = {"stream": 1, "object": 1, "producer": 1}

    def follow(self, deltas: Any) -> None:
        for delta in deltas:
            match delta:
                case d.ClusterNamed():
                    self.cluster_id = self.image.cluster_id
                case d.NodesChanged():
                    self._look("nodes", delta.node_ids)
                case d.ControllerChanged():
                    self.controller = self.image.controller
                case d.LeadersChanged():
                    self._look("topics", delta.partitions)
                case d.TopicAdded() | d.TopicGrown() | d.TopicChanged() | d.TopicRemoved():
                    self._look("topics", [delta.topic_id])
                case d.StreamsAdded():
                    self._look("streams", range(delta.first, delta.end))
                case d.StreamsChanged() | d.StreamsRemoved():
                    self._look("streams", delta.stream_ids)
                case d.ObjectsChanged() | d.ObjectsRemoved():
                    self._look("objects", delta.object_ids)
                case d.IdsGiven():
                    self.next_ids[delta.kind] = delta.end
                case _:
                    raise AssertionError(f"a delta that the picture doesn't know: {delta}")

    def _look(self, table: str, ids: Any) -> None:
        for key in ids:
            row = getattr(self.image, table).get(key)
            if row is None:
                self.rows.pop((table, key), None)
            else:
                self.rows[table, key] = _as_bytes(row)

    def whole(self) -> Picture:
        """The picture of somebody who looks at everything."""
        picture = Picture(self.image)
        for table in ("nodes", "topics", "streams", "objects"):
            picture._look(table, list(getattr(self.image, table).ids()))
        picture.cluster_id = self.image.cluster_id
        picture.controller = self.image.controller
        picture.next_ids = {
            "stream": self.image.streams.next_id,
            "object": self.image.objects.next_id,
            "producer": self.image.producer_ids.next_id,
        }
        return picture


def _as_bytes(row: Any) -> bytes:
    return msgspec.msgpack.encode(row, enc_hook=lambda value: value.to_bytes())


@given(commands, st.lists(st.integers(1, 4), min_size=30, max_size=30), st.integers(0, 25))
def test_whole_cut_or_followed_commands_give_one_picture(
    todo: list[Command], sizes: list[int], cut: int
) -> None:
    """I7: folded from the start, from a snapshot anywhere plus the entries after it, or heard of by deltas only.

    Entries have several commands, of which any may be refused, and writers that say how far their WAL got.
    """
    todo = START + todo
    entries = []
    for number, size in enumerate(sizes):
        if todo:
            entries.append(new_entry(todo[:size], "ab"[number % 2], NOW_MS + number, wal_end=number))
            todo = todo[size:]
    image = Image()
    picture = Picture(image)
    snapshots = []
    for index, entry in enumerate(entries, 1):
        snapshots.append(image.to_snapshot())
        picture.follow(image.fold(index, entry).deltas)
        whole = picture.whole()
        assert picture.rows == whole.rows
        assert (picture.cluster_id, picture.controller) == (whole.cluster_id, whole.controller)
        assert picture.next_ids == whole.next_ids
    start = min(cut, len(entries) - 1)
    later = Image.from_snapshot(snapshots[start])
    followed = Picture(later).whole()
    for index, entry in enumerate(entries[start:], start + 1):
        followed.follow(later.fold(index, decode_entry(index, encode_entry(entry))).deltas)
    assert later.to_snapshot() == image.to_snapshot()
    assert (followed.rows, followed.next_ids) == (picture.rows, picture.next_ids)


def test_a_refused_command_tells_nothing() -> None:
    image = Image()
    assert [type(delta) for delta in image.fold(1, new_entry([FormatCluster("c")], "w", 1)).deltas] == [
        d.ClusterNamed
    ]
    refused = image.fold(2, new_entry([FormatCluster("other"), RegisterNode(1, "a", lost_wal="")], "w", 1))
    assert isinstance(refused.results[0], Exception)
    assert {type(delta) for delta in refused.deltas} == {
        d.NodesChanged,
        d.LeadersChanged,
        d.ControllerChanged,
    }


class HideTopic(Command, tag="hide", frozen=True):
    """Changes a field of a topic that no delta is about."""

    topic_id: bytes

    def fold(self, image: State, at: Moment) -> None:
        image.topics.change(self.topic_id).internal = True
        at.tell(d.TopicChanged(self.topic_id))


def test_a_field_of_a_topic_needs_no_delta_of_its_own() -> None:
    image = Image()
    picture = Picture(image)
    picture.follow(image.fold(1, new_entry(START, "w", 1)).deltas)
    before = picture.rows["topics", TOPIC_ID]
    deltas = image.fold(2, new_entry([HideTopic(TOPIC_ID)], "w", 1)).deltas
    assert deltas == [d.TopicChanged(TOPIC_ID)]
    picture.follow(deltas)
    assert picture.rows == picture.whole().rows
    assert picture.rows["topics", TOPIC_ID] != before
