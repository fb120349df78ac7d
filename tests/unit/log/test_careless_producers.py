"""Headers that say what isn't so: refused where records are out of order, put right where only times are wrong."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from tests.patience import HANG_S
from tests.unit.log.test_partition import NOW_MS, append, append_any, codes, open_logs, read
from tests.unit.stream.harness import World
from tests.unit.wire.batches import GOOD, with_body, with_header
from tests.unit.wire.test_validation import MALFORMED

from penstock.errors import NotNowError
from penstock.log.errors import KafkaError
from penstock.log.partition import Partition
from penstock.stream.entry import untimed
from penstock.wire.compression import CODEC_NAMES, compress
from penstock.wire.error_codes import ErrorCode
from penstock.wire.record_batch import seal_batch
from penstock.wire.records import HEADER_BYTES, build_batch, find_timestamp, read_header

pytestmark = pytest.mark.anyio

CODECS = [pytest.param(codec, id=name) for codec, name in enumerate(CODEC_NAMES)]
RETENTION_MS = 60_000
#: More than is looked at on the event loop, whichever the codec.
LARGE = 1_100_000


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, now_ms=NOW_MS)


def large(count: int, codec: int, times: tuple[int, ...]) -> bytearray:
    """A batch that is looked at in a thread, though it may be small on the wire."""
    value = b"text that packs well, " * (LARGE // 22)
    return build_batch(
        [(b"k", value if at == 0 else b"v", (), time) for at, time in zip(range(count), times, strict=True)],
        codec=codec,
    )


def used(partition: Partition) -> int:
    return partition._engine.allocator.statistics().used_by_purpose.get("inflate", 0)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("body", "count"), MALFORMED)
async def test_a_malformed_batch_is_refused_and_consumers_get_past(
    world: World, body: bytes, count: int, codec: int
) -> None:
    async with open_logs(world) as logs:
        partition = await logs.create()
        assert codes(append(partition, with_body(body, count, codec))) == [ErrorCode.INVALID_RECORD]
        assert codes(append(partition, build_batch([(None, b"next", (), NOW_MS)], codec=codec))) == [0]
        assert await read(partition) == [(0, b"next")]


@pytest.mark.parametrize("codec", CODECS)
async def test_a_large_one_is_refused_from_a_thread_and_leaves_no_charge(world: World, codec: int) -> None:
    good = build_batch([(b"k", b"v" * LARGE, (), NOW_MS)])[HEADER_BYTES:]
    lying = with_body(good + b"\x00", 1, codec, base_timestamp=NOW_MS)
    async with open_logs(world) as logs:
        partition = await logs.create(max_message_bytes="2000000")
        with pytest.raises(NotNowError):
            append(partition, lying)
        (outcome,) = await append_any(partition, lying)
        assert outcome.error_code == ErrorCode.INVALID_RECORD
        assert "left_bytes=1" in str(outcome.error_message)
        assert used(partition) == 0
        assert codes(await append_any(partition, with_body(good, 1, codec, base_timestamp=NOW_MS))) == [0]
        assert used(partition) == 0


@pytest.mark.parametrize("codec", CODECS)
async def test_records_out_of_range_are_named_also_from_a_thread(world: World, codec: int) -> None:
    """KIP-467."""
    times = (NOW_MS, NOW_MS + 7_200_000, NOW_MS, NOW_MS + 7_200_001)
    batch = with_header(large(4, codec, times), max_timestamp=NOW_MS)
    async with open_logs(world) as logs:
        partition = await logs.create(max_message_bytes="2000000")
        (outcome,) = await append_any(partition, batch)
        assert outcome.error_code == ErrorCode.INVALID_TIMESTAMP
        assert [index for index, _ in outcome.record_errors] == [1, 3]
        await logs.manager.alter_configs(
            "events", {"max.message.bytes": "2000000", "message.timestamp.type": "LogAppendTime"}
        )
        assert codes(await append_any(partition, batch)) == [0]


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("target", ["producer", "zstd"])
@pytest.mark.parametrize(
    ("times", "claimed"),
    [
        pytest.param((NOW_MS - 5, NOW_MS), 0, id="kafkajs_without_timestamps"),
        pytest.param((NOW_MS - 5, NOW_MS), -1, id="old_sarama"),
        pytest.param((NOW_MS - 5, NOW_MS), NOW_MS - 10 * RETENTION_MS, id="a_clock_that_was_wrong"),
    ],
)
async def test_fresh_records_are_kept_and_found_whatever_their_header_says(
    world: World, times: tuple[int, ...], claimed: int, target: str, codec: int, size: str
) -> None:
    whole = build_batch([(None, b"v", (), time) for time in times], codec=codec)
    if size == "large":
        whole = large(2, codec, times)
    async with open_logs(world) as logs:
        partition = await logs.create(
            max_message_bytes="2000000", compression_type=target, retention_ms=str(RETENTION_MS)
        )
        assert codes(await append_any(partition, with_header(whole, max_timestamp=claimed))) == [0]
        await logs.manager._engine.flush()
        assert partition.expired_offset(NOW_MS) == 0
        assert partition.expired_offset(NOW_MS + RETENTION_MS + 1) == 2
        assert await partition.offset_for_timestamp(NOW_MS) == (1, NOW_MS, 0)
        assert await partition.max_timestamp_offset() == (1, NOW_MS, 0)


@pytest.mark.parametrize("codec", CODECS)
async def test_records_without_timestamp_live_from_their_append_on(world: World, codec: int) -> None:
    """Librdkafka gives them base timestamp -1 and a greatest one of 0, which is older than any retention."""
    batch = with_header(build_batch([(None, b"v", (), -1)] * 2, codec=codec), max_timestamp=0)
    async with open_logs(world) as logs:
        partition = await logs.create(retention_ms=str(RETENTION_MS))
        assert codes(append(partition, batch)) == [0]
        await logs.manager._engine.flush()
        (stream_range,) = list(partition._reads.ranges(partition.stream))
        assert stream_range[2] == NOW_MS == untimed(NOW_MS) - untimed(0)
        assert partition.expired_offset(NOW_MS) == 0
        assert partition.expired_offset(NOW_MS + RETENTION_MS + 1) == 2
        assert await partition.offset_for_timestamp(0) is None


async def test_a_trusted_producer_is_believed(world: World) -> None:
    """What topics.validate_records=header gives up."""
    async with open_logs(world, validate_full=False) as logs:
        partition = await logs.create(retention_ms=str(RETENTION_MS))
        batch = with_header(build_batch([(None, b"v", (), NOW_MS)]), max_timestamp=5_000)
        assert codes(append(partition, batch)) == [0]
        await logs.manager._engine.flush()
        assert partition.expired_offset(NOW_MS) == 1


async def test_looking_for_a_time_in_what_is_stored_malformed_is_damage_and_no_bug(world: World) -> None:
    async with open_logs(world, validate_full=False) as logs:
        partition = await logs.create()
        malformed = with_body(b"\x7e" + GOOD[1:], 1, base_timestamp=NOW_MS, max_timestamp=NOW_MS)
        assert codes(append(partition, malformed)) == [0]
        with pytest.raises(KafkaError) as caught:
            await partition.offset_for_timestamp(NOW_MS)
        assert caught.value.error_code == ErrorCode.CORRUPT_MESSAGE
        with pytest.raises(KafkaError) as caught:
            await partition.max_timestamp_offset()
        assert caught.value.error_code == ErrorCode.CORRUPT_MESSAGE


async def test_looking_for_a_time_inflates_within_the_account_and_away_from_the_loop(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = large(3, 4, (NOW_MS, NOW_MS + 1, NOW_MS + 2))
    assert len(batch) < 4096
    seen: list[int] = []
    async with open_logs(world) as logs:
        partition = await logs.create()
        assert codes(await append_any(partition, batch)) == [0]

        def watched(*given: object, **named: object) -> object:
            seen.append(used(partition))
            return find_timestamp(*given, **named)  # type: ignore[arg-type]

        monkeypatch.setattr("penstock.log.partition.find_timestamp", watched)
        assert await partition.offset_for_timestamp(NOW_MS + 1) == (1, NOW_MS + 1, 0)
        assert seen[0] == 0, "a small guess first, at once"
        assert seen[-1] >= LARGE, "then in a thread, charged"
        assert used(partition) == 0


async def test_a_stored_bomb_is_not_inflated_for_a_lookup(world: World) -> None:
    """Forty megabytes of zeros in two kilobytes, stored while headers were believed."""
    header = read_header(build_batch([(None, b"v", (), NOW_MS)], codec=4))
    bomb = seal_batch(header, compress(4, bytes(40 * 2**20)))
    async with open_logs(world, validate_full=False) as logs:
        partition = await logs.create()
        assert codes(append(partition, bomb)) == [0]
        with pytest.raises(KafkaError) as caught:
            await partition.offset_for_timestamp(NOW_MS)
        assert caught.value.error_code == ErrorCode.CORRUPT_MESSAGE
        assert partition._engine.allocator.statistics().peak_bytes <= world.limit // 2


async def test_without_room_a_check_goes_on_one_at_a_time(world: World) -> None:
    async with open_logs(world) as logs:
        partition = await logs.create()
        allocator = partition._engine.allocator
        batches = [large(1, 4, (NOW_MS,)) for _ in range(4)]
        frames = []
        for data in batches:
            frames.append(allocator.allocate_nowait(len(data), "network"))
            frames[-1].view[:] = data
        hog = allocator.charge_nowait(world.limit - allocator.statistics().used_bytes, "test")
        works = []
        for frame in frames:
            with pytest.raises(NotNowError) as due:
                append(partition, frame.view, charge=frame)
            works.append(due.value.wait)
        with anyio.fail_after(HANG_S):
            async with anyio.create_task_group() as tasks:
                for work in works:
                    tasks.start_soon(work)
        hog.release()
        for frame in frames:
            assert codes(append(partition, frame.view, charge=frame, is_prepared=True)) == [0]
        assert partition.stream.next_offset == 4
