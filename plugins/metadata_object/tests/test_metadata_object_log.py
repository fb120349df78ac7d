"""Appending, reading, snapshots and news, against a store in a dict with injected faults."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from penstock_metadata_object import Settings, penstock_register_metadata_log
from tests.patience import HANG_S

from penstock.errors import (
    AlreadyExistsError,
    CapabilityError,
    ClosedError,
    ConflictError,
    CorruptError,
    InvalidRequestError,
    NewerVersionError,
    NotFoundError,
    UnavailableError,
)
from penstock.spi.metadata_log import MetadataLog, MetadataSnapshot
from penstock.spi.object_store import (
    MultipartUpload,
    ObjectInfo,
    ObjectStoreCapabilities,
    ObjectStoreStatistics,
)
from penstock.spi.plugin import Buffer, Services

pytestmark = pytest.mark.anyio
Opener = Callable[..., AbstractAsyncContextManager[MetadataLog]]


class FakeStore:
    """Objects in a dict; ``fault`` names what the next put-if-absent does."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.capabilities = ObjectStoreCapabilities(put_if_absent=True, durability_domain="region")
        self.location = "fake://store"
        self.requests: list[str] = []
        self.fault = ""
        self.reads_in_flight = 0
        self.reads_in_flight_max = 0
        self.on_list: Callable[[str], None] | None = None

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        self.requests.append(f"get {key}")
        self.reads_in_flight += 1
        self.reads_in_flight_max = max(self.reads_in_flight, self.reads_in_flight_max)
        await checkpoint()
        self.reads_in_flight -= 1
        if key not in self.objects:
            raise NotFoundError(f"no such object: key={key}")
        return memoryview(self.objects[key])[start:end]

    async def head(self, key: str) -> ObjectInfo:
        self.requests.append(f"head {key}")
        await checkpoint()
        if key not in self.objects:
            raise NotFoundError(f"no such object: key={key}")
        return ObjectInfo(key=key, size=len(self.objects[key]))

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        self.requests.append(f"put {key}")
        await checkpoint()
        self.objects[key] = b"".join(body)
        return ""

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        self.requests.append(f"create {key}")
        await checkpoint()
        fault, self.fault = self.fault, ""
        if fault == "refuse":
            raise UnavailableError("the store failed before it applied")
        if key in self.objects:
            raise AlreadyExistsError(f"the object exists: key={key}")
        self.objects[key] = b"".join(body)
        if fault == "apply then fail":
            raise UnavailableError("the reply was lost")
        if fault == "apply then exists":
            raise AlreadyExistsError("the client sent it twice and met itself")
        return ""

    async def compare_and_swap(self, key: str, body: Sequence[Buffer], token: str) -> str:
        raise InvalidRequestError("not claimed")

    async def create_multipart(self, key: str) -> MultipartUpload:
        raise InvalidRequestError("not claimed")

    async def delete(self, keys: Sequence[str]) -> None:
        self.requests.append(f"delete {len(keys)}")
        await checkpoint()
        for key in keys:
            self.objects.pop(key, None)

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        self.requests.append(f"list {prefix}")
        await checkpoint()
        for key in sorted(self.objects):
            if key.startswith(prefix) and key > start_after:
                yield ObjectInfo(key=key, size=len(self.objects.get(key, b"")))

    def statistics(self) -> ObjectStoreStatistics:
        return ObjectStoreStatistics()


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def open_log(store: FakeStore, tmp_path: Path) -> Opener:
    """Opens another log on the test's store."""

    @asynccontextmanager
    async def opener(**settings: Any) -> AsyncIterator[MetadataLog]:
        services = Services(
            node_id=1, epoch=1, cluster_id="test", data_dir=tmp_path, object_store=store, clock=time.monotonic
        )
        async with penstock_register_metadata_log().open(Settings(**settings), services) as log:
            yield log

    return opener


