"""Metadata log in the object store: numbered entries created with put-if-absent, and snapshots."""

from __future__ import annotations

__all__ = ("Settings", "penstock_register_metadata_log")

from penstock.hookspecs import hookimpl
from penstock.spi import PluginSizes, SettingSize
from penstock.spi.metadata_log import MetadataLogCapabilities, MetadataLogSpec
from penstock_metadata_object._log import open_log
from penstock_metadata_object._settings import Settings


@hookimpl
def penstock_register_metadata_log() -> MetadataLogSpec[Settings]:
    """Register ``metadata_object``."""
    return MetadataLogSpec(
        name="metadata_object",
        summary="numbered entries and snapshots in the object store",
        settings=Settings,
        capabilities=MetadataLogCapabilities(),
        open=open_log,
        sizes=lambda settings: PluginSizes(entry=SettingSize(settings.entry_bytes_max, "entry_bytes_max")),
        key_prefixes=lambda settings: (settings.prefix,),
        requires=frozenset({"put_if_absent", "ordered_listing"}),
    )
