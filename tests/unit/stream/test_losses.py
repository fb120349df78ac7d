"""Records that others lost, each way of it tried here. ``docs/conformance.md`` lists them all."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.stream.harness import Engine, World

from penstock.metadata.image import Image

pytestmark = pytest.mark.anyio

#: More records than 32 bits count.
_MANY = 2**31 + 5


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def _cold(e: Engine) -> list[tuple[int, bytes]]:
    await e.engine.flush()
    e.log_cache.evict(2**30)
    return await e.read_all()


async def test_offsets_further_apart_than_32_bits_count_are_kept_in_index_metadata_and_log(
    world: World,
) -> None:
    payloads = [b"%d" % number * 100 for number in range(6)]
    written = [(number * _MANY, payload) for number, payload in enumerate(payloads)]
    async with world.open() as e:
        for payload in payloads[:4]:
            e.append(payload, count=_MANY)
        assert await _cold(e) == written[:4]
        assert len(e.metadata.image.streams.require(e.stream.stream_id).ranges) == 1, "in one object"
        for payload in payloads[4:]:
            e.append(payload, count=_MANY)
        world.wal.automatic = False
    world.wal.crash()
    async with world.open() as e:
        assert e.stream.next_offset == 6 * _MANY
        assert await _cold(e) == written
        image = e.metadata.image
        again = Image.from_snapshot(image.to_snapshot())
        assert (
            again.streams.require(e.stream.stream_id).ranges
            == image.streams.require(e.stream.stream_id).ranges
        )
        await e.engine.trim_streams([(e.stream.stream_id, 3 * _MANY)])
        assert await e.read_all() == written[3:]


@pytest.mark.parametrize("trimmed", [False, True])
async def test_offsets_go_on_where_nothing_is_left_of_the_stream(world: World, trimmed: bool) -> None:
    """Neither an empty log nor a stream without records means that there never were any."""
    async with world.open() as e:
        for _ in range(3):
            e.append(b"x")
        await e.engine.flush()
        if trimmed:
            await e.engine.trim_streams([(e.stream.stream_id, 3)])
            await e.engine._lifecycle.sweep()
            assert await e.store.keys() == []
        assert world.wal.left == []
    world.wal.crash()
    async with world.open() as e:
        assert e.stream.next_offset == 3
        e.append(b"y")
        assert (await e.read_all())[-1] == (3, b"y")


async def test_a_reader_whose_object_is_deleted_under_it_is_told_where_the_stream_starts_now(
    world: World,
) -> None:
    """Between its look at metadata and its request: that is no damage, and nothing is to be restored."""
    async with world.open() as e:
        for number in range(3):
            e.append(b"%d" % number)
            await e.engine.flush()
        e.log_cache.evict(2**30)

        async def delete() -> None:
            e.store.before_get = None
            await e.engine.trim_streams([(e.stream.stream_id, 2)])
            await e.engine._lifecycle.sweep()
            assert len(await e.store.keys()) == 1

        e.store.before_get = delete
        assert await e.engine.reads.read(e.stream, 0, 1000) == []
        assert e.stream.start_offset == 2
        assert await e.read_all() == [(2, b"2")]
