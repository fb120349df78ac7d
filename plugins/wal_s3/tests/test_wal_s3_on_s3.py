"""wal_s3 on a real S3 server: more objects than a listing has on a page, and owners that race for the same slots."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from penstock_object_store_fsspec import Settings as StoreSettings
from penstock_object_store_fsspec import penstock_register_object_store
from penstock_wal_s3 import ObjectWal, Settings, _wal, penstock_register_wal
from tests.patience import HANG_S
from tests.s3_server import S3Server, serving_s3
from tests.wal_bucket import bodies, recovered

from penstock.errors import FencedError
from penstock.spi import Services

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

#: A page of ListObjectsV2 has 1000 keys, and a request of DeleteObjects takes as many.
PAGE = 1000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    pytest.importorskip("s3fs", reason="needs pip install 'penstock[s3]'")
    with serving_s3(tmp_path_factory.mktemp("s3")) as running:
        yield running


@asynccontextmanager
async def opened(server: S3Server, bucket: str, epoch: int, **settings: Any) -> AsyncIterator[ObjectWal]:
    """The log in the bucket, on connections of its own."""
    options = {
        "endpoint_url": server.endpoint_url,
        "key": server.access_key,
        "secret": server.secret_key,
        "client_kwargs": {"region_name": server.region},
    }

    def services(store: Any = None) -> Services:
        return Services(
            node_id=1,
            epoch=epoch,
            cluster_id="test",
            data_dir=Path("/nowhere"),
            object_store=store,
            clock=time.monotonic,
        )

    store_settings = StoreSettings(url=f"s3://{bucket}/prefix", options=options)
    store_opened: Any = penstock_register_object_store().open(store_settings, services())
    async with store_opened as store:
        wal_opened: Any = penstock_register_wal().open(Settings(**settings), services(store))
        async with wal_opened as wal:
            yield wal


async def test_a_log_of_more_objects_than_a_page_of_the_listing_has(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_wal, "_NOTE_TIMEOUT_S", HANG_S)  # the end deletes all, however busy the machine is
    bucket = server.make_bucket()
    payloads = bodies(PAGE + 100)
    # an object has room for one entry
    async with opened(server, bucket, 1, object_bytes_max=4096, writes_max=32) as wal:
        await recovered(wal)
        appends = [wal.append([payload, bytes(3000)]) for payload in payloads]
        await appends[-1].wait_durable()
    async with opened(server, bucket, 2) as wal:
        assert [payload.rstrip(b"\0") for payload in await recovered(wal)] == payloads
        await wal.trim(appends[-3].next_position)
    async with opened(server, bucket, 3) as wal:
        assert [payload.rstrip(b"\0") for payload in await recovered(wal)] == payloads[-2:]
        assert len(wal._found.sizes) < 10, "the rest is deleted"


async def test_of_many_that_take_over_at_once_one_has_the_log_and_nothing_is_lost(server: S3Server) -> None:
    """Each appends until it is fenced; then the log has all that was acknowledged, in the order of owners."""
    bucket = server.make_bucket()
    acked: list[bytes] = []

    async def own(epoch: int) -> None:
        try:
            async with opened(server, bucket, epoch, linger=0) as wal:
                await recovered(wal)
                for payload in bodies(20, owner=epoch):
                    await wal.append([payload]).wait_durable()
                    acked.append(payload)
        except FencedError:
            return

    async with anyio.create_task_group() as tasks:
        for epoch in range(1, 7):
            tasks.start_soon(own, epoch)
    async with opened(server, bucket, 99) as wal:
        found = await recovered(wal)
    assert found[-20:] == bodies(20, owner=6), "nobody could fence the newest one"
    assert set(acked) <= set(found)
    owners = [int(payload.partition(b"/")[0]) for payload in found]
    assert owners == sorted(owners)
