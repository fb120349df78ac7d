"""What must be so in a simulated broker, whatever happened to it."""

from __future__ import annotations

__all__ = ("Promises",)

from collections.abc import Iterator

from penstock_metadata_object import _format
from tests.simulation.groups import Groups
from tests.simulation.history import Life
from tests.simulation.model import NAMES, Place
from tests.unit.stream.harness import Engine

from penstock.log.partition import Partition
from penstock.metadata.commands import decode_entry
from penstock.metadata.image import Image
from penstock.metadata.service import load_image
from penstock.stream.entry import decode_header
from penstock.stream.object_format import object_key
from penstock.wire.records import iter_records
from penstock_tools.inspection.verify import Report, check_tiling


class Promises(Groups):
    """The invariants I1, I2, I4, I6 and I7, exactly once, and the offsets of groups."""

    async def _check(self, life: Life) -> None:
        """With no fault and nothing on its way."""
        await self._check_groups(life)
        await self._check_image(life)
        self._check_topics(life)
        await self._check_objects(life, exactly=False)
        for name, topic in life.logs.topics().items():
            if name in NAMES:
                for partition in topic.partitions.values():
                    await self._check_log(partition)

    async def _check_image(self, life: Life) -> None:
        """I2; I7: from the newest snapshot, and from the very first entry, the same image."""
        image = life.engine.metadata.image
        report = Report()
        check_tiling(image, report)
        assert report.problems == []
        loaded = await load_image(life.engine.metadata_log)
        while loaded.index != image.index:  # trims go on whose clients have left
            loaded = await load_image(life.engine.metadata_log)
        expected = image.to_snapshot()
        assert loaded.to_snapshot() == expected
        replayed = Image()
        for key in sorted(self.store.entries):
            index = _format.entry_index("metadata/", key)
            data = _format.decode(_format.ENTRY_MAGIC, index, key, self.store.entries[key])
            if index <= image.index:
                replayed.fold(index, decode_entry(index, data))
        assert replayed.to_snapshot() == expected

    def _leader_epochs(self, life: Life) -> Iterator[tuple[Place, int]]:
        for topic in life.logs.topics().values():
            for partition in topic.partitions.values():
                yield (topic.id, partition.index), partition.leader_epoch

    def _check_topics(self, life: Life) -> None:
        image = life.engine.metadata.image
        assert self.deleted.isdisjoint(image.topics.ids())
        assert set(self.created) - self.doomed <= set(image.topics.ids())
        live = life.logs.topics()
        for topic in image.topics.all():
            if topic.name in NAMES:
                assert sorted(live[topic.name].partitions) == list(range(topic.partition_count))
                assert live[topic.name].id == topic.topic_id
        assert set(live) == set(image.topics.names())

    async def _check_objects(self, life: Life, *, exactly: bool) -> None:
        """I6: what metadata says is there is there; ``exactly``: after the deadlines, nothing else is."""
        objects = life.engine.metadata.image.objects
        found = {key for key in self.store.objects if key.startswith("objects/")}
        committed = {object_key(held.object_id) for held in objects.all() if held.state == "committed"}
        assert committed <= found
        if exactly:
            assert found == committed
            assert len(objects) == len(committed)

    async def _check_log(self, partition: Partition) -> None:
        """I1, exactly once, and offsets without a gap."""
        written = self._written(partition)
        place = f"{partition.topic}-{partition.index}"
        start, end = partition.log_start_offset, partition.high_watermark
        assert written.start <= start <= max(written.start_max, written.start), place
        found: dict[int, bytes] = {}
        offset = start
        while offset < end:
            result = await partition.read(offset, 700, read_committed=False, at_least_one=True)
            for piece in result.records:
                for record in iter_records(piece):
                    found[record.offset] = bytes(record.value or b"")
                    offset = record.offset + 1
        assert [o for o in sorted(found) if o >= start] == list(range(start, end)), place
        lost = {o: v for o, v in written.acked.items() if o >= start and found.get(o) != v}
        assert lost == {}, place
        values = [found[o] for o in range(start, end)]
        assert written.sent.issuperset(values), place
        assert len(set(values)) == len(values), f"a batch is there twice: {place}"
        for number in range(1, len(self.producers)):
            counts = [int(v.split(b".")[0].split(b"-")[1]) for v in values if v.startswith(b"%d-" % number)]
            assert counts == sorted(counts), f"a producer's batches are out of order: {place}"

    def _check_trim(self, engine: Engine, position: int) -> None:
        """I4: everything that the WAL forgets is committed, or of a stream that is trimmed or gone."""
        for entry in self.wal.durable:
            if self.wal.trimmed_ever < entry.next_position <= position:
                header = decode_header(entry.data, entry.position)
                stream = engine.metadata.image.streams.get(header.stream_id)
                assert stream is None or header.next_offset <= max(stream.start, stream.end), (
                    f"trimmed and not committed: {header}"
                )
