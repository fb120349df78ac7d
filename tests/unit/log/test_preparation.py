"""Topics with a codec of their own: what comes in another one is recompressed, whole, before it is appended."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import anyio
import pytest
from crc32c import crc32c
from tests.patience import HANG_S
from tests.unit.api.fakes import FakeAllocator
from tests.unit.log.test_partition import NOW_MS, append, append_any, codes, open_logs, read
from tests.unit.stream.harness import World

from penstock.errors import FullError, NotNowError
from penstock.log.partition import Partition
from penstock.log.partition_config import PartitionConfig
from penstock.log.preparation import RECOMPRESS_BYTES_MAX, Preparation, Preparer
from penstock.log.topic_config import effective_values
from penstock.spi.allocator import Allocation, Charge
from penstock.wire.compression import CODEC_GZIP, CODEC_LZ4, CODEC_NAMES, CODEC_NONE, CODEC_ZSTD, compress
from penstock.wire.error_codes import ErrorCode
from penstock.wire.record_batch import BatchError, seal_batch
from penstock.wire.records import (
    ATTRIBUTES_POS,
    CRC_POS,
    HEADER_BYTES,
    build_batch,
    read_header,
)
from penstock.wire.validation import BatchRules

pytestmark = pytest.mark.anyio

TYPES = ("uncompressed", *CODEC_NAMES[1:])
#: Text that packs about three times, as what producers send does.
LINE = b'{"order": 123456, "customer": "someone", "amount": 12.50, "currency": "EUR"}\n'
CODECS = [pytest.param(codec, id=name) for codec, name in enumerate(CODEC_NAMES)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, now_ms=NOW_MS)


def batch(value: bytes = LINE, codec: int = 0, producer: tuple[int, int, int] = (-1, -1, -1)) -> bytearray:
    producer_id, epoch, sequence = producer
    return build_batch(
        [(None, value, (), NOW_MS)],
        codec=codec,
        producer_id=producer_id,
        producer_epoch=epoch,
        base_sequence=sequence,
    )


def noise(size: int) -> bytes:
    """What no codec makes smaller."""
    return os.urandom(size)


async def stored(partition: Partition, offset: int = 0) -> bytes:
    result = await partition.read(offset, 1, read_committed=False, at_least_one=True)
    return bytes(result.records[0])


def used(partition: Partition, purpose: str) -> int:
    return partition._engine.allocator.statistics().used_by_purpose.get(purpose, 0)


def counted(partition: Partition) -> FakeAllocator:
    """An allocator of its own for what is recompressed."""
    memory = FakeAllocator()
    partition._preparer.allocator = memory  # type: ignore[assignment]
    return memory


@pytest.mark.parametrize("size", [100, 300_000], ids=["at once", "in a thread"])
@pytest.mark.parametrize("source", CODECS)
@pytest.mark.parametrize("target", TYPES)
async def test_what_is_stored_has_the_topics_codec(world: World, source: int, target: str, size: int) -> None:
    value = (LINE * (size // len(LINE) + 1))[:size]
    async with open_logs(world) as logs:
        partition = await logs.create(compression_type=target)
        data = batch(value, source, (7, 0, 0))
        sent = bytes(data)
        assert codes(await append_any(partition, data)) == [0]
        after = await stored(partition)
        header, before = read_header(after), read_header(sent)
        assert TYPES[header.codec] == target
        assert header.crc == crc32c(after[ATTRIBUTES_POS:])
        assert (header.count, header.producer_id, header.base_sequence, header.max_timestamp) == (
            before.count,
            before.producer_id,
            before.base_sequence,
            before.max_timestamp,
        )
        assert await read(partition) == [(0, value)]
        if TYPES[source] == target:
            assert after[CRC_POS:] == sent[CRC_POS:], "a batch that has the codec isn't touched"


async def test_by_default_nothing_is_recompressed(world: World) -> None:
    async with open_logs(world) as logs:
        partition = await logs.create()
        for codec in range(5):
            data = batch(LINE * 1000, codec)
            sent = bytes(data)
            assert codes(await append_any(partition, data)) == [0]
            assert (await stored(partition, codec))[CRC_POS:] == sent[CRC_POS:]


@pytest.mark.parametrize("size", [100, 300_000], ids=["at once", "in a thread"])
async def test_a_duplicate_is_known_by_its_sequence_and_not_recompressed(world: World, size: int) -> None:
    async with open_logs(world) as logs:
        partition = await logs.create(compression_type="gzip")
        first = await append_any(partition, batch((LINE * size)[:size], producer=(7, 0, 0)))
        again = append(partition, batch((LINE * size)[:size], producer=(7, 0, 0)))
        assert [(o[0].error_code, o[0].base_offset) for o in (first, again)] == [(0, 0), (0, 0)]
        assert codes(append(partition, batch(producer=(7, 0, 5)))) == [ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER]
        assert partition.stream.next_offset == 1


async def test_the_append_time_goes_into_what_is_stored(world: World) -> None:
    async with open_logs(world) as logs:
        partition = await logs.create(compression_type="lz4", message_timestamp_type="LogAppendTime")
        for number, size in enumerate((1, 4000)):
            outcomes = await append_any(partition, batch(LINE * size))
            assert [(o.error_code, o.log_append_time_ms) for o in outcomes] == [(0, NOW_MS)]
            after = await stored(partition, number)
            header = read_header(after)
            assert (header.codec, header.timestamp_type, header.max_timestamp) == (
                CODEC_LZ4,
                "LogAppendTime",
                NOW_MS,
            )
            assert header.crc == crc32c(after[ATTRIBUTES_POS:])


async def test_the_checksum_of_what_came_is_looked_at_first(world: World) -> None:
    async with open_logs(world) as logs:
        partition = await logs.create(compression_type="gzip")
        damaged = batch(codec=CODEC_ZSTD)
        damaged[-1] ^= 1
        assert codes(append(partition, damaged)) == [ErrorCode.CORRUPT_MESSAGE]


@pytest.mark.parametrize("topic", ["producer", "gzip"])
async def test_the_checksum_of_a_long_batch_is_looked_at_in_the_thread(world: World, topic: str) -> None:
    """The event loop would be held up by it, and is refused what it was refused before."""
    async with open_logs(world) as logs:
        partition = await logs.create(compression_type=topic)
        damaged = batch(noise(200_000), CODEC_LZ4)
        damaged[-1] ^= 1
        with pytest.raises(NotNowError) as due:
            append(partition, damaged)
        with pytest.raises(BatchError, match="checksum mismatch") as caught:
            await due.value.wait()
        assert caught.value.error_code == ErrorCode.CORRUPT_MESSAGE
        assert partition.stream.next_offset == 0
        assert used(partition, "append") == used(partition, "inflate") == 0


async def test_a_damaged_copy_of_a_long_batch_is_no_duplicate(world: World) -> None:
    async with open_logs(world) as logs:
        partition = await logs.create()
        long = batch(noise(200_000), CODEC_LZ4, producer=(7, 0, 0))
        damaged = bytearray(long)
        damaged[-1] ^= 1
        assert [o.base_offset for o in await append_any(partition, bytearray(long))] == [0]
        assert [(o.error_code, o.base_offset) for o in append(partition, bytearray(long))] == [(0, 0)]
        assert codes(append(partition, damaged)) == [ErrorCode.CORRUPT_MESSAGE]


@pytest.mark.parametrize("size", [200, 50_000], ids=["at once", "in a thread"])
@pytest.mark.parametrize("source", CODECS[1:])
async def test_records_that_do_not_inflate_are_refused(world: World, source: int, size: int) -> None:
    data = seal_batch(read_header(batch(codec=source)), b"\xff" * size)
    async with open_logs(world) as logs:
        partition = await logs.create(compression_type="lz4" if source != CODEC_LZ4 else "gzip")
        try:
            assert codes(append(partition, data)) == [ErrorCode.INVALID_RECORD]
            assert size < RECOMPRESS_BYTES_MAX
        except NotNowError as due:
            with pytest.raises(Exception, match="can't be inflated") as caught:
                await due.wait()
            assert getattr(caught.value, "error_code", None) == ErrorCode.INVALID_RECORD
        assert partition.stream.next_offset == 0
        assert used(partition, "append") == used(partition, "inflate") == 0


async def test_the_limit_of_a_message_holds_for_what_came_and_for_what_is_stored(world: World) -> None:
    async with open_logs(world) as logs:
        partition = await logs.create(compression_type="uncompressed", max_message_bytes="1000")
        assert codes(append(partition, batch(LINE * 4, CODEC_GZIP))) == [0]
        with pytest.raises(NotNowError) as due:
            append(partition, batch(LINE * 100, CODEC_GZIP))
        with pytest.raises(Exception, match="inflates beyond") as caught:
            await due.value.wait()
        assert getattr(caught.value, "error_code", None) == ErrorCode.MESSAGE_TOO_LARGE

        await logs.manager.alter_configs("events", {"compression.type": "gzip", "max.message.bytes": "1000"})
        assert codes(append(partition, batch(LINE * 100))) == [ErrorCode.MESSAGE_TOO_LARGE], "as it came"
        value = noise(1000 - HEADER_BYTES - 20)
        assert len(batch(value)) <= 1000
        with pytest.raises(NotNowError) as due:
            append(partition, batch(value))
        with pytest.raises(Exception, match="over the topic's") as caught:
            await due.value.wait()
        assert getattr(caught.value, "error_code", None) == ErrorCode.MESSAGE_TOO_LARGE
        assert partition.stream.next_offset == 1


async def test_a_bomb_takes_no_more_than_its_bound(world: World) -> None:
    """Forty megabytes of zeros in two kilobytes; a quarter of the memory is sixteen."""
    bomb = seal_batch(read_header(batch(codec=CODEC_ZSTD)), compress(CODEC_ZSTD, bytes(40 * 2**20)))
    assert len(bomb) < 4096
    async with open_logs(world) as logs:
        partition = await logs.create(compression_type="gzip")
        with pytest.raises(NotNowError) as due:
            append(partition, bomb)
        with pytest.raises(Exception, match=f"max_bytes={world.limit // 4}") as caught:
            await due.value.wait()
        assert getattr(caught.value, "error_code", None) == ErrorCode.MESSAGE_TOO_LARGE
        assert partition._engine.allocator.statistics().peak_bytes <= world.limit // 2
        assert used(partition, "inflate") == 0


async def test_zstd_is_the_brokers_choice_whatever_the_client_speaks(world: World) -> None:
    """KIP-110 is about what clients send."""
    async with open_logs(world) as logs:
        partition = await logs.create(compression_type="zstd")
        assert codes(append(partition, batch(), version=3)) == [0]
        assert codes(append(partition, batch(codec=CODEC_ZSTD), version=3)) == [
            ErrorCode.UNSUPPORTED_COMPRESSION_TYPE
        ]


async def test_the_full_check_looks_at_what_is_recompressed(world: World) -> None:
    lying = build_batch([(None, b"one", (), NOW_MS), (None, b"two", (), NOW_MS)])
    lying[HEADER_BYTES + 3] ^= 0x7F  # the first record's offset delta
    struct.pack_into(">I", lying, CRC_POS, crc32c(bytes(lying[ATTRIBUTES_POS:])))
    async with open_logs(world, validate_full=True) as logs:
        partition = await logs.create(compression_type="gzip")
        memory = counted(partition)
        assert codes(append(partition, lying)) == [ErrorCode.INVALID_RECORD]
        assert memory.used == 0
        assert codes(append(partition, batch())) == [0]


async def test_memory_of_the_result_is_the_allocators_and_a_full_log_takes_none(world: World) -> None:
    async with open_logs(world) as logs:
        partition = await logs.create(compression_type="gzip")
        memory = counted(partition)
        world.wal.full = True
        with pytest.raises(FullError):
            append(partition, batch())
        assert memory.used == 0
        world.wal.full = False
        assert codes(append(partition, batch())) == [0]
        assert memory.used == len(await stored(partition))


async def test_without_room_the_result_lies_where_the_original_was(world: World) -> None:
    """Whoever has memory never waits for memory, so that many such can't wait for each other."""
    async with open_logs(world) as logs:
        partition = await logs.create(compression_type="gzip")
        allocator = partition._engine.allocator
        data = batch(LINE * 1000)
        frame = allocator.allocate_nowait(len(data), "network")
        frame.view[:] = data
        left = world.limit - allocator.statistics().used_bytes
        hog = allocator.charge_nowait(left, "test")
        with pytest.raises(NotNowError) as due:
            append(partition, frame.view, charge=frame)
        with anyio.fail_after(HANG_S):
            view, own = await due.value.wait()
        assert own is None
        assert len(view) < len(data)
        assert read_header(view).codec == CODEC_GZIP
        outcomes = append(partition, view, charge=frame, is_prepared=True)
        hog.release()
        assert codes(outcomes) == [0]
        assert await read(partition) == [(0, LINE * 1000)]


