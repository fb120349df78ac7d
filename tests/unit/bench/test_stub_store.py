"""The store of benchmarks that keeps no large body: what it knows is right, the rest it refuses."""

from __future__ import annotations

import pytest

from penstock.errors import AlreadyExistsError, InvalidRequestError, NotFoundError
from penstock.plugins import PluginRegistry
from penstock_tools.bench.stub_store import KEPT_BYTES_MAX, StubStore

pytestmark = pytest.mark.anyio


async def test_small_bodies_are_kept_and_of_large_ones_the_size() -> None:
    store = StubStore()
    large = memoryview(bytes(KEPT_BYTES_MAX))
    await store.put_if_absent("b", [b"12", b"345"])
    await store.put("a", [large, b"x"])
    assert bytes(await store.get("b", 1, 4)) == b"234"
    assert (await store.head("a")).size == KEPT_BYTES_MAX + 1
    with pytest.raises(InvalidRequestError, match="keeps no body"):
        await store.get("a")
    assert [(one.key, one.size) async for one in store.list()] == [("a", KEPT_BYTES_MAX + 1), ("b", 5)]
    assert store.statistics().bytes_written == KEPT_BYTES_MAX + 6


async def test_it_creates_deletes_and_lists_as_a_store_does() -> None:
    store = StubStore()
    await store.put_if_absent("wal/1", [b"mine"])
    with pytest.raises(AlreadyExistsError):
        await store.put_if_absent("wal/1", [b"theirs"])
    for key in ("wal/3", "wal/2", "x"):
        await store.put(key, [b""])
    assert [one.key async for one in store.list("wal/", "wal/1")] == ["wal/2", "wal/3"]
    await store.delete(["wal/2", "no such"])
    assert [one.key async for one in store.list("wal/")] == ["wal/1", "wal/3"]
    with pytest.raises(NotFoundError):
        await store.get("wal/2")


async def test_an_upload_in_parts_is_there_when_it_is_complete() -> None:
    store = StubStore()
    upload = await store.create_multipart("k")
    await upload.write_part([b"ab"])
    await upload.write_part([b"c"])
    with pytest.raises(NotFoundError):
        await store.head("k")
    await upload.complete()
    assert bytes(await store.get("k")) == b"abc"
    for part in (bytes(KEPT_BYTES_MAX), b"x"):
        await upload.write_part([part])
    await upload.complete()
    assert (await store.head("k")).size == KEPT_BYTES_MAX + 4


def test_a_configuration_selects_it_by_name() -> None:
    registry = PluginRegistry(modules=["penstock_tools.bench.stub_store"])
    assert registry.select("object_store", "stub").capabilities.put_if_absent
