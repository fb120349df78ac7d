"""Block cache with shared loads, a segmented LRU that scans can't wipe, and readahead."""

from __future__ import annotations

__all__ = ("LruBlockCacheSettings", "penstock_register_block_cache")

from penstock.hookspecs import hookimpl
from penstock.spi import PluginSizes, SettingSize
from penstock.spi.block_cache import BlockCacheCapabilities, BlockCacheSpec
from penstock_cache_lru._cache import LruBlockCacheSettings, open_block_cache


@hookimpl
def penstock_register_block_cache() -> BlockCacheSpec[LruBlockCacheSettings]:
    """Register the LRU block cache."""
    return BlockCacheSpec(
        name="cache_lru",
        summary="data blocks shared by all cold readers, segmented LRU, joined loads, readahead",
        settings=LruBlockCacheSettings,
        capabilities=BlockCacheCapabilities(readahead=True),
        open=open_block_cache,
        sizes=lambda settings: PluginSizes(capacity=SettingSize(settings.limit, "limit")),
    )
