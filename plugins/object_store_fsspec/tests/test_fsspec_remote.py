"""What the plugin makes of a cloud's errors, against a file system in a dict that fails on command."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from penstock_object_store_fsspec import Settings, penstock_register_object_store
from penstock_object_store_fsspec._remote import RemoteBackend

from penstock.errors import (
    AlreadyExistsError,
    ConfigError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
)
from penstock.spi.object_store import ObjectInfo, ObjectStore
from penstock.spi.plugin import Services

pytestmark = pytest.mark.anyio


class HttpError(Exception):
    """As gcsfs raises it."""

    def __init__(self, code: int) -> None:
        super().__init__(f"status {code}")
        self.code = code


class FakeFilesystem:
    """An asynchronous fsspec file system; ``script`` says what happens to the next writes."""

    protocol = ("gs", "gcs")

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        #: Of each object the number of the write that made it, and the mark of that.
        self.versions: dict[str, tuple[int, str]] = {}
        self.script: list[str] = []
        self.writes = 0
        self.ignores_condition = False
        self.swaps_status = 0
        self.keeps_marks = self.tells_tokens = True
        self.has_bucket = True
        self.knows_ranges = True

    def __call__(self, **options: Any) -> FakeFilesystem:
        self.options = options
        return self

    async def _pipe_file(self, path: str, data: bytes, mode: str, mark: str = "") -> str:
        await asyncio.sleep(0)
        assert type(data) is bytes
        self.writes += 1
        step = self.script.pop(0) if self.script else "apply"
        if not self.has_bucket:
            raise FileNotFoundError(path)
        if step.isdigit():
            raise HttpError(int(step))
        if step == "hang":
            await asyncio.Event().wait()
        if mode == "create" and path in self.objects and not self.ignores_condition:
            raise FileExistsError(path)
        if step == "another first":
            self.versions[path] = self.writes, "another's"
        if mode not in ("create", "overwrite") and not self.ignores_condition:
            if self.swaps_status:
                raise HttpError(self.swaps_status)
            if path not in self.objects or mode != str(self.versions[path][0]):
                raise FileExistsError(path)
        self.objects[path] = data
        self.versions[path] = self.writes, mark if self.keeps_marks else ""
        if step == "apply, replaced, reply lost":
            self.versions[path] = self.writes, "another's"
        if "reply lost" in step:
            raise OSError("connection reset")
        if step == "apply twice":
            raise FileExistsError(path)
        return str(self.writes) if self.tells_tokens or not mark else "of nothing"

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        await asyncio.sleep(0)
        assert start is not None
        if path not in self.objects:
            raise FileNotFoundError(path)
        if start >= len(self.objects[path]):
            raise HttpError(416)
        return self.objects[path][start:end] if self.knows_ranges else self.objects[path]

    async def _info(self, path: str) -> dict[str, Any]:
        await asyncio.sleep(0)
        if path in self.objects:
            return {"type": "file", "size": len(self.objects[path])}
        if any(name.startswith(f"{path}/") for name in self.objects):
            return {"type": "directory", "size": 0}
        raise FileNotFoundError(path)

    async def _rm_file(self, path: str) -> None:
        await asyncio.sleep(0)
        if self.objects.pop(path, None) is None:
            raise FileNotFoundError(path)

    async def _find(self, path: str, detail: bool, prefix: str) -> dict[str, dict[str, Any]]:
        await asyncio.sleep(0)
        assert detail
        return {
            name: {"type": "file", "size": len(data)}
            for name, data in self.objects.items()
            if name.startswith(f"{path}/{prefix}")
        }


class FakeBackend(RemoteBackend):
    """The requests of a store, as calls of the fake."""

    def path(self, key: str) -> str:
        return f"{self.bucket}/{self.prefix}{key}"

    async def request_get(self, key: str, start: int, end: int | None) -> bytes:
        return bytes(await self.filesystem._cat_file(self.path(key), start=start, end=end))

    async def request_head(self, key: str) -> ObjectInfo:
        found = await self.filesystem._info(self.path(key))
        if found.get("type") != "file":
            raise FileNotFoundError(key)
        return ObjectInfo(key=key, size=found["size"], token=str(self.filesystem.versions[self.path(key)][0]))

    async def request_put(self, key: str, data: bytes, mode: str) -> str:
        return str(await self.filesystem._pipe_file(self.path(key), data, mode=mode))

    async def request_swap(self, key: str, data: bytes, token: str, mark: str) -> str:
        return str(await self.filesystem._pipe_file(self.path(key), data, mode=token, mark=mark))

    async def request_mark(self, key: str) -> tuple[str, str]:
        info = await self.request_head(key)
        return self.filesystem.versions[self.path(key)][1], info.token

    async def delete_one(self, key: str) -> None:
        await self.filesystem._rm_file(self.path(key))

    async def request_list(self, prefix: str, start_after: str) -> AsyncIterator[Sequence[ObjectInfo]]:
        root = self.path("")
        found = await self.filesystem._find(root.rstrip("/"), detail=True, prefix=prefix)
        infos = [ObjectInfo(key=name.removeprefix(root), size=info["size"]) for name, info in found.items()]
        yield sorted((info for info in infos if info.key > start_after), key=lambda info: info.key)


Opener = Callable[..., AbstractAsyncContextManager[ObjectStore]]


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> FakeFilesystem:
    filesystem = FakeFilesystem()
    monkeypatch.setattr("fsspec.get_filesystem_class", lambda protocol: filesystem)
    monkeypatch.setattr(
        "penstock_object_store_fsspec._connect._choose_backend", lambda extra: (FakeBackend, dict)
    )
    return filesystem


@pytest.fixture
def open_cloud(cloud: FakeFilesystem) -> Opener:
    @asynccontextmanager
    async def opener(**settings: Any) -> AsyncIterator[ObjectStore]:
        services = Services(node_id=1, epoch=1, cluster_id="test", data_dir=Path("/"), clock=time.monotonic)
        chosen = Settings(url="gs://bucket/some/prefix", options={"token": "the-secret"}, **settings)
        async with penstock_register_object_store().open(chosen, services) as store:
            yield store

    return opener


@pytest.fixture
async def store(open_cloud: Opener) -> AsyncIterator[ObjectStore]:
    async with open_cloud() as opened:
        yield opened


async def test_the_file_system_is_made_without_caches(store: ObjectStore, cloud: FakeFilesystem) -> None:
    assert cloud.options["asynchronous"]
    assert cloud.options["skip_instance_cache"]
    assert cloud.options["use_listings_cache"] is False
    assert cloud.objects == {}
    assert store.location == "gs://bucket/some/prefix/"


@pytest.mark.parametrize("lost", ["apply, reply lost", "apply twice"])
async def test_meeting_ones_own_object_is_a_success(
    store: ObjectStore, cloud: FakeFilesystem, lost: str
) -> None:
    cloud.script = [lost]
    await store.put_if_absent("k", [b"my", b" bytes"])
    assert cloud.objects == {"bucket/some/prefix/k": b"my bytes"}


@pytest.mark.parametrize("lost", ["apply, reply lost", "apply twice"])
async def test_meeting_ones_own_swap_is_a_success(
    store: ObjectStore, cloud: FakeFilesystem, lost: str
) -> None:
    token = await store.put("k", [b"old"])
    cloud.script = [lost]
    newer = await store.compare_and_swap("k", [b"my", b" bytes"], token)
    assert cloud.objects == {"bucket/some/prefix/k": b"my bytes"}
    await store.compare_and_swap("k", [b""], newer)


@pytest.mark.parametrize("token", ["", "1", "of nothing"])
async def test_anothers_object_is_a_conflict_whatever_its_bytes(
    store: ObjectStore, cloud: FakeFilesystem, token: str
) -> None:
    await store.put("k", [b"bytes"])
    before = cloud.writes
    for key in ("k", "absent"):
        with pytest.raises(ConflictError):
            await store.compare_and_swap(key, [b"bytes"], token)
    assert cloud.writes == before, "some stores close the connection to what they refuse"


@pytest.mark.parametrize("script", [[], ["409"]])
async def test_a_swap_that_comes_too_late_is_a_conflict(
    store: ObjectStore, cloud: FakeFilesystem, script: list[str]
) -> None:
    token = await store.put("k", [b"bytes"])
    cloud.script = [*script, "another first"]
    with pytest.raises(ConflictError):
        await store.compare_and_swap("k", [b"bytes"], token)


@pytest.mark.parametrize("script", [["apply, replaced, reply lost"], ["503", "another first"]])
async def test_a_swap_that_may_have_been_replaced_is_no_conflict(
    store: ObjectStore, cloud: FakeFilesystem, script: list[str]
) -> None:
    """Whoever met one would swap once more: a sum would have this addend twice."""
    token = await store.put("k", [b"old"])
    cloud.script = script.copy()
    with pytest.raises(UnavailableError):
        await store.compare_and_swap("k", [b"mine"], token)


@pytest.mark.parametrize("status", ["404", "412"])
async def test_a_swap_that_is_refused_though_nothing_changed_is_made_again(
    open_cloud: Opener, cloud: FakeFilesystem, status: str
) -> None:
    """A conflict would tell its caller that another was there."""
    for budget_ms in (20_000, 0):
        async with open_cloud(retry_budget_ms=budget_ms) as store:
            token = await store.put("k", [b"old"])
            cloud.script = [status]
            if budget_ms:
                await store.compare_and_swap("k", [b"new"], token)
                assert bytes(await store.get("k")) == b"new"
            else:
                with pytest.raises(UnavailableError, match="hasn't changed: key='k'"):
                    await store.compare_and_swap("k", [b"new"], token)


@pytest.mark.parametrize("status", ["409", "500", "503"])
async def test_an_attempt_that_did_not_apply_is_made_again(
    store: ObjectStore, cloud: FakeFilesystem, status: str
) -> None:
    before = cloud.writes
    cloud.script = [status, status]
    token = await store.put_if_absent("k", [b"mine"])
    cloud.script = [status]
    await store.compare_and_swap("k", [b"mine, too"], token)
    assert cloud.writes == before + 5


@pytest.mark.parametrize("script", [[], ["409"], ["503"]])
async def test_somebody_elses_object_stays(
    store: ObjectStore, cloud: FakeFilesystem, script: list[str]
) -> None:
    await store.put_if_absent("k", [b"theirs"])
    cloud.script = script
    with pytest.raises(AlreadyExistsError):
        await store.put_if_absent("k", [b"mine"])
    assert bytes(await store.get("k")) == b"theirs"


async def test_without_budget_a_failure_is_told_at_once(open_cloud: Opener, cloud: FakeFilesystem) -> None:
    async with open_cloud(retry_budget_ms=0) as store:
        for call in (store.put, store.put_if_absent):
            cloud.script = ["503"]
            with pytest.raises(UnavailableError, match="status=503"):
                await call("k", [b""])
        assert store.statistics().errors == 2


async def test_an_attempt_that_hangs_ends_at_its_timeout(open_cloud: Opener, cloud: FakeFilesystem) -> None:
    async with open_cloud(request_timeout_ms="10ms") as store:
        cloud.script = ["hang", "apply"]
        await store.put("k", [b"late"])
        assert bytes(await store.get("k")) == b"late"


async def test_a_store_that_lets_both_creators_win_loses_the_claim(
    open_cloud: Opener, cloud: FakeFilesystem
) -> None:
    cloud.ignores_condition = True
    async with open_cloud() as store:
        assert not store.capabilities.put_if_absent
        with pytest.raises(InvalidRequestError, match="put_if_absent"):
            await store.put_if_absent("k", [b""])
        with pytest.raises(InvalidRequestError, match="compare_and_swap"):
            await store.compare_and_swap("k", [b""], "1")


@pytest.mark.parametrize("status", [400, 403, 404, 409, 412, 500, 501, 503])
async def test_a_store_that_refuses_every_swap_loses_the_claim(
    open_cloud: Opener, cloud: FakeFilesystem, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """Whatever it answers, and however patient the broker is: nothing in it swaps."""
    monkeypatch.setattr("penstock_object_store_fsspec._remote._PROOF_S_MAX", 0.01)
    cloud.swaps_status = status
    async with open_cloud(retry_budget_ms="1h") as store:
        assert store.capabilities.put_if_absent
        assert not store.capabilities.compare_and_swap
        assert store.statistics().last_error == ""
        assert store.statistics().consecutive_failures == 0
    assert cloud.objects == {}


@pytest.mark.parametrize("what", ["keeps_marks", "tells_tokens"])
async def test_a_store_whose_swaps_cant_be_recognized_or_followed_loses_the_claim(
    open_cloud: Opener, cloud: FakeFilesystem, what: str
) -> None:
    """One drops what is told beside the bytes; the other answers with a token that the object hasn't."""
    setattr(cloud, what, False)
    async with open_cloud() as store:
        assert store.capabilities.put_if_absent
        assert not store.capabilities.compare_and_swap


