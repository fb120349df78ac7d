"""What is particular to this block cache: which block goes first."""

from __future__ import annotations

from collections.abc import Sequence

import anyio

from penstock.spi.block_cache import BlockRef
from penstock_conformance.reference import PlainBlockCache


def test_the_least_recently_used_goes_first() -> None:
    loaded: list[int] = []

    async def load(blocks: Sequence[BlockRef]) -> Sequence[bytes]:
        loaded.extend(block.object_id for block in blocks)
        return [bytes(block.size) for block in blocks]

    async def main() -> None:
        cache = PlainBlockCache(limit=20, allocator=None)
        first, second, third = (BlockRef(number, 0, 10) for number in (1, 2, 3))
        for block in (first, second, first, third):  # the third drives out the second
            await cache.get([block], load)
        await cache.get([first], load)
        assert loaded == [1, 2, 3]
        await cache.get([second], load)
        assert loaded == [1, 2, 3, 2]
        cache.close()

    anyio.run(main)
