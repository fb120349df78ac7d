"""An outage of the store begins with what shows it first, ends when what failed succeeds, and bounds a start."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from penstock_object_store_fsspec import penstock_register_object_store

from penstock.broker._outage import ANSWER_S, WatchedStore
from penstock.errors import InvalidRequestError, NotFoundError, UnavailableError
from penstock.spi.object_store import ObjectInfo, ObjectStoreStatistics
from penstock.spi.plugin import Buffer, Services

pytestmark = pytest.mark.anyio


class Store:
    """Answers as the test says."""

    location = "fake://place"
    endpoint = "http://127.0.0.1:9"
    capabilities: Any = None

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.full = False
        self.gate: anyio.Event | None = None
        self.told = ObjectStoreStatistics()

    async def head(self, key: str) -> ObjectInfo:
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        return ObjectInfo(key=key, size=0)

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        if self.full:
            raise UnavailableError("no space left")
        return ""

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        for key in ("a", "b"):
            yield await self.head(key)

    def statistics(self) -> ObjectStoreStatistics:
        return self.told


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watched(store: Store, clock: Clock) -> WatchedStore:
    return WatchedStore(store, clock)  # type: ignore[arg-type] # as much of one as is needed


async def test_failed_calls_are_one_outage_until_one_succeeds(
    watched: WatchedStore, store: Store, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    store.error = UnavailableError("no route")
    for _ in range(3):
        with pytest.raises(UnavailableError):
            await watched.head("k")
        clock.now_s += 1
    found = watched.statistics()
    assert (found.outage_s, found.consecutive_failures, found.last_error) == (3, 3, "no route")
    assert (
        watched.outage
        == "fake://place endpoint=http://127.0.0.1:9 outage_s=3 failures=3 last_error='no route'"
    )
    store.error = None
    await watched.head("k")
    assert watched.outage == ""
    assert (watched.statistics().outage_s, watched.statistics().consecutive_failures) == (0, 0)
    place = "fake://place endpoint=http://127.0.0.1:9"
    assert [record.getMessage() for record in caplog.records] == [
        f"the object store doesn't work, nothing is lost and it's tried again: {place} error=no route",
        f"the object store works again: {place} outage_s=3.0 failures=3",
    ]


async def test_a_store_that_takes_nothing_is_one_outage_though_other_calls_succeed(
    watched: WatchedStore, store: Store, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    store.full = True
    for _ in range(5):
        with pytest.raises(UnavailableError):
            await watched.put("k", [b""])
        await watched.head("k")
        clock.now_s += 2
        watched.look()
    assert "last_error='no space left'" in watched.outage
    store.full = False
    await watched.put("k", [b""])
    assert watched.outage == ""
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "the object store doesn't work, nothing is lost and it's tried again",
        "the object store works again",
    ]


async def test_an_outage_ends_when_only_other_calls_come_for_a_while(
    watched: WatchedStore, store: Store, clock: Clock
) -> None:
    store.full = True
    with pytest.raises(UnavailableError):
        await watched.put("k", [b""])
    await watched.head("k")
    watched.look()
    assert watched.outage
    clock.now_s += 10
    watched.look()
    assert watched.outage == ""


async def test_an_answer_that_there_is_no_such_object_is_no_outage(
    watched: WatchedStore, store: Store
) -> None:
    store.error = NotFoundError("no such object")
    with pytest.raises(NotFoundError):
        await watched.head("k")
    assert watched.outage == ""
    assert [info.key async for info in _listed(watched, store)] == ["a", "b"]


async def _listed(watched: WatchedStore, store: Store) -> AsyncIterator[ObjectInfo]:
    store.error = None
    async for info in watched.list():
        yield info


async def test_a_call_that_isnt_answered_is_an_outage_before_it_fails(
    watched: WatchedStore, store: Store, clock: Clock
) -> None:
    store.gate = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watched.head, "k")
        await anyio.wait_all_tasks_blocked()
        clock.now_s += ANSWER_S
        watched.look()
        assert watched.outage == ""
        clock.now_s += 1
        watched.look()
        assert 'last_error="it doesn\'t answer"' in watched.outage
        store.gate.set()
    assert watched.outage == ""


async def test_attempts_that_the_store_repeats_by_itself_are_an_outage(
    watched: WatchedStore, store: Store
) -> None:
    store.told = ObjectStoreStatistics(consecutive_failures=1, last_error="once")
    watched.look()
    assert watched.outage == ""
    store.told = ObjectStoreStatistics(consecutive_failures=2, last_error="twice")
    watched.look()
    assert "last_error='twice'" in watched.outage


async def test_a_start_gives_up_after_its_time_and_a_running_broker_never(store: Store, clock: Clock) -> None:
    store.error = UnavailableError("no route")
    async with WatchedStore.open(store, clock, 10) as watched:  # type: ignore[arg-type]
        with pytest.raises(UnavailableError):
            await watched.head("k")
        clock.now_s += 9
        watched.look()
        clock.now_s += 1
        with pytest.raises(
            UnavailableError, match=r"broker.start_timeout: fake://place .*last_error='no route'"
        ):
            watched.look()
        watched.started()
        clock.now_s += 1000
        watched.look()


async def test_an_append_reaches_a_store_that_has_it_and_is_refused_by_others(
    clock: Clock, tmp_path: Path
) -> None:
    services = Services(node_id=1, epoch=1, cluster_id="c", data_dir=tmp_path, clock=clock)
    spec = penstock_register_object_store()
    async with spec.open(spec.settings(url=f"memory://{tmp_path}"), services) as store:
        watched = WatchedStore(store, clock)
        await watched.append("k", [b"a"], 0)
        await watched.append("k", [b"b"], 1)
        assert bytes(await watched.get("k")) == b"ab"
    async with spec.open(spec.settings(url="file://objects"), services) as store:
        with pytest.raises(InvalidRequestError, match="no append"):
            await WatchedStore(store, clock).append("k", [b"a"], 0)
