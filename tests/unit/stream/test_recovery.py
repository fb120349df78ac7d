"""Recovery is a function of a WAL, the image and a store: beside a broker that serves, in bounded memory."""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from penstock_allocator_sequential import SequentialAllocatorSettings, penstock_register_allocator
from penstock_metadata_object import Settings as MetadataSettings
from penstock_metadata_object import penstock_register_metadata_log
from tests.depth import examples
from tests.patience import HANG_S
from tests.simulation.world import SimulatedStore, SimulatedWal
from tests.unit.stream.harness import SETTINGS, FakeWal, World

from penstock.errors import CorruptError, FencedError
from penstock.metadata import owners
from penstock.metadata import service as service_module
from penstock.metadata.commands.nodes import RegisterNode
from penstock.metadata.commands.streams import OpenStreams
from penstock.metadata.commands.topics import CreateTopic
from penstock.metadata.service import MetadataService
from penstock.spi.allocator import Allocator
from penstock.spi.object_store import ObjectStore
from penstock.spi.plugin import Services
from penstock.spi.wal import WalEntry, WriteAheadLog
from penstock.stream import uploader as uploader_module
from penstock.stream.entry import decode_header, encode_header
from penstock.stream.marks import MARK_STREAM, MetadataMarks
from penstock.stream.object_format import decode_block, decode_footer, decode_index, object_key
from penstock.stream.recovery import ENTRY_OVERHEAD_BYTES, Recovered, recover_wal

pytestmark = pytest.mark.anyio

#: The node whose WAL is recovered.
DEAD = 2


@pytest.fixture(autouse=True)
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses on the real clock, and no threads."""

    async def inline(function: Callable[..., Any], *args: Any, limiter: object = None) -> Any:
        return function(*args)

    monkeypatch.setattr(anyio.to_thread, "run_sync", inline)
    monkeypatch.setattr(service_module, "_BACKOFF_S", (0,))
    monkeypatch.setattr(uploader_module, "_BACKOFF_S", (0,))


@dataclass
class Place:
    """What a recovery needs beside the WAL."""

    metadata: MetadataService
    store: ObjectStore
    allocator: Allocator
    #: The streams of the topic that the dead node wrote.
    stream_ids: Sequence[int] = ()

    async def create_streams(self, count: int) -> int:
        """A topic of the dead node's; its epoch as the owner of the streams."""
        node_epoch = await self.register()
        topic = await self.metadata.submit(CreateTopic("dead", b"d" * 16, count))
        self.stream_ids = topic.log_streams
        await self.metadata.submit(OpenStreams(DEAD, node_epoch, list(self.stream_ids)))
        epoch: int = self.metadata.image.streams.require(self.stream_ids[0]).epoch
        return epoch

    async def register(self) -> int:
        """The next life of the dead node, for which its WAL is recovered."""
        epoch = await self.metadata.submit(RegisterNode(DEAD, "a survivor"))
        assert isinstance(epoch, int)
        return epoch

    async def recover(
        self, wal: WriteAheadLog, node_epoch: int, block_bytes: int = SETTINGS.upload_bytes
    ) -> Recovered:
        marks = MetadataMarks(
            wal,
            self.metadata.image.cluster_id,
            node_epoch=node_epoch,
            now_ms=lambda: 0,
            told=lambda index: None,
        )
        return await recover_wal(
            wal,
            node_id=DEAD,
            node_epoch=node_epoch,
            metadata=self.metadata,
            store=self.store,
            allocator=self.allocator,
            marks=marks,
            block_bytes=block_bytes,
            settings=SETTINGS.upload,
            now_ms=lambda: 0,
        )

    async def committed(self, stream_id: int) -> list[tuple[int, int, bytes]]:
        """(base offset, next offset, payload) of every committed entry, in the order of the stream's ranges."""
        found = []
        for r in self.metadata.image.streams.require(stream_id).ranges:
            data = await self.store.get(object_key(r.object_id))
            position, size, crc = decode_footer(data, r.object_id)
            index = decode_index(memoryview(data)[position : position + size], crc, r.object_id)
            for row in index.blocks_from(stream_id, r.start):
                block = memoryview(data)[row.position : row.position + row.size]
                found += [
                    (e.base_offset, e.next_offset, bytes(e.data)) for e in decode_block(block, stream_id)
                ]
        return found