async def test_many_at_once_take_turns_without_room(world: World) -> None:
    async with open_logs(world) as logs:
        partition = await logs.create()
        allocator = partition._engine.allocator
        preparer = Preparer(allocator, threads=3)
        hog = allocator.charge_nowait(world.limit - allocator.statistics().used_bytes, "test")
        batches = [batch(LINE * 2000) for _ in range(6)]
        found: list[tuple[memoryview, Allocation | None]] = []

        async def run(data: bytearray) -> None:
            view, rules = memoryview(data), BatchRules(max_message_bytes=2**20)
            work = Preparation(preparer, view, read_header(view), rules, NOW_MS, CODEC_ZSTD, 1)
            found.append(await work.run())

        with anyio.fail_after(HANG_S):
            async with anyio.create_task_group() as tasks:
                for data in batches:
                    tasks.start_soon(run, data)
        hog.release()
        assert [own for _, own in found] == [None] * 6
        assert {read_header(view).codec for view, _ in found} == {CODEC_ZSTD}


async def test_those_that_come_out_larger_go_on_without_room_one_at_a_time(world: World) -> None:
    """Those that wait for memory have the turns that others wait for, who have all memory."""
    async with open_logs(world) as logs:
        partition = await logs.create()
        allocator = partition._engine.allocator
        limit = world.limit
        preparer = Preparer(allocator, threads=2)
        batches = [batch(LINE * 2000, CODEC_ZSTD) for _ in range(5)]
        frames = [allocator.allocate_nowait(len(data), "network") for data in batches]
        hog: Charge = allocator.charge_nowait(limit - allocator.statistics().used_bytes, "test")
        send, found = anyio.create_memory_object_stream[tuple[memoryview, Allocation | None]](5)

        async def run(frame: Allocation, data: bytearray) -> None:
            frame.view[:] = data
            rules = BatchRules(max_message_bytes=2**20)
            header = read_header(frame.view)
            work = Preparation(preparer, frame.view, header, rules, NOW_MS, CODEC_NONE)
            await send.send(await work.run())

        with anyio.fail_after(HANG_S):
            async with anyio.create_task_group() as tasks, found:
                for frame, data in zip(frames, batches, strict=True):
                    tasks.start_soon(run, frame, data)
                for frame in frames[:4]:
                    view, own = await found.receive()
                    assert own is not None
                    assert LINE * 2000 in bytes(view)
                    assert allocator.statistics().used_bytes <= limit + len(view)
                    await anyio.wait_all_tasks_blocked()
                    assert not found.statistics().current_buffer_used, "one at a time"
                    own.release()
                    hog.release()
                    frame.release()
                    hog = allocator.charge_anyway(limit - allocator.statistics().used_bytes, "test")
                view, own = await found.receive()
                assert own is not None
                own.release()
        frames[4].release()
        hog.release()
        assert allocator.statistics().used_bytes <= limit // 2
        send.close()


