"""Proves, from outside, the invariants of a stopped or live data directory that can be proven from outside.

- the metadata log is there and reads whole, and its newest snapshot plus the entries after it give an image (I7, I11)
- committed ranges of every stream tile: no gap, no overlap (I2)
- every committed object exists, and its footer, index and data blocks pass their checksums (I6, I11)
- every data block holds exactly the offsets that index and metadata say; record batches too (I1)
- no object is in the store that metadata doesn't know, and none is overdue for deletion (I6)
- what the WAL holds past the committed ends continues them without a hole (I10)
- the metadata log got as far as the WAL says that it did (I7)
- the WAL is the only one that may hold acknowledged records, of this node or of any other (I1)
- it holds none whose offsets were given again by another owner of the stream (I1)
"""

from __future__ import annotations

__all__ = ("Problem", "Report", "verify")

from dataclasses import dataclass, field

from crc32c import crc32c

from penstock.errors import CorruptError, NotFoundError, PenstockError
from penstock.metadata.image import Image
from penstock.metadata.objects import ObjectState
from penstock.metadata.owners import holder_of
from penstock.metadata.service import follow, load_image
from penstock.metadata.streams import StreamState
from penstock.spi.object_store import ObjectInfo
from penstock.stream.entry import HEADER, decode_header
from penstock.stream.marks import Evidence
from penstock.stream.object_format import (
    FOOTER,
    IndexRow,
    ObjectIndex,
    decode_block,
    decode_footer,
    decode_index,
    object_key,
    verify_block,
)
from penstock.stream.orphans import is_orphan, object_id_of
from penstock.wire.record_walk import plain_records, walk
from penstock.wire.records import ATTRIBUTES_POS, BatchError, read_header
from penstock_tools.inspection.places import Places

#: Deletion runs on an interval and waits for slow stores: only past this is an object overdue.
OVERDUE_GRACE_MS = 10 * 60 * 1000


@dataclass(frozen=True, slots=True)
class Problem:
    """One broken invariant: which, where, and what is wrong."""

    invariant: str
    place: str
    message: str


@dataclass(slots=True)
class Report:
    """The result of a verification: the figures of what was checked, and the faults found."""

    metadata_index: int = 0
    topics: int = 0
    streams: int = 0
    objects: int = 0
    blocks: int = 0
    batches: int = 0
    bytes: int = 0
    wal_entries: int | None = None
    #: How far metadata got, as the WAL says; 0: it doesn't.
    wal_metadata_index: int = 0
    #: Identity of the WAL that was found; None: there is none, or the plugin doesn't tell.
    wal_identity: str | None = None
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def problem(self, invariant: str, place: str, message: str) -> None:
        """Add a problem."""
        self.problems.append(Problem(invariant, place, message))


async def verify(places: Places, *, now_ms: int, delete_delay_ms: int, quick: bool = False) -> Report:
    """Check everything; ``quick`` leaves out reading the data blocks. Raises UnavailableError only."""
    report = Report()
    try:
        image = await load_image(places.metadata_log)
    except CorruptError as error:
        report.problem("I7/I11", places.metadata_log.location, str(error))
        return report
    report.metadata_index = image.index
    report.topics = len(image.topics)
    if not image.index:
        report.problem(
            "I7",
            places.metadata_log.location,
            "there is no metadata log, so nothing here can be proven; is this the right place, and is it all there?",
        )
    holders = check_tiling(image, report)
    for held in sorted(image.objects.all(), key=lambda o: o.object_id):
        if held.state == "committed":
            await _check_object(places, image, held, holders[held.object_id], report, quick=quick)
    await _check_orphans(places, image, report, now_ms, delete_delay_ms)
    await _check_wal_identity(places, image, report)
    await _check_wal(places, image, report)
    return report