@asynccontextmanager
async def opened(directory: Path, store: ObjectStore, limit: int = 2**24) -> AsyncIterator[Place]:
    """A process that recovers and does nothing else."""
    services = Services(node_id=DEAD, epoch=1, cluster_id="", data_dir=directory, clock=lambda: 0.0)
    async with penstock_register_allocator().open(
        SequentialAllocatorSettings(limit=limit), services
    ) as allocator:
        services = replace(services, allocator=allocator, object_store=store)
        async with (
            penstock_register_metadata_log().open(MetadataSettings(), services) as log,
            MetadataService.open(log, now_ms=lambda: 0) as metadata,
        ):
            place = Place(metadata, store, allocator)
            topic = metadata.image.topics.named("dead")
            if topic is not None:
                place.stream_ids = topic.log_streams
            yield place


def wal_entry(position: int, stream_id: int, epoch: int, base_offset: int, payload: bytes) -> WalEntry:
    """An entry of one record."""
    data = encode_header(stream_id, epoch, base_offset, base_offset + 1, 0) + payload
    return WalEntry(position, position + len(data), memoryview(bytearray(data)))


def fill(wal: FakeWal, stream_ids: Sequence[int], epoch: int, payloads: Sequence[bytes]) -> None:
    """Acknowledged entries, over the streams in turn."""
    for i, payload in enumerate(payloads):
        entry = wal_entry(wal.position, stream_ids[i % len(stream_ids)], epoch, i // len(stream_ids), payload)
        wal.durable.append(entry)
        wal.position = entry.next_position


async def test_a_wal_is_recovered_beside_a_broker_that_serves_and_its_log_cache_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the rule of a cluster of one broker, which lets no second node register
    monkeypatch.setattr(owners, "_check_alone", lambda *args: None)
    world, dead = World(tmp_path), FakeWal()
    async with world.open() as e:
        place = Place(e.metadata, e.store, e.allocator)
        epoch = await place.create_streams(2)
        payloads = [bytes([i]) * 100 for i in range(20)]
        fill(dead, place.stream_ids, epoch, payloads)
        e.append(b"only in the wal and the log cache")
        before = (e.log_cache.statistics(), e.allocator.statistics().used_by_purpose, len(world.wal.left))
        e.store.gate = anyio.Event()
        recovered: list[Recovered] = []

        async def recover() -> None:
            recovered.append(await place.recover(dead, await place.register(), block_bytes=2000))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(recover)
            await anyio.wait_all_tasks_blocked()
            assert e.log_cache.statistics() == before[0]
            assert e.append(b"appended meanwhile") == [None], "the broker goes on"
            e.log_cache.freeze()
            served = e.log_cache.statistics()
            e.store.gate.set()
        assert (recovered[0].entries, recovered[0].payload_bytes) == (20, 2000)
        assert e.log_cache.statistics() == served
        assert (world.uploads, len(world.wal.left)) == ([], before[2] + 1), "its own WAL holds what it held"
        assert dead.left == []
        for i, stream_id in enumerate(place.stream_ids):
            assert await place.committed(stream_id) == [
                (n, n + 1, payload) for n, payload in enumerate(payloads[i::2])
            ]


class Counted(bytearray):
    """Bytes that are counted as long as anybody refers to them."""


class LongWal(FakeWal):
    """Makes its entries when they are read, so that only who keeps them has them in memory."""

    def __init__(self, stream_id: int, epoch: int, count: int, size: int) -> None:
        super().__init__()
        self._entries = stream_id, epoch, count, size
        self.alive_bytes = self.peak_bytes = 0

    async def recover(self) -> AsyncIterator[WalEntry]:
        stream_id, epoch, count, size = self._entries
        for i in range(count):
            data = Counted(encode_header(stream_id, epoch, i, i + 1, 0) + bytes(size))
            self.alive_bytes += len(data)
            self.peak_bytes = max(self.peak_bytes, self.alive_bytes)
            weakref.finalize(data, self._died, len(data))
            entry = WalEntry(self.position, self.position + len(data), memoryview(data))
            self.position = entry.next_position
            del data
            yield entry
            await anyio.lowlevel.checkpoint()

    def _died(self, size: int) -> None:
        self.alive_bytes -= size


@pytest.mark.parametrize("count", [100, 1000])
@pytest.mark.parametrize("limit", [2**24, 60_000])
async def test_the_memory_of_a_recovery_is_bounded_whatever_the_wal_holds(
    tmp_path: Path, limit: int, count: int
) -> None:
    """I8: three blocks (two are put, one is filled); less where the allocator has less."""
    size, block_bytes = 2000, 50_000
    async with opened(tmp_path, SimulatedStore(Random(1)), limit) as place:
        epoch = await place.create_streams(1)
        wal = LongWal(place.stream_ids[0], epoch, count, size)
        with anyio.fail_after(HANG_S):
            recovered = await place.recover(wal, await place.register(), block_bytes)
        assert recovered.entries == count
        entry_bytes = size + 41 + ENTRY_OVERHEAD_BYTES
        bound = min(3 * (block_bytes + entry_bytes), limit)
        memory = place.allocator.statistics()
        assert memory.peak_bytes <= bound
        assert wal.peak_bytes <= bound + 2 * entry_bytes, "one is judged, one is being read"
        assert memory.used_by_purpose.get("append", 0) == 0
        assert [base for base, *_ in await place.committed(place.stream_ids[0])] == list(range(count))


async def test_nothing_is_trimmed_and_all_memory_given_back_when_the_wal_has_a_hole(tmp_path: Path) -> None:
    """I10; and the error comes as it is, not in a group."""
    async with opened(tmp_path, SimulatedStore(Random(1))) as place:
        epoch = await place.create_streams(1)
        wal = FakeWal()
        fill(wal, place.stream_ids, epoch, [b"x" * 100] * 10)
        wal.lose(7)
        with pytest.raises(CorruptError, match=r"missing=\[7,8\)"):
            await place.recover(wal, await place.register(), block_bytes=1500)
        assert wal.trimmed == 0
        assert place.allocator.statistics().used_bytes == 0


async def test_a_recovery_ends_when_a_newer_life_of_the_node_took_over(tmp_path: Path) -> None:
    """I9: what it put isn't committed, and the WAL is the newer one's to trim."""
    async with opened(tmp_path, SimulatedStore(Random(1))) as place:
        epoch = await place.create_streams(1)
        wal = FakeWal()
        fill(wal, place.stream_ids, epoch, [b"x" * 100] * 10)
        older = await place.register()
        await place.register()
        with pytest.raises(FencedError):
            await place.recover(wal, older)
        assert wal.trimmed == 0
        assert place.allocator.statistics().used_bytes == 0
        assert await place.committed(place.stream_ids[0]) == []


async def test_a_recovery_beside_a_newer_life_marks_nothing_that_the_newer_one_began_with(
    tmp_path: Path,
) -> None:
    """The newer one would take its own registration, in a WAL from before it, for metadata that were lost."""
    async with opened(tmp_path, SimulatedStore(Random(1))) as place:
        await place.create_streams(1)
        wal = FakeWal()
        older = await place.register()
        newer = await place.register()
        await place.recover(wal, older)
        wal.crash()
        await place.recover(wal, newer)


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**16),
    ends=st.lists(st.integers(1, 250), max_size=5),
    count=st.integers(1, 40),
    block_bytes=st.sampled_from([1, 1500, 4000, 2**20]),
    fault_rate=st.sampled_from([0.0, 0.1, 0.3]),
)
async def test_a_recovery_that_ends_anywhere_is_begun_again_and_loses_nothing_and_commits_nothing_twice(
    tmp_path: Path, seed: int, ends: list[int], count: int, block_bytes: int, fault_rate: float
) -> None:
    random = Random(seed)
    store = SimulatedStore(random)
    wal = SimulatedWal(random, 10**9)
    wal.crash()
    payloads = [b"%d " % i + b"." * random.randrange(300) for i in range(count)]
    async with opened(tmp_path, store) as place:
        epoch = await place.create_streams(3)
        fill(wal, place.stream_ids, epoch, payloads)
        stream_ids = place.stream_ids

    async def life(turns: int | None, fault_rate: float = 0.0) -> None:
        """A process that recovers; it ends after so many turns of the loop, if it lives that long."""
        store.fault_rate = 0.0

        async def end(scope: anyio.CancelScope) -> None:
            for _ in range(turns or 0):
                await anyio.lowlevel.checkpoint()
            scope.cancel()

        async with opened(tmp_path, store) as place:
            store.fault_rate = fault_rate
            async with anyio.create_task_group() as tasks:
                if turns is not None:
                    tasks.start_soon(end, tasks.cancel_scope)
                await place.recover(wal, await place.register(), block_bytes)
                tasks.cancel_scope.cancel()
            assert place.allocator.statistics().used_bytes == 0

    with anyio.fail_after(HANG_S):
        for turns in ends:
            wal.automatic = True
            await life(turns, fault_rate)
            store.land(0.3)  # puts of the dead may land late
            wal.crash()
        wal.automatic = True
        await life(None)
        async with opened(tmp_path, store) as place:
            reached = place.metadata.image.index
            for i, stream_id in enumerate(stream_ids):
                assert await place.committed(stream_id) == [
                    (n, n + 1, payload) for n, payload in enumerate(payloads[i::3])
                ]
    assert wal.left == []
    kept = [entry for entry in wal.durable if entry.next_position > wal.trimmed]
    assert all(entry.data[1:9] == MARK_STREAM.to_bytes(8, "big") for entry in kept), "only a mark stays"
    assert decode_header(kept[-1].data, 0).next_offset == reached, "and says how far metadata got"
