"""A write-ahead log in an object store: numbered objects created with put-if-absent, fenced by who takes a number."""

from __future__ import annotations

__all__ = ("ObjectWal", "Settings", "penstock_register_wal")

from penstock.hookspecs import hookimpl
from penstock.spi import PluginSizes, SettingSize
from penstock.spi.wal import WalSpec
from penstock_wal_s3._outside import describe_wal, identify_wal, read_wal
from penstock_wal_s3._settings import Settings
from penstock_wal_s3._wal import CAPABILITIES, ObjectWal, open_wal


@hookimpl
def penstock_register_wal() -> WalSpec[Settings]:
    """Register ``wal_s3``."""
    return WalSpec(
        name="wal_s3",
        summary="in the object store, as durable as that is; no disk, one request of latency",
        settings=Settings,
        capabilities=CAPABILITIES,
        open=open_wal,
        key_prefixes=lambda settings: (settings.prefix,),
        requires=frozenset({"put_if_absent"}),
        read=read_wal,
        describe=describe_wal,
        identify=identify_wal,
        sizes=lambda settings: PluginSizes(entry=SettingSize(settings.entry_bytes_max, "entry_bytes_max")),
    )
