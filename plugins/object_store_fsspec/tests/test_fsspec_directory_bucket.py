"""A directory bucket (S3 Express One Zone), as a proxy in front of a real server shows it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import cast

import pytest
from penstock_wal_s3 import penstock_register_wal
from tests.directory_bucket import serving_directory_bucket
from tests.s3_server import S3Server, open_s3, serving_s3
from tests.store_proxy import each_first

from penstock.errors import AlreadyExistsError, ConflictError, FencedError, InvalidRequestError, NotFoundError
from penstock.spi.object_store import AppendableStore
from penstock.spi.plugin import Services
from penstock.spi.wal import WriteAheadLog

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    pytest.importorskip("s3fs", reason="needs pip install 'penstock[s3]'")
    with serving_s3(tmp_path_factory.mktemp("s3")) as running:
        yield running


async def test_requests_are_made_in_sessions_and_listings_are_whole_in_whatever_order(
    server: S3Server,
) -> None:
    with serving_directory_bucket(server) as (proxy, bucket):
        async with open_s3(f"s3://{bucket}/some/prefix", proxy.endpoint_url, client="auto") as store:
            assert store.capabilities.put_if_absent
            assert not store.capabilities.ordered_listing
            assert store.capabilities.durability_domain == "zone"
            keys = ["wal/+ %41", *(f"wal/{number}" for number in range(7))]
            for key in keys:
                await store.put_if_absent(key, [key.encode()])
            with pytest.raises(AlreadyExistsError):
                await store.put_if_absent(keys[0], [b"again"])
            assert bytes(await store.get("wal/3", 2, 5)) == b"l/3"
            listed = [info.key async for info in store.list("wal/")]
            assert sorted(listed) == keys
            assert listed != keys
            assert [info.key async for info in store.list("wal/3")] == ["wal/3"]
            assert sorted([info.key async for info in store.list("w")]) == keys
            with pytest.raises(InvalidRequestError, match="ordered_listing"):
                _ = [info async for info in store.list("wal/", "wal/3")]
            await store.delete(keys[:5])
            assert sorted([info.key async for info in store.list("wal/")]) == keys[5:]
            with pytest.raises(NotFoundError):
                await store.head(keys[0])
        assert proxy.sessions == 1, "a session is used again"


@pytest.mark.parametrize(
    "fault", ["", "reply lost", "503 SlowDown", "done, 500 InternalError", "done, 400 TooManyParts"]
)
async def test_an_append_takes_effect_once_where_the_object_ends(server: S3Server, fault: str) -> None:
    with serving_directory_bucket(server) as (proxy, bucket):
        async with open_s3(f"s3://{bucket}/p", proxy.endpoint_url, client="auto") as opened:
            assert opened.capabilities.append
            store = cast("AppendableStore", opened)
            await store.append("k", [b"one", b"-"], 0)
            proxy.decide = each_first("PUT", fault)
            token = await store.append("k", [b"two"], 4)
            assert proxy.faults[fault] == bool(fault)
            assert bytes(await store.get("k")) == b"one-two"
            assert (await store.head("k")).token == token
            for offset in (0, 4, 8):
                with pytest.raises(ConflictError, match="ends elsewhere"):
                    await store.append("k", [b"other"], offset)
            with pytest.raises(ConflictError, match="ends elsewhere"):
                await store.append("absent", [b"other"], 3)
            assert bytes(await store.get("k")) == b"one-two"


async def test_who_comes_too_late_to_a_full_object_is_told_so(server: S3Server) -> None:
    """The store may tell first that it takes no more, and a deposed owner would begin another object."""
    with serving_directory_bucket(server) as (proxy, bucket):
        async with open_s3(f"s3://{bucket}/p", proxy.endpoint_url, client="auto") as opened:
            store = cast("AppendableStore", opened)
            await store.append("k", [b"one"], 0)
            proxy.decide = each_first("PUT", "400 TooManyParts", times=100)
            for key, offset in (("k", 0), ("k", 2), ("k", 4), ("absent", 1)):
                with pytest.raises(ConflictError, match="ends elsewhere"):
                    await store.append(key, [b"other"], offset)
            with pytest.raises(InvalidRequestError, match="no more appends"):
                await store.append("k", [b"two"], 3)


async def test_a_store_that_puts_where_it_should_append_loses_the_claim(server: S3Server) -> None:
    """It knows nothing of the header: each append would replace what it should go behind."""
    with serving_directory_bucket(server) as (proxy, bucket):
        proxy.appends = False
        async with open_s3(f"s3://{bucket}/p", proxy.endpoint_url, client="auto") as opened:
            assert not opened.capabilities.append
            with pytest.raises(InvalidRequestError, match="has no append"):
                await cast("AppendableStore", opened).append("k", [b"one"], 0)
            assert opened.statistics().last_error == ""
            assert [info async for info in opened.list(".penstock-probe/")] == []


async def test_a_log_comes_back_from_pages_in_any_order_and_is_taken_over(
    server: S3Server, tmp_path: Path
) -> None:
    spec = penstock_register_wal()
    bodies = [bytes([number]) * 10 for number in range(12)]
    with serving_directory_bucket(server) as (proxy, bucket):
        async with open_s3(f"s3://{bucket}/penstock", proxy.endpoint_url, client="auto") as store:

            def opened(epoch: int) -> AbstractAsyncContextManager[WriteAheadLog]:
                services = Services(
                    node_id=1,
                    epoch=epoch,
                    cluster_id="c",
                    data_dir=tmp_path,
                    clock=time.monotonic,
                    object_store=store,
                )
                return spec.open(spec.settings(), services)

            async with opened(1) as older:
                assert older.capabilities.durability_domain == "zone"
                assert [entry async for entry in older.recover()] == []
                for body in bodies:
                    await older.append([body]).wait_durable()
                async with opened(2) as newer:
                    assert [bytes(entry.data) async for entry in newer.recover()] == bodies
                    await newer.append([b"more"]).wait_durable()
                    with pytest.raises(FencedError):
                        await older.append([b"late"]).wait_durable()


async def test_a_session_that_ends_is_followed_by_another(server: S3Server) -> None:
    with serving_directory_bucket(server, life_s=1) as (proxy, bucket):  # botocore renews it long before
        async with open_s3(f"s3://{bucket}/prefix", proxy.endpoint_url, client="auto") as store:
            await store.put("k", [b"1"])
            before = proxy.sessions
            await store.put("k", [b"2"])
            assert proxy.sessions > before
            assert bytes(await store.get("k")) == b"2"
