"""Which entries of a block go into which objects, and their bytes: pure, so it can be done in a thread."""

from __future__ import annotations

__all__ = ("UploadBlock", "build_object", "first_part", "live_offsets", "plan_objects", "split_parts")

from collections.abc import Mapping, Sequence
from typing import Protocol

from penstock.metadata.commands.objects import UploadedObject, UploadedRange
from penstock.metadata.image import Image
from penstock.spi.log_cache import StreamEntry
from penstock.spi.plugin import Buffer
from penstock.stream.object_format import ObjectWriter
from penstock.work.pieces import pieces


class UploadBlock(Protocol):
    """Entries that are uploaded together: a frozen block of the log cache, or what was read from a WAL."""

    @property
    def streams(self) -> Mapping[int, Sequence[StreamEntry]]:
        """Entries by stream id, each in offset order, continuous within the block."""

    @property
    def size_bytes(self) -> int:
        """Payload bytes."""


def live_offsets(block: UploadBlock, image: Image) -> dict[int, int]:
    """Where each stream of the block goes on that still exists: offsets below are committed or deleted."""
    streams = image.streams
    return {
        stream_id: max(state.start, state.end)
        for stream_id in block.streams
        if (state := streams.get(stream_id)) is not None
    }


def plan_objects(
    block: UploadBlock, live: Mapping[int, int], object_split_bytes: int, streams_max: int
) -> list[list[tuple[int, Sequence[StreamEntry]]]]:
    """Which streams go into which object: large ones alone, the rest into one (design: stream set object).

    At most ``streams_max`` streams share one. Entries of streams that aren't in ``live`` (deleted), those wholly
    below a stream's start and those that are committed (the block is put again after a part of it was) are left out.
    """
    own: list[list[tuple[int, Sequence[StreamEntry]]]] = []
    shared: list[tuple[int, Sequence[StreamEntry]]] = []
    for stream_id in sorted(live):
        first = live[stream_id]
        entries = [entry for entry in block.streams[stream_id] if entry.next_offset > first]
        if not entries:
            continue
        if sum(len(entry.data) for entry in entries) >= object_split_bytes:
            own.append([(stream_id, entries)])
        else:
            shared.append((stream_id, entries))
    return own + [list(some) for some in pieces(shared, streams_max)]


def build_object(
    object_id: int,
    streams: list[tuple[int, Sequence[StreamEntry]]],
    block_bytes: int,
    *,
    direct_io: bool = False,
) -> tuple[list[Buffer], UploadedObject]:
    """The bytes of an object with these streams, without copying a payload, and what metadata says of it."""
    writer = ObjectWriter(object_id, block_bytes, direct_io=direct_io)
    ranges = []
    for stream_id, entries in streams:
        writer.add(stream_id, entries)
        ranges.append(
            UploadedRange(
                stream_id,
                entries[0].base_offset,
                entries[-1].next_offset,
                sum(len(entry.data) for entry in entries),
                max(entry.time_ms for entry in entries),
            )
        )
    body, size = writer.finish()
    return body, UploadedObject(object_id, size, ranges)


def split_parts(body: Sequence[Buffer], part_bytes: int) -> list[list[Buffer]]:
    """``body`` in parts of at least ``part_bytes``, but for the last."""
    parts: list[list[Buffer]] = [[]]
    size = 0
    for buffer in body:
        if size >= part_bytes:
            parts.append([])
            size = 0
        parts[-1].append(buffer)
        size += len(buffer)
    return parts


def first_part(objects: list[UploadedObject], ranges_max: int) -> list[UploadedObject]:
    """The first objects with at most ``ranges_max`` ranges together; at least one object."""
    count = ranges = 0
    for uploaded in objects:
        ranges += len(uploaded.ranges)
        if count and ranges > ranges_max:
            break
        count += 1
    return objects[:count]
