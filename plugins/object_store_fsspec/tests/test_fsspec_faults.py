"""S3 behind a proxy that loses replies, answers errors before and after the effect, cuts and delays answers."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
import pytest
from tests.depth import in_full, pairs
from tests.patience import HANG_S
from tests.s3_server import S3Server, open_s3, serving_s3
from tests.store_proxy import FAULTS, Request, StoreProxy, each_first, proxied
from tests.store_races import race_for_objects

from penstock.config import load_config
from penstock.errors import AlreadyExistsError, ConfigError, UnavailableError
from penstock.spi.object_store import ObjectStore
from penstock_tools.cli import _logging

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
def proxy(server: S3Server) -> Iterator[StoreProxy]:
    with proxied(server) as running:
        yield running


def _open(
    proxy: StoreProxy, token: str | None = None, **settings: Any
) -> AbstractAsyncContextManager[ObjectStore]:
    url = f"s3://{proxy.server.make_bucket()}/some/prefix"
    options = {} if token is None else {"token": token}
    return open_s3(url, proxy.endpoint_url, client=os.environ[CLIENT], options=options, **settings)


@pytest.fixture
async def store(proxy: StoreProxy) -> AsyncIterator[ObjectStore]:
    async with _open(proxy) as opened:
        yield opened


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_creation_or_swap_whose_outcome_is_unknown_is_ones_own(
    store: ObjectStore, proxy: StoreProxy, fault: str
) -> None:
    proxy.decide = each_first("PUT", fault)
    token = await store.put_if_absent("k", [b"mine"])
    assert proxy.faults[fault] == 1
    assert bytes(await store.get("k")) == b"mine"
    proxy.decide = each_first("PUT", fault)
    swapped = await store.compare_and_swap("k", [b"again ", b"mine"], token)
    assert proxy.faults[fault] == 2
    assert bytes(await store.get("k")) == b"again mine"
    assert (await store.head("k")).token == swapped


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_creation_whose_outcome_is_unknown_leaves_somebody_elses_object(
    store: ObjectStore, proxy: StoreProxy, fault: str
) -> None:
    await store.put_if_absent("k", [b"theirs"])
    proxy.decide = each_first("PUT", fault)
    with pytest.raises(AlreadyExistsError):
        await store.put_if_absent("k", [b"mine"])
    assert proxy.faults[fault] == 1
    assert bytes(await store.get("k")) == b"theirs"


@pytest.mark.parametrize("fault", FAULTS)
async def test_the_read_back_of_an_unknown_outcome_may_fail_too(
    store: ObjectStore, proxy: StoreProxy, fault: str
) -> None:
    def decide(request: Request) -> str:
        if request.operation == "PUT" and not proxy.faults["reply lost"]:
            return "reply lost"
        return fault if request.operation == "GET" and not proxy.faults[fault] else ""

    proxy.decide = decide
    await store.put_if_absent("k", [b"mine"])
    assert bytes(await store.get("k")) == b"mine"


@pytest.mark.parametrize(
    ("operation", "fault"), pairs(["PUT", "GET", "HEAD", "GET list", "POST delete"], FAULTS)
)
async def test_what_may_be_done_twice_is_done_again(
    store: ObjectStore, proxy: StoreProxy, operation: str, fault: str
) -> None:
    await store.put("there", [b"0123456789" * 1000])
    proxy.decide = each_first(operation, fault, times=2)
    await store.put("k", [b"bytes"])
    assert bytes(await store.get("there", 5, 9005)) == (b"0123456789" * 1000)[5:9005]
    assert (await store.head("there")).size == 10_000
    assert [info.key async for info in store.list()] == ["k", "there"]
    await store.delete(["there"])
    proxy.decide = lambda request: ""
    assert [info.key async for info in store.list()] == ["k"]
    assert proxy.faults[fault] == 2


@pytest.mark.parametrize(
    ("operation", "fault"), pairs(["POST uploads", "PUT partNumber", "POST uploadId"], FAULTS)
)
async def test_an_upload_in_parts_is_whole_or_told_to_be_gone(
    store: ObjectStore, proxy: StoreProxy, operation: str, fault: str
) -> None:
    parts = [bytes([number]) * (5 * 2**20) for number in range(3)]
    proxy.decide = each_first(operation, fault)
    upload = await store.create_multipart("k")
    for part in parts:
        await upload.write_part([part])
    await upload.complete()
    assert proxy.faults[fault] == 1
    assert bytes(await store.get("k")) == b"".join(parts)


@pytest.mark.parametrize("theirs", [None, b"theirs"])
async def test_an_upload_that_is_gone_is_ones_own_object_or_told_to_be_gone(
    store: ObjectStore, proxy: StoreProxy, theirs: bytes | None
) -> None:
    """Some stores forget a completed upload at once; a lifecycle rule may drop one, too."""
    upload = await store.create_multipart("k")
    await upload.write_part([b"mine"])
    faults = iter(["reply lost", "404 NoSuchUpload"] if theirs is None else ["404 NoSuchUpload"])
    proxy.decide = lambda request: next(faults, "") if request.operation == "POST uploadId" else ""
    if theirs is None:
        await upload.complete()
        assert bytes(await store.get("k")) == b"mine"
        return
    await store.put("k", [theirs])
    with pytest.raises(UnavailableError, match="the upload is gone, begin it again"):
        await upload.complete()
    assert bytes(await store.get("k")) == theirs


@pytest.mark.parametrize("fault", ["500 InternalError", "503 SlowDown", "request lost", "reply lost"])
async def test_a_store_that_goes_on_failing_is_told_after_several_attempts(
    proxy: StoreProxy, fault: str
) -> None:
    async with _open(proxy, retry_budget_ms=1000) as store:
        for call in (store.put, store.put_if_absent):
            attempts = 0
            for number in range(50):
                before = proxy.seen.total()
                proxy.decide = lambda request: fault
                with pytest.raises(UnavailableError) as caught:
                    await call(f"k-{call.__name__}-{number}", [b"mine"])
                proxy.decide = lambda request: ""
                assert S3Server.secret_key not in str(caught.value)
                attempts = proxy.seen.total() - before
                assert attempts < 30, "backed off"
                if attempts >= 2:
                    break  # on a busy machine one attempt may take all the time that there is
            assert attempts >= 2


async def test_a_deletion_that_failed_for_one_key_is_made_again(
    store: ObjectStore, proxy: StoreProxy
) -> None:
    for key in ("a", "b"):
        await store.put(key, [b"x"])
    proxy.decide = each_first("POST delete", "one not deleted")
    await store.delete(["a", "b"])
    assert proxy.faults["one not deleted"] == 1
    assert [info.key async for info in store.list()] == []


async def test_a_store_that_knows_no_checksums_is_put_to_without_them(
    proxy: StoreProxy, caplog: pytest.LogCaptureFixture, client: str
) -> None:
    """obstore asks for none: it signs the digest of what it puts."""
    proxy.decide = lambda request: "501 NotImplemented" if request.checked else ""
    async with _open(proxy) as store:
        await store.put("key", [b"body"])
        assert bytes(await store.get("key")) == b"body"
    asked = client == "fsspec"
    assert proxy.faults["501 NotImplemented"] == asked, "asked once"
    told = [record.levelname for record in caplog.records if "takes no checksum" in record.getMessage()]
    assert told == ["WARNING"] * asked  # a busy machine's store may be told of as slow besides


async def test_an_answer_that_comes_too_late_is_asked_for_again(proxy: StoreProxy) -> None:
    async with _open(proxy, request_timeout_ms=2000) as store:
        proxy.decide = each_first("PUT", "late")
        await store.put_if_absent("k", [b"mine"])
        assert bytes(await store.get("k")) == b"mine"
        assert proxy.faults["late"] == 1


async def test_what_stands_at_once_is_not_held_up_by_a_small_pool_of_connections(
    store: ObjectStore, proxy: StoreProxy
) -> None:
    together = threading.Barrier(20)

    def decide(request: Request) -> str:
        together.wait(HANG_S)
        return ""

    proxy.decide = decide
    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(store.put, f"k-{number}", [b"x"])
    proxy.decide = lambda request: ""
    assert len([info async for info in store.list()]) == 20


@pytest.fixture
def debug_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What ``penstock serve`` logs with ``logging.level`` at debug."""
    levels = {name: logging.getLogger(name).level for name in _logging._TALKATIVE}
    with caplog.at_level(logging.DEBUG):
        _logging.set_up_logging(load_config(sets=["logging.level=debug"]))
        yield caplog
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


