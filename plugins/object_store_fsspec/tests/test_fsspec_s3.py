"""S3 against a real server in a process of its own (``tests/s3_server.py``)."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
import pytest
from penstock_object_store_fsspec import Settings
from tests.patience import HANG_S
from tests.s3_server import S3Server, open_s3, serving_s3

from penstock.errors import AlreadyExistsError, ConfigError, InvalidRequestError, NotFoundError
from penstock.spi.object_store import ObjectStore

#: As in the environment of a broker: writers in processes of their own have it too.
CLIENT = "PENSTOCK__OBJECT_STORE__CLIENT"

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(autouse=True, params=["fsspec", "obstore"])
def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whoever makes the frequent requests, what comes of them is the same."""
    chosen: str = request.param
    if chosen == "obstore":
        pytest.importorskip("obstore", reason="needs pip install 'penstock[obstore]'")
    monkeypatch.setenv(CLIENT, chosen)
    return chosen


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    pytest.importorskip("s3fs", reason="needs pip install 'penstock[s3]'")
    with serving_s3(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def endpoint(server: S3Server) -> str:
    return server.endpoint_url


def _open(url: str, endpoint: str, **options: Any) -> AbstractAsyncContextManager[ObjectStore]:
    """Nothing fails here: how long requests may take is no matter of these tests."""
    patience = dict.fromkeys(("retry_budget_ms", "request_timeout_ms"), f"{HANG_S:.0f}s")
    return open_s3(url, endpoint, client=os.environ[CLIENT], options=options, **patience)


@pytest.fixture
async def store(server: S3Server) -> AsyncIterator[ObjectStore]:
    async with _open(f"s3://{server.make_bucket()}/some/prefix", server.endpoint_url) as opened:
        yield opened


async def test_s3_objects(store: ObjectStore) -> None:
    await store.put("a/b", [b"0123", memoryview(b"456789")])
    assert bytes(await store.get("a/b")) == b"0123456789"
    assert bytes(await store.get("a/b", 2, 4)) == b"23"
    assert bytes(await store.get("a/b", 8, 99)) == b"89"
    assert bytes(await store.get("a/b", 10)) == b""
    assert bytes(await store.get("a/b", 3, 3)) == b""
    with pytest.raises(InvalidRequestError):
        await store.get("a/b", 11)
    assert (await store.head("a/b")).size == 10
    for key in ("a", "a/c"):
        with pytest.raises(NotFoundError):
            await store.get(key)
        with pytest.raises(NotFoundError):
            await store.head(key)
        with pytest.raises(NotFoundError):
            await store.get(key, 1, 1)
    await store.put("empty", [])
    assert bytes(await store.get("empty")) == b""


async def test_s3_put_if_absent(store: ObjectStore) -> None:
    assert store.capabilities.put_if_absent
    await store.put_if_absent("k", [b"first"])
    with pytest.raises(AlreadyExistsError):
        await store.put_if_absent("k", [b"second"])
    assert bytes(await store.get("k")) == b"first"


async def test_times_of_a_listing_are_read_without_guessing_their_format(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By guessing, a page of a thousand keys held the broker's loop for a tenth of a second."""
    before = int(time.time() * 1000)
    await store.put("a", [b"x"])

    def guess(*_: object, **__: object) -> None:
        raise AssertionError("the format of a time was guessed")

    monkeypatch.setattr("dateutil.parser.parse", guess)
    (info,) = [info async for info in store.list()]
    assert before - 1000 <= info.modified_ms <= time.time() * 1000 + 1000


async def test_s3_listing_and_deletion(store: ObjectStore) -> None:
    names = ["a-b", "a.b", "a/b", "a/c/d", "a0"]
    for name in names:
        await store.put(name, [name.encode()])
    assert [info.key async for info in store.list()] == sorted(names)
    assert [info.key async for info in store.list("a/", "a/b")] == ["a/c/d"]
    await store.delete([*names[1:], "absent"])
    assert [(info.key, info.size) async for info in store.list()] == [("a-b", 3)]
    await store.delete([])


@pytest.mark.parametrize("way", ["put", "put_if_absent"])
async def test_s3_a_put_that_breaks_off_leaves_all_or_nothing(store: ObjectStore, way: str) -> None:
    """Without a checksum, versitygw keeps the first 256 KiB and calls them the object."""
    found: set[int | None] = set()
    for turns in range(40):
        key = f"{way}/{turns}"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(getattr(store, way), key, [b"x" * 700_000])
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        await anyio.sleep(0.02)
        try:
            found.add(len(await store.get(key)))
        except NotFoundError:
            found.add(None)
    assert found <= {None, 700_000}


async def test_s3_upload_in_parts(store: ObjectStore) -> None:
    upload = await store.create_multipart("k")
    parts = [bytes([number]) * (3 * 2**20) for number in range(7)]
    for part in parts:
        await upload.write_part([part[:100], part[100:]])
    assert [info.key async for info in store.list()] == []
    await upload.complete()
    assert bytes(await store.get("k")) == b"".join(parts)
    dropped = await store.create_multipart("j")
    await dropped.write_part([b"x"])
    await dropped.abort()
    await dropped.abort()
    assert [info.key async for info in store.list()] == ["k"]


async def test_s3_a_missing_bucket_is_one_sentence_without_secrets(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="the bucket doesn't exist") as caught:
        async with _open("s3://no-such-bucket", endpoint):
            pass
    assert "the-secret" not in str(caught.value)


async def test_s3_a_cancelled_get_leaves_the_store_usable(store: ObjectStore) -> None:
    await store.put("k", [bytes(2**20)])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.get, "k")
        await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert len(await store.get("k")) == 2**20


@pytest.mark.parametrize("url", ["http://x/y", "s3://", "s3://key:secret@bucket/x", "foo://x"])
async def test_other_urls_are_refused_without_repeating_secrets(url: str) -> None:
    with pytest.raises(ValueError, match="write it like") as caught:
        Settings(url=url)
    assert "secret" not in str(caught.value)


def test_a_missing_extra_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(protocol: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.get_filesystem_class", not_installed)
    with pytest.raises(ValueError, match=r"pip install 'penstock\[s3\]'"):
        Settings(url="s3://bucket")


def test_options_are_not_shown() -> None:
    options = {"key": S3Server.access_key, "secret": S3Server.secret_key}
    assert "the-secret" not in repr(Settings(url="s3://bucket", options=options))
    with pytest.raises(ValueError, match="nearest is secret") as caught:
        Settings(url="s3://bucket", options={"secrt": "the-secret"})
    assert "the-secret" not in str(caught.value)
