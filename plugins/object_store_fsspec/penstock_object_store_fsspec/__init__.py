"""Object store on local files, on memory, or on any cloud that fsspec reaches (S3, GCS, Azure)."""

from __future__ import annotations

__all__ = ("Settings", "penstock_register_object_store")

from penstock.hookspecs import hookimpl
from penstock.spi.object_store import ObjectStoreSpec
from penstock_object_store_fsspec._open import open_store
from penstock_object_store_fsspec._settings import LOCAL_CAPABILITIES, Settings


@hookimpl
def penstock_register_object_store() -> ObjectStoreSpec[Settings]:
    """Register ``object_store_fsspec``; its claims here are those of the default URL."""
    return ObjectStoreSpec(
        name="object_store_fsspec",
        summary="local files, memory, or a cloud bucket, by URL",
        settings=Settings,
        capabilities=LOCAL_CAPABILITIES,
        open=open_store,
    )