async def test_credentials_are_in_no_line_of_the_log_at_any_level(
    proxy: StoreProxy, debug_log: pytest.LogCaptureFixture
) -> None:
    """A session token goes with each request, and botocore's DEBUG lines have all its headers."""
    async with _open(proxy, retry_budget_ms=100) as store:
        await store.put("k", [b"x"])
        for fault in ("503 SlowDown", "403 AccessDenied"):
            proxy.decide = lambda request, fault=fault: fault  # type: ignore[misc]
            with pytest.raises(UnavailableError):
                await store.get("k")
    proxy.decide = lambda request: ""
    if isinstance(proxy.server, S3Server) and proxy.server.checks_credentials:
        with pytest.raises(ConfigError, match="refused the credentials") as caught:
            async with _open(proxy, token="the-session-token"):  # the server takes none
                pass
        assert "the-session-token" not in repr(caught.value)
    logging.getLogger("botocore.auth").debug("the-session-token")
    logging.getLogger("penstock.test").debug("a line of debug level")
    lines = [record.getMessage() for record in debug_log.records]
    assert "a line of debug level" in lines
    for secret in (S3Server.secret_key, "the-session-token", "Signature="):
        assert [line for line in lines if secret in line] == []


@pytest.mark.parametrize("client", ["fsspec", *in_full("obstore")], indirect=True)
async def test_one_of_several_processes_wins_each_race_though_replies_are_lost(proxy: StoreProxy) -> None:
    """Half of the puts are done and never answered; each writer still learns whether it won."""
    options = {
        "key": S3Server.access_key,
        "secret": S3Server.secret_key,
        "endpoint_url": proxy.endpoint_url,
    }
    async with _open(proxy) as any_store:
        await race_for_objects(proxy, any_store, f"s3://{proxy.server.make_bucket()}", options)
