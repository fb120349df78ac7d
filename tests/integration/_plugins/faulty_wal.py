"""wal_block on a disk that fails on command: while the control file says ``sync``, no sync succeeds (EIO)."""

from __future__ import annotations

__all__ = ("penstock_register_wal",)

import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from unittest.mock import patch

import penstock_wal_block
from penstock_wal_block._device import FileDevice

from penstock.hookspecs import hookimpl
from penstock.spi import Services
from penstock.spi.wal import WalSpec, WriteAheadLog

_SPEC = penstock_wal_block.penstock_register_wal()


@asynccontextmanager
async def _open(settings: penstock_wal_block.Settings, services: Services) -> AsyncIterator[WriteAheadLog]:
    control = services.data_dir / "wal.control"
    sync = FileDevice.sync

    def faulty(self: FileDevice) -> None:
        if control.exists() and control.read_text(encoding="utf-8") == "sync":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(self)

    with patch.object(FileDevice, "sync", faulty):
        async with _SPEC.open(settings, services) as wal:
            yield wal


@hookimpl
def penstock_register_wal() -> WalSpec[penstock_wal_block.Settings]:
    """Register ``faulty_wal``."""
    return replace(_SPEC, name="faulty_wal", summary="wal_block on a disk that fails on command", open=_open)
