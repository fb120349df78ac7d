"""wal_block on block devices, as the suite wants it: each data directory begins with an empty log.

``PENSTOCK_TEST_DEVICES`` names two devices, with a colon between them. A clause has one, the directory that it may
make within its own has the other.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import penstock_wal_block
from penstock_wal_block import Settings

from penstock.hookspecs import hookimpl
from penstock.spi import Services
from penstock.spi.wal import WalSpec, WriteAheadLog

_HEADER_AREA_BYTES = 8192


@asynccontextmanager
async def _open(settings: Settings, services: Services) -> AsyncIterator[WriteAheadLog]:
    path = services.data_dir / settings.path
    if not path.exists():
        devices = os.environ["PENSTOCK_TEST_DEVICES"].split(":")
        device = devices[services.data_dir.name == "elsewhere"]
        with open(device, "r+b") as file:  # noqa: ASYNC230 - a test's
            file.write(bytes(_HEADER_AREA_BYTES))
        path.parent.mkdir()
        path.symlink_to(device)
    async with penstock_wal_block.penstock_register_wal().open(settings, services) as wal:
        yield wal


@hookimpl
def penstock_register_wal() -> WalSpec[Settings]:
    return dataclasses.replace(penstock_wal_block.penstock_register_wal(), name="wal_on_device", open=_open)
