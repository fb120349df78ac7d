"""Objects are prepared, committed, given up and forgotten."""

from __future__ import annotations

__all__ = (
    "AbandonObjects",
    "CommitUpload",
    "ForgetObjects",
    "PrepareObjects",
    "UploadedObject",
    "UploadedRange",
)

import msgspec

from penstock.errors import ConflictError, NotFoundError
from penstock.metadata.command import Command
from penstock.metadata.deltas import IdsGiven, ObjectsChanged, ObjectsRemoved, StreamsChanged
from penstock.metadata.state import Moment, State


class PrepareObjects(Command, tag="prepare", frozen=True):
    """Reserve ``count`` object ids until ``deadline_ms`` (wall clock); uncommitted ones are then deleted."""

    node_id: int
    node_epoch: int
    count: int
    deadline_ms: int

    def fold(self, image: State, at: Moment) -> list[int]:
        """The ids."""
        image.nodes.check_epoch(self.node_id, self.node_epoch)
        object_ids = image.objects.prepare(self.count, self.deadline_ms)
        at.tell(ObjectsChanged(object_ids))
        at.tell(IdsGiven("object", image.objects.next_id))
        return object_ids


class UploadedRange(msgspec.Struct, frozen=True, array_like=True):
    """Offsets [start, end) of one stream inside an object; ``size`` payload bytes, greatest time of its entries."""

    stream_id: int
    start: int
    end: int
    size: int
    time_ms: int


class UploadedObject(msgspec.Struct, frozen=True, array_like=True):
    """An object that is whole in the store."""

    object_id: int
    size: int
    ranges: list[UploadedRange]


class CommitUpload(Command, tag="commit", frozen=True):
    """The data of these objects are part of their streams from now on: all of them, or none."""

    node_id: int
    node_epoch: int
    objects: list[UploadedObject]

    def fold(self, image: State, at: Moment) -> None:
        """Refused if a range doesn't continue its stream (I2), or an object was given up."""
        image.nodes.check_epoch(self.node_id, self.node_epoch)
        self._check(image, at.rules)
        streams, watched = image.streams, image.streams.is_cut
        find = streams.get
        for uploaded in self.objects:
            object_id = uploaded.object_id
            held = image.objects.change(object_id)
            held.size = uploaded.size
            for r in uploaded.ranges:
                stream_id = r.stream_id
                stream = find(stream_id)
                if stream is None:
                    continue  # deleted while the upload was on its way
                if watched:
                    streams.change(stream_id)
                stream.end = end = r.end
                if end > stream.start:
                    stream.ranges.add(r.start, end, object_id, r.size, r.time_ms)
                    held.live_ranges += 1
            held.state = "committed" if held.live_ranges else "destroyed"
            held.at_ms = at.now_ms
        at.tell(StreamsChanged([r.stream_id for uploaded in self.objects for r in uploaded.ranges]))
        at.tell(ObjectsChanged([uploaded.object_id for uploaded in self.objects]))

    def _check(self, image: State, rules: int) -> None:
        ends: dict[int, int] = {}
        streams = image.streams
        find = streams.get
        for uploaded in self.objects:
            held = image.objects.get(uploaded.object_id)
            if held is None or held.state != "prepared":
                raise NotFoundError(
                    f"the object isn't prepared any more, its deadline passed: object_id={uploaded.object_id}"
                )
            for r in uploaded.ranges:
                stream_id, start = r.stream_id, r.start
                stream = find(stream_id)
                if stream is None:
                    continue
                if rules > 1:
                    streams.check_owner(stream, self.node_id)
                end = ends.get(stream_id, stream.end)
                # I2: ranges continue the stream; a gap is fine only where the records were deleted already
                if r.end <= start or (start != end and not end < start <= stream.start):
                    raise ConflictError(
                        f"the range doesn't continue its stream: stream={stream_id} "
                        f"committed_end={end} range=[{start},{r.end})"
                    )
                ends[stream_id] = r.end

    def weight(self, image: State) -> int:
        """Each range is checked, and added to its stream."""
        return sum(len(uploaded.ranges) for uploaded in self.objects)


class AbandonObjects(Command, tag="abandon", frozen=True):
    """Prepared objects that will not be committed; they are deleted like any destroyed object."""

    object_ids: list[int]

    def fold(self, image: State, at: Moment) -> list[int]:
        """Destroy the objects that are still only prepared; returns their ids."""
        abandoned = []
        for object_id in self.object_ids:
            held = image.objects.get(object_id)
            if held is not None and held.state == "prepared":
                image.objects.change(object_id)
                held.state = "destroyed"
                held.at_ms = at.now_ms
                abandoned.append(object_id)
        at.tell(ObjectsChanged(abandoned))
        return abandoned

    def weight(self, image: State) -> int:
        """Each object changes."""
        return len(self.object_ids)


class ForgetObjects(Command, tag="forget", frozen=True):
    """Destroyed objects that are gone from the store."""

    object_ids: list[int]

    def fold(self, image: State, at: Moment) -> None:
        """Others than destroyed ones are left alone."""
        forgotten = []
        for object_id in self.object_ids:
            held = image.objects.get(object_id)
            if held is not None and held.state == "destroyed":
                image.objects.drop(object_id)
                forgotten.append(object_id)
        at.tell(ObjectsRemoved(forgotten))

    def weight(self, image: State) -> int:
        """Each object goes."""
        return len(self.object_ids)
