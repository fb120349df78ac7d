"""wal_block on block devices, as the suite wants it: each data directory begins with an empty log.

``PENSTOCK_TEST_DEVICES`` names devices, with colons between them. A clause has the first, the directory that it may
make within its own has the second, and a node that isn't 1 the third, if the log is shared; then another host has the
same ones.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import penstock_wal_block
from penstock_wal_block import Settings

from penstock.files import make_directories
from penstock.hookspecs import hookimpl
from penstock.spi import Services
from penstock.spi.wal import WalSpec, WriteAheadLog

_HEADER_AREA_BYTES = 65536


@asynccontextmanager
async def _open(settings: Settings, services: Services) -> AsyncIterator[WriteAheadLog]:
    if settings.shared and services.data_dir.name == "another-host":
        services = dataclasses.replace(services, data_dir=services.data_dir.parent)
    (path,) = settings.paths_of(services.data_dir, services.node_id)
    if not path.exists():
        devices = os.environ["PENSTOCK_TEST_DEVICES"].split(":")
        number = 2 if settings.shared and services.node_id != 1 else services.data_dir.name == "elsewhere"
        with open(devices[number], "r+b") as file:  # noqa: ASYNC230 - a test's
            file.write(bytes(_HEADER_AREA_BYTES))
        make_directories(path.parent, services.access)
        path.symlink_to(devices[number])
    async with penstock_wal_block.penstock_register_wal().open(settings, services) as wal:
        yield wal


@hookimpl
def penstock_register_wal() -> WalSpec[Settings]:
    return dataclasses.replace(penstock_wal_block.penstock_register_wal(), name="wal_on_device", open=_open)