def check_tiling(image: Image, report: Report) -> dict[int, list[int]]:
    """I2 for every stream, and that objects and ranges fit together; returns the streams of each object."""
    holders: dict[int, list[int]] = {object_id: [] for object_id in image.objects.ids()}
    for stream in image.streams.all():
        report.streams += 1
        place = stream_name(image, stream)
        position = None
        for r in stream.ranges:
            if position is not None and r.start != position:
                what = "gap" if r.start > position else "overlap"
                report.problem(
                    "I2", place, f"{what} in committed ranges: expected={position} found={r.start}"
                )
            position = r.end
            held = image.objects.get(r.object_id)
            if held is None or held.state != "committed":
                report.problem(
                    "I6", place, f"range refers to an object that isn't held: object_id={r.object_id}"
                )
            else:
                holders[r.object_id].append(stream.stream_id)
        if stream.ranges and (stream.ranges[0].start > stream.start or position != stream.end):
            report.problem(
                "I2",
                place,
                f"ranges don't cover [{stream.start},{stream.end}): found [{stream.ranges[0].start},{position})",
            )
        if not stream.ranges and stream.start < stream.end:
            report.problem("I2", place, f"no range covers [{stream.start},{stream.end})")
    for object_id, stream_ids in holders.items():
        counted = image.objects.require(object_id).live_ranges
        if counted != len(stream_ids):
            report.problem(
                "I6",
                object_key(object_id),
                f"ranges in the object aren't those that it counts: counted={counted} found={len(stream_ids)}",
            )
    return holders


def stream_name(image: Image, stream: StreamState) -> str:
    """``topic-partition`` of a stream, for people."""
    topic = image.topics.get(stream.topic_id)
    name = topic.name if topic is not None else stream.topic_id.hex()
    kind = "" if topic is None or stream.stream_id in topic.log_streams else " (producer state)"
    return f"{name}-{stream.partition}{kind} stream={stream.stream_id}"


async def read_index(places: Places, object_id: int, size: int) -> ObjectIndex:
    """The index of an object, checked. Raises NotFoundError, CorruptError."""
    key = object_key(object_id)
    position, index_size, crc = decode_footer(
        await places.object_store.get(key, max(0, size - FOOTER.size), size), object_id
    )
    if position + index_size + FOOTER.size != size:
        raise CorruptError(f"object footer doesn't fit the object's size: object_id={object_id} size={size}")
    return decode_index(await places.object_store.get(key, position, position + index_size), crc, object_id)


async def _check_object(
    places: Places, image: Image, held: ObjectState, stream_ids: list[int], report: Report, *, quick: bool
) -> None:
    key = object_key(held.object_id)
    report.objects += 1
    try:
        info = await places.object_store.head(key)
        if info.size != held.size:
            report.problem("I6", key, f"object has another size: metadata={held.size} store={info.size}")
            return
        index = await read_index(places, held.object_id, held.size)
        _check_coverage(image, held, stream_ids, index, report)
        if not quick:
            for row in index.rows:
                await _check_block(places, image, held.object_id, row, report)
    except NotFoundError:
        if await _still_committed(places, image, held.object_id):
            report.problem("I6", key, "object is in metadata but not in the store")
    except CorruptError as error:
        report.problem("I11", key, str(error))


async def _still_committed(places: Places, image: Image, object_id: int) -> bool:
    """On a live directory an object may have been released since metadata was read."""
    await follow(places.metadata_log, image)
    held = image.objects.get(object_id)
    return held is not None and held.state == "committed"


def _check_coverage(
    image: Image, held: ObjectState, stream_ids: list[int], index: ObjectIndex, report: Report
) -> None:
    """The object's blocks tile the ranges that metadata says are in it."""
    for stream_id in dict.fromkeys(stream_ids):
        stream = image.streams.get(stream_id)
        for r in stream.ranges if stream is not None else ():
            if r.object_id != held.object_id:
                continue
            position = r.start
            for row in index.blocks_from(stream_id, r.start):
                if row.start != position:
                    break
                position = row.end
            if position != r.end:
                report.problem(
                    "I2",
                    object_key(held.object_id),
                    f"blocks don't tile the range: stream={stream_id} range=[{r.start},{r.end}) reached={position}",
                )


