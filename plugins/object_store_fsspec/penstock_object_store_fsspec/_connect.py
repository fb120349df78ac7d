"""Opening a bucket: the backend that a protocol and the settings mean, and the first connection."""

from __future__ import annotations

__all__ = ("open_remote",)

import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio

from penstock.errors import ConfigError, PenstockError, PluginError, again, kept
from penstock_object_store_fsspec._options import find_filesystem
from penstock_object_store_fsspec._remote import DeniedError, RemoteBackend
from penstock_object_store_fsspec._settings import Settings

logger = logging.getLogger("penstock.store")

_CLOSE_S_MAX = 5
#: So long a start waits in silence, and between two lines.
_TELL_S = 3
_TELL_AGAIN_S = 10


@asynccontextmanager
async def open_remote(
    protocol: str, place: str, settings: Settings, clock: Callable[[], float]
) -> AsyncIterator[RemoteBackend]:
    """Open a bucket and find out whether its conditional creation is one. See ``open_store`` for what is raised."""
    bucket, _, prefix = place.partition("/")
    prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
    location = f"{protocol}://{bucket}/{prefix}"
    backend_class, filesystem = _make_filesystem(protocol, bucket, settings)
    backend = backend_class(filesystem, location, bucket, prefix, settings, clock)
    try:
        try:
            await _connect(backend)
        except DeniedError as error:
            raise ConfigError(str(error)) from error
        yield backend
    finally:
        with anyio.move_on_after(_CLOSE_S_MAX, shield=True):
            await backend.close()


async def _connect(backend: RemoteBackend) -> None:
    """Say within seconds whom a start waits for, and say it again."""
    failure: PenstockError | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_tell_who_is_waited_for, backend)
        try:
            await backend.connect()
        except PenstockError as error:
            failure = kept(error)
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise again(failure)


async def _tell_who_is_waited_for(backend: RemoteBackend) -> None:
    waited_s, wait_s = 0, _TELL_S
    while True:
        await anyio.sleep(wait_s)
        waited_s += wait_s
        logger.warning(
            "the object store doesn't answer yet, is its endpoint right, and is it running? location=%s endpoint=%s "
            "waited_s=%d last_error=%r",
            backend.location,
            backend.endpoint or "default",
            waited_s,
            backend.health.last_error.partition(": ")[0] or "none",  # its values are those above
        )
        wait_s = _TELL_AGAIN_S


def _make_filesystem(protocol: str, bucket: str, settings: Settings) -> tuple[type[RemoteBackend], Any]:
    # gcsfs would ask the bucket's type over gRPC first, which stalls for a minute against other servers.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        make, extra = find_filesystem(protocol)
    except ImportError as error:
        raise PluginError(str(error)) from error
    backend_class, options = _choose_backend(extra)
    if extra == "s3":
        backend_class = _choose_client(backend_class, bucket, settings)
    try:
        filesystem = make(
            asynchronous=True,
            skip_instance_cache=True,
            use_listings_cache=False,
            **options(settings.options),
        )
    except (TypeError, ValueError, KeyError, OSError) as error:
        raise ConfigError(
            f"the object store's options were refused, compare them with the documentation of its fsspec class: "
            f"protocol={protocol!r} keys={sorted(settings.options)} error={type(error).__name__}"
        ) from None  # the cause may show secrets
    return backend_class, filesystem


def _choose_backend(extra: str) -> tuple[type[RemoteBackend], Callable[[dict[str, Any]], dict[str, Any]]]:
    """The class for the extra, and what completes its file system's options."""
    if extra == "s3":
        from penstock_object_store_fsspec._s3 import S3Backend, lean_options

        return S3Backend, lean_options
    if extra == "gcs":
        from penstock_object_store_fsspec._gcs import GcsBackend

        return GcsBackend, dict
    from penstock_object_store_fsspec._azure import AzureBackend

    return AzureBackend, dict


def _choose_client(
    backend_class: type[RemoteBackend], bucket: str, settings: Settings
) -> type[RemoteBackend]:
    """The class whose frequent requests are made by the client of the settings."""
    if settings.client == "fsspec":
        return backend_class
    try:
        from penstock_object_store_fsspec._obstore import ObstoreBackend, unfit_option
    except ImportError as error:
        if settings.client == "auto":
            return backend_class
        raise PluginError(
            "a package for object_store.client=obstore is missing, install it with pip install 'penstock[obstore]'"
        ) from error
    unfit = unfit_option(bucket, settings.options)
    if not unfit:
        return ObstoreBackend
    if settings.client == "auto":
        return backend_class
    raise ConfigError(
        f"object_store.client=obstore can't do what is configured, leave it to auto or fsspec: needs_fsspec={unfit}"
    )
