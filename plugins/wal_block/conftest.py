"""Opens ``wal_block`` on each of its media."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from penstock_wal_block import BlockWal, Settings, penstock_register_wal
from penstock_wal_block._format import HEADER_AREA_BYTES
from tests.block_wal import MEDIA, Opener, file_of, recovered
from tests.loop_device import loop_device

from penstock.spi import Services


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Path]]:
    """A device for many tests, by its logical block; each test finds the groups of those before it."""
    made: dict[int, Path] = {}
    with ExitStack() as stack:

        def get(sector_bytes: int) -> Path:
            if sector_bytes not in made:
                directory = tmp_path_factory.mktemp("loop")
                made[sector_bytes] = stack.enter_context(loop_device(directory, 8 * 2**20, sector_bytes))
            return made[sector_bytes]

        yield get


@pytest.fixture(params=MEDIA)
def io(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    io, sector_bytes = MEDIA[request.param]
    if sector_bytes:
        path = request.getfixturevalue("devices")(sector_bytes)
        with path.open("r+b") as file:
            file.write(bytes(HEADER_AREA_BYTES))
        file_of(tmp_path).parent.mkdir()
        file_of(tmp_path).symlink_to(path)
    elif io == "direct":
        try:
            os.close(os.open(tmp_path / "probe", os.O_RDWR | os.O_CREAT | os.O_DIRECT))
        except OSError:
            pytest.skip("this file system takes no O_DIRECT")
    return io


@pytest.fixture
def open_wal(tmp_path: Path, io: str) -> Opener:
    @asynccontextmanager
    async def open_(
        epoch: int = 1, *, recover: bool = True, cluster_id: str = "c", node_id: int = 1, **settings: Any
    ) -> AsyncIterator[BlockWal]:
        values = {"capacity": "1MiB", "group_bytes_max": "64KiB", "io": io} | settings
        services = Services(
            node_id=node_id, epoch=epoch, cluster_id=cluster_id, data_dir=tmp_path, clock=lambda: 0.0
        )
        async with penstock_register_wal().open(Settings(**values), services) as wal:
            assert isinstance(wal, BlockWal)
            if recover:
                await recovered(wal)
            yield wal

    return open_
