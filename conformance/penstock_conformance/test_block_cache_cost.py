"""Clauses of ``penstock.spi.block_cache`` about continuity: what a long use leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from penstock.errors import UnavailableError
from penstock.spi.block_cache import BlockRef
from penstock.spi.plugin import Buffer
from penstock_conformance._clause import clause
from penstock_conformance._env import Env, raises
from penstock_conformance._growth import grows_nothing, kept_bytes

KIND = "block_cache"

#: Far more readers than are at work at any time: beyond them a cache knows none that it didn't know before.
_READERS = 20_000
#: What a reader takes at least, if it is kept: a place in a table and a pair of numbers.
_READER_BYTES = 40


#: Blocks of an object that is read once, and is destroyed then; such objects; a number that is kept of each block.
_BLOCKS = 40
_OBJECTS = 60
_BLOCK_BYTES = 24


async def _load(blocks: Sequence[BlockRef]) -> Sequence[Buffer]:
    return [bytes(block.size) for block in blocks]


async def _fail(_: Sequence[BlockRef]) -> Sequence[Buffer]:
    raise UnavailableError("the suite lets the load fail")


@clause(level=5)
async def test_long_use_grows_nothing(env: Env) -> None:
    """Of loads that fail, reads that are given up, and objects that are destroyed, also half-way, nothing stays."""
    async with env.open() as cache:

        async def cycle(number: int) -> None:
            await cache.get([_block(number, place) for place in range(3)], _load)
            with raises(UnavailableError):
                await cache.get([_block(number, 3)], _fail)
            goes_on = anyio.Event()

            async def load_slowly(blocks: Sequence[BlockRef]) -> Sequence[Buffer]:
                await goes_on.wait()
                return await _load(blocks)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(cache.get, [_block(number, 4)], load_slowly)
                given_up = anyio.CancelScope()
                tasks.start_soon(_get_in, given_up, cache, _block(number, 5), load_slowly)
                for _ in range(5):
                    await checkpoint()
                given_up.cancel()
                cache.forget_object(number)
                goes_on.set()
            for _ in range(5):
                await checkpoint()

        await grows_nothing(cycle, lambda: cache.statistics().blocks)


def _block(object_id: int, number: int) -> BlockRef:
    return BlockRef(object_id, number * 1000, 1000)


async def _get_in(scope: anyio.CancelScope, cache: Any, block: BlockRef, load: Any) -> None:
    with scope:
        await cache.get([block], load)


@clause(level=5)
async def test_readers_that_came_once_are_forgotten(env: Env) -> None:
    """What is remembered of readers is bounded, however many streams were ever read."""
    async with env.open() as cache:
        for stream_id in range(_READERS):
            cache.readahead_bytes(stream_id, 0, 100)
        async with kept_bytes() as grown:
            for stream_id in range(_READERS, 2 * _READERS):
                cache.readahead_bytes(stream_id, 0, 100)
            kept = grown()
    assert kept < _READERS * _READER_BYTES, f"{_READERS} further readers take {kept} bytes"


@clause(level=5)
async def test_blocks_that_are_gone_are_forgotten(env: Env) -> None:
    """Of blocks that are cached no more nothing is remembered, however many there were."""
    async with env.open() as cache:

        async def come_and_go(first: int) -> None:
            for number in range(first, first + _OBJECTS):
                await cache.get([BlockRef(number, place, 10) for place in range(_BLOCKS)], _load)
                cache.forget_object(number)

        await come_and_go(0)
        async with kept_bytes() as grown:
            await come_and_go(_OBJECTS)
            kept = grown()
    count = _OBJECTS * _BLOCKS
    assert kept < count * _BLOCK_BYTES, f"{count} blocks came and went, and {kept} bytes stay"
