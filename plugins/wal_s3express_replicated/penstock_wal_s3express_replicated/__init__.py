"""A write-ahead log in several others at once: acknowledged when all hold an entry; who counts is in metadata."""

from __future__ import annotations

__all__ = ("ReplicatedWal", "Settings", "penstock_register_wal")

from penstock.hookspecs import hookimpl
from penstock.spi.wal import WalSpec
from penstock_wal_s3express_replicated._outside import describe_wal, identify_wal, read_wal
from penstock_wal_s3express_replicated._settings import Settings
from penstock_wal_s3express_replicated._wal import CAPABILITIES, ReplicatedWal, open_wal


@hookimpl
def penstock_register_wal() -> WalSpec[Settings]:
    """Register ``wal_s3express_replicated``."""
    return WalSpec(
        name="wal_s3express_replicated",
        summary="in several WALs at once, a zonal bucket and a disk for instance; one that is left is enough",
        settings=Settings,
        capabilities=CAPABILITIES,
        open=open_wal,
        read=read_wal,
        describe=describe_wal,
        identify=identify_wal,
    )
