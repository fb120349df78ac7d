"""A write-ahead log on a local file or block device: one group commit per fdatasync, fenced by its header."""

from __future__ import annotations

__all__ = ("BlockWal", "Settings", "inspect_wal", "penstock_register_wal")

from penstock.hookspecs import hookimpl
from penstock.spi.wal import WalSpec
from penstock_wal_block._inspect import describe_wal, identify_wal, inspect_wal, read_wal
from penstock_wal_block._prepare import format_wal
from penstock_wal_block._settings import Settings
from penstock_wal_block._sizes import plugin_sizes
from penstock_wal_block._wal import CAPABILITIES, BlockWal, open_wal


@hookimpl
def penstock_register_wal() -> WalSpec[Settings]:
    """Register ``wal_block``."""
    return WalSpec(
        name="wal_block",
        summary="one file or block device per broker; sub-millisecond, durable on this host",
        settings=Settings,
        capabilities=CAPABILITIES,
        open=open_wal,
        read=read_wal,
        describe=describe_wal,
        identify=identify_wal,
        format=format_wal,
        sizes=plugin_sizes,
    )
