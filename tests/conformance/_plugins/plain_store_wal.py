"""The plain log of numbered objects that mutants are made of: if it is wrong, each is caught whatever it does."""

from __future__ import annotations

from dataclasses import replace

from penstock.hookspecs import hookimpl
from penstock.spi import Settings
from penstock.spi.wal import WalSpec
from penstock_conformance.mutants._wal_in_store import StoreWal, open_store_wal


class Nothing(Settings):
    """Nothing to set."""


class PlainStoreWal(StoreWal):
    """Without a defect; any host can take it over."""

    capabilities = replace(StoreWal.capabilities, shareable=True)


@hookimpl
def penstock_register_wal() -> WalSpec[Nothing]:
    """Register it."""
    return WalSpec(
        name="plain_store_wal",
        summary="A write-ahead log of numbered objects.",
        settings=Nothing,
        capabilities=PlainStoreWal.capabilities,
        open=lambda _, services: open_store_wal(PlainStoreWal, services),
        requires=frozenset({"put_if_absent", "ordered_listing"}),
        key_prefixes=lambda _: ("wal/",),
    )