def key(index: int) -> str:
    return f"metadata/log/{index:020d}"


@pytest.fixture
async def log(open_log: Opener) -> AsyncIterator[MetadataLog]:
    async with open_log() as opened:
        yield opened


async def entries(log: MetadataLog, start: int = 1) -> list[tuple[int, bytes]]:
    return [(entry.index, entry.data) async for entry in log.read(start)]


async def fill(log: MetadataLog, first: int, last: int) -> None:
    for index in range(first, last + 1):
        await log.append(index, b"entry %d" % index)


async def test_entries_come_back_in_order(log: MetadataLog) -> None:
    await fill(log, 1, 3)
    assert await entries(log) == [(1, b"entry 1"), (2, b"entry 2"), (3, b"entry 3")]
    assert await entries(log, 3) == [(3, b"entry 3")]
    assert await entries(log, 4) == []
    assert (log.statistics().appends, log.statistics().last_index) == (3, 3)


async def test_an_empty_log_has_no_entry_and_no_snapshot(log: MetadataLog) -> None:
    assert await entries(log) == []
    assert await log.read_snapshot() is None


async def test_a_taken_index_is_a_conflict_even_for_the_same_bytes(log: MetadataLog) -> None:
    await log.append(1, b"same")
    with pytest.raises(ConflictError):
        await log.append(1, b"same")
    assert log.statistics().conflicts == 1


async def test_of_two_logs_on_one_store_the_first_wins(log: MetadataLog, open_log: Opener) -> None:
    async with open_log() as other:
        await log.append(1, b"mine")
        with pytest.raises(ConflictError):
            await other.append(1, b"theirs")
        assert await entries(other) == [(1, b"mine")]
        await other.append(2, b"theirs")
        with pytest.raises(ConflictError):
            await log.append(2, b"mine")


async def test_a_gap_is_refused_known_or_unknown(
    log: MetadataLog, open_log: Opener, store: FakeStore
) -> None:
    await fill(log, 1, 2)
    async with open_log() as fresh:
        for appender in (log, fresh):
            with pytest.raises(InvalidRequestError, match="gap"):
                await appender.append(4, b"")
        await fresh.append(3, b"")
    with pytest.raises(InvalidRequestError):
        await log.append(0, b"")
    assert key(4) not in store.objects


async def test_a_snapshot_stands_for_its_lost_entry(
    log: MetadataLog, open_log: Opener, store: FakeStore
) -> None:
    """It holds everything, so the log goes on behind it; behind nothing else."""
    await fill(log, 1, 3)
    await log.write_snapshot(MetadataSnapshot(3, b"all"))
    await store.delete([key(3), key(2)])
    async with open_log() as again:
        for index in (3, 5):
            with pytest.raises((ConflictError, InvalidRequestError)):
                await again.append(index, b"no")
        await again.append(4, b"four")
        assert await entries(again, 4) == [(4, b"four")]


async def test_an_entry_past_the_limit_is_refused(open_log: Opener, store: FakeStore) -> None:
    async with open_log(entry_bytes_max=1024) as log:
        assert log.capabilities.entry_bytes_max == 1024
        await log.append(1, bytes(1024))
        with pytest.raises(InvalidRequestError, match="too large"):
            await log.append(2, bytes(1025))
    assert key(2) not in store.objects


@pytest.mark.parametrize("fault", ["apply then fail", "apply then exists"])
async def test_an_append_whose_reply_was_lost_is_a_success(
    log: MetadataLog, store: FakeStore, fault: str
) -> None:
    store.fault = fault
    await log.append(1, b"mine")
    await log.append(2, b"next")
    assert await entries(log) == [(1, b"mine"), (2, b"next")]


async def test_an_append_that_failed_may_be_tried_again(log: MetadataLog, store: FakeStore) -> None:
    store.fault = "refuse"
    with pytest.raises(UnavailableError):
        await log.append(1, b"mine")
    await log.append(1, b"mine")
    assert await entries(log) == [(1, b"mine")]