async def test_who_waits_until_a_batch_beyond_the_limit_is_gone_takes_what_room_there_is(
    world: World,
) -> None:
    async with open_logs(world) as logs:
        partition = await logs.create()
        allocator = partition._engine.allocator
        preparer = Preparer(allocator, threads=2)
        hog = allocator.charge_nowait(world.limit - allocator.statistics().used_bytes, "test")
        beyond = await preparer.place(bytearray(b"first"))
        places: list[Allocation] = []

        async def place() -> None:
            places.append(await preparer.place(bytearray(b"second")))

        with anyio.fail_after(HANG_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(place)
                await anyio.wait_all_tasks_blocked()
                assert not places
                hog.release()
        assert [bytes(one.view) for one in (beyond, *places)] == [b"first", b"second"]
        for one in (beyond, *places):
            one.release()


@pytest.mark.parametrize(
    ("configs", "codec", "level"),
    [
        ({}, None, None),
        ({"compression.type": "uncompressed"}, CODEC_NONE, None),
        ({"compression.type": "gzip"}, CODEC_GZIP, -1),
        ({"compression.type": "gzip", "compression.gzip.level": "1"}, CODEC_GZIP, 1),
        ({"compression.type": "snappy"}, 2, None),
        ({"compression.type": "lz4"}, CODEC_LZ4, 0),
        ({"compression.type": "lz4", "compression.lz4.level": "17"}, CODEC_LZ4, 17),
        ({"compression.type": "zstd"}, CODEC_ZSTD, 3),
        ({"compression.type": "zstd", "compression.zstd.level": "-131072"}, CODEC_ZSTD, -131072),
    ],
)
def test_codec_and_level_are_read_from_the_configs(
    configs: dict[str, str], codec: int | None, level: int | None
) -> None:
    parsed = PartitionConfig.parse(effective_values(configs, {}), validate_full=False)
    assert (parsed.codec, parsed.codec_level) == (codec, level)
    if parsed.codec is not None:
        data = batch(LINE * 50, codec=CODEC_GZIP if codec == CODEC_NONE else CODEC_NONE)
        assert compress(parsed.codec, bytes(data), parsed.codec_level)


async def test_levels_that_take_long_are_never_done_at_once(world: World) -> None:
    async with open_logs(world) as logs:
        partition = await logs.create(compression_type="zstd", compression_zstd_level="9")
        assert codes(append(partition, batch())) == [0]
        await logs.manager.alter_configs(
            "events", {"compression.type": "zstd", "compression.zstd.level": "19"}
        )
        with pytest.raises(NotNowError):
            append(partition, batch())
        assert codes(await append_any(partition, batch())) == [0]


async def test_levels_act(world: World) -> None:
    value = b"".join(b'{"id": %d, "name": "user %d"}' % (i * 7919 % 10007, i % 97) for i in range(3000))
    sizes = {}
    async with open_logs(world) as logs:
        for level in ("1", "9"):
            name = f"level-{level}"
            partition = await logs.create(name, compression_type="gzip", compression_gzip_level=level)
            assert codes(await append_any(partition, batch(value))) == [0]
            sizes[level] = len(await stored(partition))
    assert sizes["9"] < sizes["1"]