async def _check_block(places: Places, image: Image, object_id: int, row: IndexRow, report: Report) -> None:
    key = object_key(object_id)
    data = await places.object_store.get(key, row.position, row.position + row.size)
    report.blocks += 1
    report.bytes += row.size
    try:
        verify_block(data, object_id, row.position)
        stream = image.streams.get(row.stream_id)
        topic = image.topics.get(stream.topic_id) if stream is not None else None
        position = row.start
        for entry in decode_block(data, row.stream_id):
            if entry.base_offset != position:
                raise CorruptError(f"entries don't follow: expected={position} found={entry.base_offset}")
            position = entry.next_offset
            if topic is not None and row.stream_id in topic.log_streams:
                _check_batch(entry.data, entry.base_offset, entry.next_offset)
                report.batches += 1
                if fault := _fault_of_records(entry.data):
                    place = f"{topic.name} offsets=[{entry.base_offset},{entry.next_offset})"
                    report.problem(
                        "I12", place, f"consumers can't read the records of a batch in {key}: {fault}"
                    )
        if position != row.end:
            raise CorruptError(f"block ends elsewhere than its index says: index={row.end} block={position}")
    except (CorruptError, BatchError) as error:
        report.problem("I11", f"{key} block at {row.position}", str(error))


def _check_batch(batch: memoryview, base_offset: int, next_offset: int) -> None:
    header = read_header(batch)
    if (header.base_offset, header.next_offset) != (base_offset, next_offset):
        raise CorruptError(
            f"record batch has other offsets than its entry: entry=[{base_offset},{next_offset}) "
            f"batch=[{header.base_offset},{header.next_offset})"
        )
    if crc32c(batch[ATTRIBUTES_POS:]) != header.crc:
        raise CorruptError(f"record batch fails its checksum: base_offset={base_offset}")


def _fault_of_records(batch: memoryview) -> str:
    """Why a batch whose bytes are as they came can't be read, which ``topics.validate_records=header`` lets in."""
    header = read_header(batch)
    try:
        walk(plain_records(batch, header), 0, header.count)
    except BatchError as error:
        return str(error)
    return ""


async def _check_orphans(
    places: Places, image: Image, report: Report, now_ms: int, delete_delay_ms: int
) -> None:
    found = [info async for info in places.object_store.list("objects/")]
    # an object that appeared after metadata was read was prepared after it too; one that a live broker deleted
    # since it was listed may be forgotten by now
    known = {object_key(object_id) for object_id in image.objects.ids()}
    await follow(places.metadata_log, image)
    known.update(object_key(object_id) for object_id in image.objects.ids())
    for info in found:
        if info.key not in known:
            report.problem(
                "I6",
                info.key,
                f"orphan: metadata doesn't know the object; {_orphan_fate(image, info)}: size={info.size}",
            )
    for held in image.objects.all():
        overdue_ms = now_ms - held.at_ms - OVERDUE_GRACE_MS
        if held.state == "prepared" and overdue_ms > 0:
            report.notes.append(
                f"object {held.object_id} is prepared past its deadline; a running broker drops it"
            )
        if held.state == "destroyed" and overdue_ms - delete_delay_ms > 0:
            report.notes.append(f"object {held.object_id} waits for deletion; a running broker deletes it")


def _orphan_fate(image: Image, info: ObjectInfo) -> str:
    """What a running broker's orphan sweep does about the object, for people."""
    object_id = object_id_of(info.key)
    if object_id is None:
        return "its key is not one of penstock's, so no broker deletes it"
    if is_orphan(image, object_id):
        return (
            "a put landed late, and a running broker deletes it (stream.orphan_sweep_interval, orphan_grace)"
        )
    return (
        "its id was never given out, so no broker deletes it; is metadata older than the store, or does another "
        "cluster write here?"
    )


async def _check_wal_identity(places: Places, image: Image, report: Report) -> None:
    """The WAL is the only one that may hold something, of any node; what others left empty doesn't matter."""
    if places.identify_wal is not None:
        try:
            report.wal_identity = await places.identify_wal()
        except PenstockError as error:
            report.problem("I11", "WAL", str(error))
            return
    await follow(places.metadata_log, image)  # a live broker may have started since
    for node in image.nodes.all():
        if not node.wal_in_use or (node.wal and node.wal == report.wal_identity):
            continue
        if node.node_id != places.node_id:
            held = sum(holder_of(image.nodes, stream) is node for stream in image.streams.all())
            report.problem(
                "I1",
                f"WAL of node {node.node_id}",
                f"acknowledged records may be in that WAL only, which wasn't looked at (run verify with its "
                f"wal.path); did two brokers take streams from each other? recorded={node.wal_name} "
                f"recorded_at={node.wal_location or 'unknown'} streams={held}",
            )
        elif node.wal:
            report.problem(
                "I1",
                "WAL",
                f"acknowledged records may be in another WAL only: node_id={node.node_id} recorded={node.wal} "
                f"recorded_at={node.wal_location} found={report.wal_identity or 'none'}",
            )
    for node in image.nodes.all():
        for lost in node.lost_wals:
            report.notes.append(f"what only the WAL {lost} held was given up (broker.accept_lost_wal)")


