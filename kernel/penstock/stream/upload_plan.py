"""Which entries of a block go into which objects, and their bytes: pure, so it can be done in a thread."""

from __future__ import annotations

__all__ = ("UploadBlock", "first_part", "live_offsets", "object_pieces", "plan_objects")

from collections.abc import Iterable, Iterator, Mapping, Sequence
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


def live_offsets(stream_ids: Iterable[int], image: Image) -> dict[int, int]:
    """Where each of the streams goes on that still exists: offsets below are committed or deleted."""
    streams = image.streams
    return {
        stream_id: max(state.start, state.end)
        for stream_id in stream_ids
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
        entries = [entry for entry in block.streams.get(stream_id, ()) if entry.next_offset > first]
        if not entries:
            continue
        if sum(len(entry.data) for entry in entries) >= object_split_bytes:
            own.append([(stream_id, entries)])
        else:
            shared.append((stream_id, entries))
    return own + [list(chunk) for chunk in pieces(shared, streams_max)]


def object_pieces(
    object_id: int,
    streams: Sequence[tuple[int, Sequence[StreamEntry]]],
    block_bytes: int,
    piece_bytes: int,
    *,
    direct_io: bool = False,
) -> Iterator[tuple[list[Buffer], UploadedObject | None]]:
    """The bytes of an object with these streams, in pieces, without copying a payload.

    A piece is built when it is asked for: it takes some microseconds an entry. Each has at least ``piece_bytes``, but
    for the last one, which comes with what metadata says of the object.
    """
    writer = ObjectWriter(object_id, block_bytes, direct_io=direct_io)
    ranges = []
    for stream_id, entries in streams:
        size, time_ms = 0, entries[0].time_ms
        for block_size, newest_ms in writer.add_blocks(stream_id, entries):
            size, time_ms = size + block_size, newest_ms
            if writer.waiting_bytes >= piece_bytes:
                yield writer.take(), None
        ranges.append(
            UploadedRange(stream_id, entries[0].base_offset, entries[-1].next_offset, size, time_ms)
        )
    body, size = writer.finish()
    yield body, UploadedObject(object_id, size, ranges)


def first_part(objects: list[UploadedObject], ranges_max: int) -> list[UploadedObject]:
    """The first objects with at most ``ranges_max`` ranges together; at least one object."""
    count = ranges = 0
    for uploaded in objects:
        ranges += len(uploaded.ranges)
        if count and ranges > ranges_max:
            break
        count += 1
    return objects[:count]