async def test_a_failed_append_whose_index_another_took_is_a_conflict(
    log: MetadataLog, open_log: Opener, store: FakeStore
) -> None:
    async with open_log() as other:
        await other.append(1, b"theirs")
    store.fault = "refuse"
    with pytest.raises(ConflictError):
        await log.append(1, b"mine")


async def test_of_many_appenders_exactly_one_wins_each_index(open_log: Opener) -> None:
    async def contend(name: bytes, won: list[tuple[int, bytes]]) -> None:
        async with open_log() as log:
            last = 0
            for attempt in range(40):
                async for entry in log.read(last + 1):
                    last = entry.index
                data = b"%s:%d" % (name, attempt)
                try:
                    await log.append(last + 1, data)
                except ConflictError:
                    continue
                won.append((last + 1, data))

    won: list[tuple[int, bytes]] = []
    async with anyio.create_task_group() as tasks:
        for name in (b"a", b"b", b"c", b"d", b"e", b"f"):
            tasks.start_soon(contend, name, won)
    async with open_log() as log:
        assert await entries(log) == sorted(won)
        assert log.statistics().last_index >= 40


async def test_thousands_of_entries_are_read_in_order_and_concurrently(
    log: MetadataLog, store: FakeStore
) -> None:
    await fill(log, 1, 1003)
    store.requests.clear()
    assert await entries(log, 2) == [(index, b"entry %d" % index) for index in range(2, 1004)]
    assert store.reads_in_flight_max == 16


async def test_a_missing_entry_is_corrupt_and_named(log: MetadataLog, store: FakeStore) -> None:
    await fill(log, 1, 40)
    del store.objects[key(30)]
    found: list[int] = []

    async def collect() -> None:
        async for entry in log.read(1):
            found.append(entry.index)

    with pytest.raises(CorruptError, match=r"key='metadata/log/0+30' index=30"):
        await collect()
    assert found == list(range(1, len(found) + 1))
    assert len(found) < 30


