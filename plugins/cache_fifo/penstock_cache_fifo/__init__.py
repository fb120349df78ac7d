"""Log cache that keeps blocks in the order of the WAL and evicts the oldest uploaded one first."""

from __future__ import annotations

__all__ = ("FifoLogCacheSettings", "penstock_register_log_cache")

from penstock.hookspecs import hookimpl
from penstock.spi.log_cache import LogCacheCapabilities, LogCacheSpec
from penstock_cache_fifo._cache import FifoLogCacheSettings, open_log_cache


@hookimpl
def penstock_register_log_cache() -> LogCacheSpec[FifoLogCacheSettings]:
    """Register the FIFO log cache."""
    return LogCacheSpec(
        name="cache_fifo",
        summary="newest data of all streams in blocks, evicted oldest first once uploaded",
        settings=FifoLogCacheSettings,
        capabilities=LogCacheCapabilities(),
        open=open_log_cache,
    )
