"""What must be so, by what clients were told: the invariants that a history is held against."""

from __future__ import annotations

__all__ = ("Model", "WatchedWal", "check_image")

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from penstock.metadata.image import Image
from penstock.spi.plugin import Buffer
from penstock.spi.wal import WalAppend, WalCapabilities, WalEntry, WalStatistics, WriteAheadLog
from penstock.stream.engine import StreamEngine
from penstock.stream.entry import decode_header
from penstock.stream.open_stream import Stream

_READ_BYTES = 3000


@dataclass
class Written:
    """What is known of one stream."""

    #: Acknowledged payloads by offset, and in which life: they must be there (I1).
    acked: dict[int, tuple[bytes, int]] = field(default_factory=dict)
    #: Everything that was ever sent, with how many offsets it takes: nothing else may be there.
    sent: dict[bytes, int] = field(default_factory=dict)
    #: The start that was acknowledged, and the greatest that was asked for.
    start: int = 0
    start_max: int = 0


class Model:
    """All streams, over all lives."""

    def __init__(self) -> None:
        self.streams: dict[int, Written] = {}

    def of(self, stream_id: int) -> Written:
        """The stream."""
        return self.streams.setdefault(stream_id, Written())

    def acked(self, stream_id: int, offset: int, payload: bytes, life: int) -> None:
        """An owner was told that ``payload`` is durable at ``offset``."""
        known = self.of(stream_id).acked.setdefault(offset, (payload, life))
        assert known[0] == payload, (
            f"I3: an offset was acknowledged twice, by lives {known[1]} and {life}: "
            f"stream={stream_id} offset={offset}"
        )

    async def check(self, engine: StreamEngine, streams: Sequence[Stream]) -> None:
        """I1: each record that was acknowledged is there, with its offset and bytes, and nothing that wasn't sent."""
        for stream in streams:
            written = self.of(stream.stream_id)
            before = dict(written.acked)  # a fenced owner may still be told of what landed before the fence
            start, end = stream.start_offset, stream.confirmed_offset
            place = f"stream={stream.stream_id}"
            assert written.start <= start <= max(written.start, written.start_max), (
                f"the start is neither what was acknowledged nor what was asked for: {place} start={start}"
            )
            found = await _read(engine, stream, start, end)
            sent = written.sent
            lost = sorted(
                offset
                for offset, (payload, _) in before.items()
                if offset + sent[payload] > start and found.get(offset) != payload
            )
            assert not lost, f"I1: acknowledged records are lost or changed: {place} offsets={lost[:5]}"
            unknown = [o for o, payload in found.items() if payload not in sent]
            assert not unknown, f"records that nobody sent: {place} offsets={unknown[:5]}"
            offset = min(found, default=start)
            assert offset <= start, f"I1: the first offsets are missing: {place} start={start} found={offset}"
            for base, payload in found.items():
                assert base == offset, (
                    f"I1: offsets are missing or doubled: {place} expected={offset} found={base}"
                )
                offset += sent[payload]
            assert offset == max(start, end), (
                f"I1: the last offsets are missing: {place} end={end} found={offset}"
            )
            assert len(set(found.values())) == len(found), f"a record is there twice: {place}"


async def _read(engine: StreamEngine, stream: Stream, start: int, end: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    offset = start
    while offset < end:
        entries = await engine.reads.read(stream, offset, _READ_BYTES)
        assert entries, f"I1: a read found nothing: stream={stream.stream_id} offset={offset} end={end}"
        for entry in entries:
            found[entry.base_offset] = bytes(entry.data)
            offset = entry.next_offset
    return found


def check_image(image: Image) -> None:
    """I2: committed ranges tile their streams; I6: what they are in is held."""
    counted: dict[int, int] = {}
    for stream in image.streams.all():
        position = None
        for one in stream.ranges:
            assert position in (None, one.start), (
                f"I2: a gap or overlap: stream={stream.stream_id} end={position} start={one.start}"
            )
            position = one.end
            held = image.objects.get(one.object_id)
            assert held is not None and held.state == "committed", (
                f"I6: a range is in an object that isn't committed: object_id={one.object_id}"
            )
            counted[one.object_id] = counted.get(one.object_id, 0) + 1
        covered = (stream.ranges[0].start, position) if stream.ranges else (stream.end, stream.end)
        assert covered[0] <= max(stream.start, 0) or stream.start >= stream.end, (
            f"I2: no range covers the start: stream={stream.stream_id}"
        )
        assert covered[1] == stream.end, f"I2: no range covers the end: stream={stream.stream_id}"
    for object_id, count in counted.items():
        assert image.objects.require(object_id).live_ranges == count, f"I6: miscounted: object_id={object_id}"


class WatchedWal:
    """Between the engine and its WAL: I4, nothing is trimmed that metadata doesn't have."""

    def __init__(self, wal: WriteAheadLog, image: Image, on_append: Callable[[], None]) -> None:
        self._wal = wal
        self._image = image
        self._on_append = on_append
        #: Position, stream and next offset of what the log holds, oldest first.
        self._held: list[tuple[int, int, int]] = []

    @property
    def capabilities(self) -> WalCapabilities:
        return self._wal.capabilities

    @property
    def location(self) -> str:
        return self._wal.location

    def _hold(self, data: Buffer, position: int, next_position: int) -> None:
        header = decode_header(memoryview(data), position)
        self._held.append((next_position, header.stream_id, header.next_offset))

    async def recover(self) -> AsyncIterator[WalEntry]:
        last = -1
        async for entry in self._wal.recover():
            assert entry.position >= last, f"the WAL recovers out of order: position={entry.position}"
            last = entry.next_position
            self._hold(entry.data, entry.position, entry.next_position)
            yield entry

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        append = self._wal.append(data, checksum)
        self._hold(data[0], append.position, append.next_position)
        self._on_append()
        return append

    async def trim(self, position: int) -> None:
        kept = []
        for held in self._held:
            end, stream_id, next_offset = held
            if end > position:
                kept.append(held)
                continue
            state = self._image.streams.get(stream_id)
            if state is not None:
                assert next_offset <= max(state.start, state.end), (
                    f"I4: trimmed and not committed: stream={stream_id} next_offset={next_offset}"
                )
        await self._wal.trim(position)
        self._held = kept

    async def seal(self) -> None:
        await self._wal.seal()

    def statistics(self) -> WalStatistics:
        return self._wal.statistics()