async def _check_wal(places: Places, image: Image, report: Report) -> None:
    """What is only in the WAL continues what is committed (I10), as far as the WAL's plugin lets us look."""
    if places.read_wal is None:
        report.notes.append(
            f"the WAL wasn't checked: the plugin {places.wal_name} can't be read from outside"
        )
        return
    if places.identify_wal is not None and report.wal_identity is None:
        report.notes.append("there is no WAL")  # if there should be one, that was said
        return
    report.wal_entries = 0
    ends: dict[int, int] = {}
    evidence = Evidence()
    recorded_end = _recorded_end(image, report)  # before the WAL is read: a live one goes on
    try:
        async for entry in places.read_wal():
            if evidence.add(entry) is not None:
                continue
            report.wal_entries += 1
            header = decode_header(entry.data, entry.position)
            stream = image.streams.get(header.stream_id)
            if stream is not None and header.epoch != stream.epoch:
                await follow(places.metadata_log, image)  # a live broker may have opened the stream since
                stream = image.streams.get(header.stream_id)
            if stream is None:
                continue
            if header.epoch != stream.epoch:
                if header.next_offset > stream.opened_at:
                    report.problem(
                        "I1",
                        stream_name(image, stream),
                        f"the WAL holds records that were passed over when the stream was opened with another WAL, "
                        f"which gave their offsets again: range=[{header.base_offset},{header.next_offset}) "
                        f"opened_at={stream.opened_at} committed_end={stream.end} position={entry.position}",
                    )
                continue
            expected = ends.get(header.stream_id, max(stream.start, stream.end))
            if header.next_offset <= expected:
                continue
            if header.base_offset > expected:
                # on a live directory the range may have been committed since metadata was read
                await follow(places.metadata_log, image)
                expected = max(expected, stream.end, stream.start)
            if header.base_offset > expected:
                report.problem(
                    "I10",
                    stream_name(image, stream),
                    f"the WAL has a hole: missing=[{expected},{header.base_offset}) position={entry.position}",
                )
            topic = image.topics.get(stream.topic_id)
            if topic is not None and header.stream_id in topic.log_streams:
                _check_batch(entry.data[HEADER.size :], header.base_offset, header.next_offset)
                report.batches += 1
            ends[header.stream_id] = header.next_offset
    except PenstockError as error:
        report.problem("I10/I11", "WAL", str(error))
        recorded_end = 0
    await _check_reach(places, image, evidence, recorded_end, report)


def _recorded_end(image: Image, report: Report) -> int:
    """How far the WAL got, as metadata know; 0 if they don't."""
    return max(
        (n.wal_end for n in image.nodes.all() if n.wal_in_use and n.wal and n.wal == report.wal_identity),
        default=0,
    )


async def _check_reach(
    places: Places, image: Image, evidence: Evidence, recorded_end: int, report: Report
) -> None:
    """Metadata log and WAL were written with each other, and each got as far as the other one knows (I1, I7)."""
    report.wal_metadata_index = evidence.index
    if evidence.cluster_id and evidence.cluster_id != image.cluster_id:
        report.problem(
            "I7",
            "WAL",
            f"it is of another cluster: wal_cluster={evidence.cluster_id} cluster={image.cluster_id or 'none'}",
        )
        return
    if evidence.end < recorded_end:
        report.problem(
            "I1",
            "WAL",
            f"it ends before the position that metadata recorded, so acknowledged records are missing; is it "
            f"an older copy, or was it cut off? end={evidence.end} recorded_end={recorded_end}",
        )
    if evidence.index > image.index:
        await follow(places.metadata_log, image)  # a live broker may have gone on since
    if evidence.index > image.index:
        report.problem(
            "I7",
            places.metadata_log.location,
            f"the newest metadata entries are missing, the WAL says that there were more: "
            f"reached={evidence.index} found={image.index}",
        )