async def test_every_flipped_bit_of_an_entry_is_found(log: MetadataLog, store: FakeStore) -> None:
    await log.append(1, b"data")
    whole = store.objects[key(1)]
    for position in range(len(whole) * 8):
        broken = bytearray(whole)
        broken[position // 8] ^= 1 << position % 8
        store.objects[key(1)] = bytes(broken)
        is_newer = position // 8 in (4, 5) and broken[4:6] > whole[4:6]
        with pytest.raises(NewerVersionError if is_newer else CorruptError, match="index=1"):
            await entries(log)


async def test_an_entry_under_the_key_of_another_is_found(log: MetadataLog, store: FakeStore) -> None:
    await fill(log, 1, 2)
    store.objects[key(2)] = store.objects[key(1)]
    with pytest.raises(CorruptError, match="index 1"):
        await entries(log)


async def test_a_stranger_among_the_entries_is_reported(log: MetadataLog, store: FakeStore) -> None:
    store.objects["metadata/log/notes.txt"] = b""
    with pytest.raises(CorruptError, match=r"notes\.txt"):
        await entries(log)


async def test_an_index_out_of_range_is_refused(log: MetadataLog) -> None:
    with pytest.raises(InvalidRequestError):
        await entries(log, 0)
    await log.append(1, b"one")
    for index in (0, 2):
        with pytest.raises(InvalidRequestError):
            await log.write_snapshot(MetadataSnapshot(index, b"of nothing"))


async def test_an_empty_log_begins_with_a_snapshot_of_any_index(log: MetadataLog, open_log: Opener) -> None:
    """As if everything up to there had been dropped: by whom else it is asked, too."""
    await log.write_snapshot(MetadataSnapshot(2**31, b"all"))
    async with open_log() as again:
        for each in (log, again):
            with pytest.raises(NotFoundError):
                await entries(each, 1)
            for index in (1, 2**31):
                with pytest.raises(ConflictError):
                    await each.append(index, b"no")
        await again.append(2**31 + 1, b"next")
        assert await entries(log, 2**31 + 1) == [(2**31 + 1, b"next")]
        with pytest.raises(InvalidRequestError):
            await log.write_snapshot(MetadataSnapshot(2**32, b"of nothing"))


# --- snapshots -----------------------------------------------------------------------------------------


async def test_the_newest_snapshot_is_read(log: MetadataLog, open_log: Opener) -> None:
    await fill(log, 1, 5)
    await log.write_snapshot(MetadataSnapshot(3, b"state 3"))
    await log.write_snapshot(MetadataSnapshot(5, b"state 5"))
    async with open_log() as other:
        assert await other.read_snapshot() == MetadataSnapshot(5, b"state 5")
        assert other.statistics().snapshot_index == 5


async def test_the_span_of_the_older_snapshot_is_kept_and_the_rest_dropped(
    log: MetadataLog, store: FakeStore
) -> None:
    await fill(log, 1, 9)
    await log.write_snapshot(MetadataSnapshot(3, b"3"))
    assert await entries(log, 1) != []
    await log.write_snapshot(MetadataSnapshot(6, b"6"))
    assert sorted(name for name in store.objects if "/log/" in name) == [key(index) for index in range(4, 10)]
    assert [index for index, _ in await entries(log, 4)] == list(range(4, 10))
    with pytest.raises(NotFoundError):
        await entries(log, 3)
    await log.write_snapshot(MetadataSnapshot(9, b"9"))
    assert sorted(name for name in store.objects if "/log/" in name) == [key(7), key(8), key(9)]
    assert len([name for name in store.objects if "/snapshot/" in name]) == 2


async def test_a_snapshot_older_than_the_newest_changes_nothing(log: MetadataLog, store: FakeStore) -> None:
    await fill(log, 1, 5)
    await log.write_snapshot(MetadataSnapshot(4, b"4"))
    before = dict(store.objects)
    await log.write_snapshot(MetadataSnapshot(2, b"2"))
    assert store.objects == before


@pytest.mark.parametrize("cut", [0, 10, 41])
async def test_a_torn_newest_snapshot_is_corrupt_not_skipped(
    log: MetadataLog, store: FakeStore, cut: int
) -> None:
    await fill(log, 1, 2)
    await log.write_snapshot(MetadataSnapshot(1, b"state 1"))
    await log.write_snapshot(MetadataSnapshot(2, b"state 2"))
    newest = max(name for name in store.objects if "/snapshot/" in name)
    store.objects[newest] = store.objects[newest][:cut]
    with pytest.raises(CorruptError, match="index=2"):
        await log.read_snapshot()


async def test_a_writer_that_slept_through_two_snapshots_wins_no_dropped_index(
    log: MetadataLog, open_log: Opener, store: FakeStore
) -> None:
    """Its next index is vacant again because the entry was dropped; creating there must not count."""
    async with open_log() as sleeper:
        await sleeper.append(1, b"entry 1")
        await fill(log, 2, 9)
        await log.write_snapshot(MetadataSnapshot(4, b"4"))
        await log.write_snapshot(MetadataSnapshot(8, b"8"))
        assert key(2) not in store.objects
        with pytest.raises(ConflictError):
            await sleeper.append(2, b"deposed")
        assert key(2) not in store.objects


async def test_a_sleeper_that_knew_a_snapshot_wins_no_dropped_index(
    log: MetadataLog, open_log: Opener, store: FakeStore
) -> None:
    await fill(log, 1, 2)
    await log.write_snapshot(MetadataSnapshot(2, b"2"))
    async with open_log() as sleeper:
        assert await sleeper.read_snapshot() == MetadataSnapshot(2, b"2")
        await sleeper.append(3, b"entry 3")
        assert await entries(log, 3) == [(3, b"entry 3")]
        await fill(log, 4, 20)
        await log.write_snapshot(MetadataSnapshot(10, b"10"))
        await log.write_snapshot(MetadataSnapshot(19, b"19"))
        with pytest.raises(ConflictError):
            await sleeper.append(4, b"deposed")
        assert key(4) not in store.objects


async def test_a_leftover_of_a_deposed_writer_is_never_read(log: MetadataLog, store: FakeStore) -> None:
    """It died between creating the vacant entry and removing it, right below the entries that are kept."""
    await fill(log, 1, 9)
    stale = store.objects[key(4)]
    await log.write_snapshot(MetadataSnapshot(4, b"4"))
    await log.write_snapshot(MetadataSnapshot(8, b"8"))
    store.objects[key(4)] = stale
    with pytest.raises(NotFoundError):
        await entries(log, 4)
    await log.append(10, b"entry 10")
    await log.write_snapshot(MetadataSnapshot(10, b"10"))
    assert key(4) not in store.objects


async def test_an_append_with_a_known_snapshot_costs_two_requests(log: MetadataLog, store: FakeStore) -> None:
    await fill(log, 1, 2)
    await log.write_snapshot(MetadataSnapshot(2, b"2"))
    store.requests.clear()
    await log.append(3, b"")
    assert [request.split()[0] for request in store.requests] == ["create", "head"]


# --- news ----------------------------------------------------------------------------------------------


async def test_news_wake_a_waiter_without_any_request(log: MetadataLog, store: FakeStore) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(log.wait_for_news, 0)
        tasks.start_soon(log.wait_for_news, 0)
        for _ in range(20):
            await checkpoint()
        assert store.requests == []
        await log.append(1, b"")
    await log.wait_for_news(0)


async def test_a_lone_broker_that_waits_costs_no_request(open_log: Opener, store: FakeStore) -> None:
    async with open_log(follow_interval_ms_min="1ms", follow_interval_ms_max="1ms") as log:
        with anyio.move_on_after(0.02) as waited:
            await log.wait_for_news(0)
        assert waited.cancelled_caught
        assert store.requests == []


async def test_a_follower_hears_of_another_writer(log: MetadataLog, open_log: Opener) -> None:
    async with open_log(follow=True, follow_interval_ms_min="1ms", follow_interval_ms_max="2ms") as follower:
        assert follower.capabilities.shareable
        with anyio.fail_after(HANG_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(follower.wait_for_news, 0)
                await log.append(1, b"theirs")
        assert await entries(follower) == [(1, b"theirs")]


async def test_closing_answers_waiters(open_log: Opener) -> None:
    answers: list[Exception] = []

    async def wait(log: MetadataLog) -> None:
        try:
            await log.wait_for_news(0)
        except ClosedError as error:
            answers.append(error)

    async with anyio.create_task_group() as tasks:
        async with open_log() as log:
            tasks.start_soon(wait, log)
            await checkpoint()
            await checkpoint()
    assert len(answers) == 1
    with pytest.raises(ClosedError):
        await log.append(1, b"")


async def test_a_read_that_is_left_early_may_be_repeated(log: MetadataLog) -> None:
    await fill(log, 1, 40)
    reading: Any = log.read(1)
    async with aclosing(reading):
        async for entry in reading:
            assert entry.index == 1
            break
    assert len(await entries(log)) == 40


async def test_a_store_without_put_if_absent_is_refused(open_log: Opener, store: FakeStore) -> None:
    store.capabilities = replace(store.capabilities, put_if_absent=False)
    with pytest.raises(CapabilityError, match="put_if_absent"):
        async with open_log():
            pass


async def test_other_prefixes_are_other_logs(log: MetadataLog, open_log: Opener) -> None:
    await log.append(1, b"")
    async with open_log(prefix="other/") as other:
        assert await entries(other) == []
        assert other.location == "fake://store/other/"