@pytest.mark.parametrize(
    "script",
    [["503"], ["apply, reply lost"], ["apply twice"], ["apply", "429"], ["503", "apply, reply lost"]],
)
async def test_a_swap_of_the_start_that_must_be_made_again_proves_the_claim_all_the_same(
    open_cloud: Opener, cloud: FakeFilesystem, script: list[str]
) -> None:
    cloud.script = ["apply", "apply", *script]
    async with open_cloud() as store:
        assert store.capabilities.compare_and_swap


async def test_the_token_of_an_object_read_back_is_of_nothing_that_another_made_of_it(
    store: ObjectStore, cloud: FakeFilesystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the caller would swap what it never saw."""
    tokens = iter(["its own", "another's"])

    async def head(self: FakeBackend, key: str) -> ObjectInfo:
        return ObjectInfo(key=key, size=4, token=next(tokens))

    async def get(self: FakeBackend, key: str, start: int, end: int | None) -> bytes:
        next(tokens)  # swapped right after it was read
        return b"mine"

    monkeypatch.setattr(FakeBackend, "request_head", head)
    monkeypatch.setattr(FakeBackend, "request_get", get)
    cloud.script = ["apply, reply lost"]
    assert await store.put_if_absent("k", [b"mine"]) == "its own"


@pytest.mark.parametrize("second", ["503", "403", "apply, reply lost"])
async def test_a_start_in_vain_leaves_nothing_in_the_bucket(
    open_cloud: Opener, cloud: FakeFilesystem, second: str
) -> None:
    cloud.script = ["apply", second]
    cloud.ignores_condition = True
    with pytest.raises((ConfigError, UnavailableError)):
        async with open_cloud(retry_budget_ms=0):
            pytest.fail("it opened")  # pragma: no cover
    assert cloud.objects == {}


@pytest.mark.parametrize("script", [["hang"], ["apply", "hang"]])
async def test_a_start_that_is_given_up_leaves_nothing_in_the_bucket(
    open_cloud: Opener, cloud: FakeFilesystem, script: list[str]
) -> None:
    cloud.script = script.copy()
    async with anyio.create_task_group() as tasks:

        async def open_one() -> None:
            async with open_cloud():
                pytest.fail("it opened")  # pragma: no cover

        tasks.start_soon(open_one)
        while cloud.script:
            await checkpoint()
        tasks.cancel_scope.cancel()
    assert cloud.objects == {}


@pytest.mark.parametrize("status", ["401", "403"])
async def test_refused_credentials_stop_the_start_without_showing_them(
    open_cloud: Opener, cloud: FakeFilesystem, status: str
) -> None:
    cloud.script = [status]
    with pytest.raises(ConfigError, match="refused the credentials") as caught:
        async with open_cloud():
            pass
    assert "the-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "EndpointConnectionError",
            "can't be reached, check its endpoint, and whether it runs: key='k' location=",
        ),
        ("SSLError", "no TLS with the object store, its endpoint must speak https, and be trusted: key="),
        ("ReadTimeoutError", "a request to the object store failed: key='k' location="),
        ("ProfileNotFound", "the profile isn't in AWS's configuration files, correct AWS_PROFILE or"),
        ("NoCredentialsError", "no credentials for the object store were found, set AWS_ACCESS_KEY_ID"),
        ("ParamValidationError", "the bucket's name isn't one, correct the url: key="),
    ],
)
async def test_what_client_libraries_raise_is_told_with_what_to_do_and_without_their_words(
    open_cloud: Opener, name: str, told: str
) -> None:
    async with open_cloud() as opened:
        error = type(name, (Exception,), {})("https://bucket/?X-Amz-Signature=secret")
        sentence = str(opened._backend._translate("probe", "k", error))  # type: ignore[attr-defined]
    assert told in sentence
    assert "Signature" not in sentence
    assert "status=" not in sentence  # there was no answer, so it has none
    assert "code=" not in sentence


async def test_a_missing_bucket_stops_the_start(open_cloud: Opener, cloud: FakeFilesystem) -> None:
    cloud.has_bucket = False
    with pytest.raises(ConfigError, match="the bucket doesn't exist"):
        async with open_cloud():
            pass


async def test_options_that_the_file_system_refuses_are_named_without_values(
    open_cloud: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**options: Any) -> None:
        raise ValueError(f"no such token: {options['token']}")

    monkeypatch.setattr("fsspec.get_filesystem_class", lambda protocol: refuse)
    with pytest.raises(ConfigError, match=r"options were refused.*keys=\['token'\]") as caught:
        async with open_cloud():
            pass
    assert "the-secret" not in str(caught.value)


async def test_ranges_that_the_cloud_answers_with_416(store: ObjectStore) -> None:
    await store.put("k", [b"0123"])
    assert bytes(await store.get("k", 4)) == b""
    assert bytes(await store.get("k", 1, 3)) == b"12"
    with pytest.raises(InvalidRequestError):
        await store.get("k", 5)
    with pytest.raises(NotFoundError):
        await store.get("j", 2, 2)
    with pytest.raises(NotFoundError):
        await store.head("k/below")


async def test_a_range_that_whatever_answers_knows_nothing_of_is_no_data(
    store: ObjectStore, cloud: FakeFilesystem
) -> None:
    await store.put("k", [b"0123"])
    cloud.knows_ranges = False
    with pytest.raises(UnavailableError, match=r"another range than it was asked for.*location=gs://bucket"):
        await store.get("k", 1, 3)


async def test_listing_and_deleting(store: ObjectStore) -> None:
    names = ["a-b", "a/b", "a/c", "b"]
    for name in reversed(names):
        await store.put(name, [b"x"])
    assert [info.key async for info in store.list()] == names
    assert [info.key async for info in store.list("a/", "a/b")] == ["a/c"]
    assert [info.key async for info in store.list("a")] == names[:3]
    assert [info.key async for info in store.list("a/c")] == ["a/c"]
    await store.delete(["a/b", "absent", "b"])
    assert [info.key async for info in store.list()] == ["a-b", "a/c"]


async def test_uploads_in_parts_are_refused_where_they_are_not_claimed(store: ObjectStore) -> None:
    assert not store.capabilities.multipart
    with pytest.raises(InvalidRequestError):
        await store.create_multipart("k")
