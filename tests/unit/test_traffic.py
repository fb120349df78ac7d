"""Classes of traffic share one object store: what is urgent goes first, and nobody starves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from random import Random
from typing import Any

import anyio
import pytest
from tests.patience import HANG_S

from penstock.errors import InvariantError
from penstock.spi.object_store import ObjectInfo, ObjectStoreCapabilities, ObjectStoreStatistics
from penstock.spi.plugin import Buffer
from penstock.spi.traffic import Traffic
from penstock.work.traffic import PLACE_BYTES, SharedStore, Turns, view_of

pytestmark = pytest.mark.anyio

OTHERS = [traffic for traffic in Traffic if traffic is not Traffic.WAL]


def fill(turns: Turns[str], traffic: Traffic) -> int:
    """Begin requests of one place until one has to wait; how many began."""
    count = 0
    while turns.begin(traffic, 1, f"{traffic} {count}"):
        count += 1
    return count


# -- the rule ------------------------------------------------------------------------------------------------


def test_a_request_of_the_wal_begins_at_once_however_many_others_there_are() -> None:
    turns = Turns[str](64)
    for traffic in OTHERS:
        fill(turns, traffic)
    assert sum(map(turns.running, OTHERS)) <= 48
    assert all(turns.begin(Traffic.WAL, 1, "wal") for _ in range(100))


@pytest.mark.parametrize(
    ("traffic", "most"),
    [
        (Traffic.TAIL, 36),
        (Traffic.CATCH_UP, 24),
        (Traffic.UPLOAD, 24),
        (Traffic.COMPACTION, 6),
        (Traffic.LAKE, 12),
    ],
)
def test_a_class_has_at_most_its_part_of_what_the_wal_leaves(traffic: Traffic, most: int) -> None:
    assert fill(Turns(64), traffic) == most


def test_a_place_that_becomes_free_goes_to_the_most_urgent_class() -> None:
    turns = Turns[str](64)
    fill(turns, Traffic.CATCH_UP)
    fill(turns, Traffic.UPLOAD)  # now all 48 are taken, and one of each waits
    assert not turns.begin(Traffic.LAKE, 1, "first of the lake")
    assert not turns.begin(Traffic.TAIL, 1, "first of the tail")
    assert not turns.begin(Traffic.TAIL, 1, "second of the tail")
    order = [turns.end(Traffic.UPLOAD, 1) for _ in range(4)]
    # what has nothing on its way comes first, then what is urgent: the second of the tail before the next catch-up
    assert order == [["first of the tail"], ["first of the lake"], ["second of the tail"], ["upload 24"]]


def test_a_class_with_nothing_on_its_way_comes_before_a_backlog_of_urgent_ones() -> None:
    turns = Turns[str](64)
    fill(turns, Traffic.TAIL)
    fill(turns, Traffic.CATCH_UP)
    for count in range(10):
        turns.begin(Traffic.TAIL, 1, f"more tail {count}")
    turns.begin(Traffic.LAKE, 1, "lake")
    assert turns.end(Traffic.TAIL, 1) == ["lake"]


def test_more_requests_of_the_wal_leave_fewer_places_but_never_less_than_half() -> None:
    turns = Turns[str](64)
    for _ in range(24):
        turns.begin(Traffic.WAL, 1, "wal")
    assert fill(turns, Traffic.TAIL) == 36
    assert fill(turns, Traffic.CATCH_UP) == 4
    crowded = Turns[str](64)
    for _ in range(1000):
        crowded.begin(Traffic.WAL, 1, "wal")
    assert fill(crowded, Traffic.TAIL) == 32


def test_a_large_request_takes_a_place_for_each_mebibyte_up_to_its_class() -> None:
    turns = Turns[str](64)
    assert turns.places(Traffic.CATCH_UP, 0) == 1
    assert turns.places(Traffic.CATCH_UP, PLACE_BYTES) == 1
    assert turns.places(Traffic.CATCH_UP, 4 * PLACE_BYTES) == 4
    assert turns.places(Traffic.CATCH_UP, 1000 * PLACE_BYTES) == 24
    assert turns.places(Traffic.WAL, 8 * PLACE_BYTES) == 1


def test_small_requests_do_not_pass_a_large_one_for_ever() -> None:
    turns = Turns[str](64)
    fill(turns, Traffic.CATCH_UP)  # and one waits
    assert not turns.begin(Traffic.CATCH_UP, 4, "large")
    assert not turns.begin(Traffic.CATCH_UP, 1, "small")
    assert turns.end(Traffic.CATCH_UP, 1) == ["catch_up 24"]
    assert [turns.end(Traffic.CATCH_UP, 1) for _ in range(3)] == [[], [], []]
    assert turns.end(Traffic.CATCH_UP, 1) == ["large"]


def test_who_gives_up_frees_the_way_for_who_waits_behind() -> None:
    turns = Turns[str](64)
    fill(turns, Traffic.LAKE)
    assert turns.end(Traffic.LAKE, 1) == ["lake 12"]
    assert not turns.begin(Traffic.LAKE, 12, "large")
    assert turns.end(Traffic.LAKE, 1) == []
    assert not turns.begin(Traffic.LAKE, 1, "small")
    assert turns.give_up(Traffic.LAKE, "large") == ["small"]
    with pytest.raises(InvariantError, match="traffic=lake"):
        turns.give_up(Traffic.LAKE, "large")


@pytest.mark.parametrize("seed", range(20))
def test_random_histories_stay_within_the_places_and_everybody_gets_one(seed: int) -> None:
    random = Random(seed)
    places = random.choice([1, 12, 16, 64, 200])
    turns = Turns[int](places)
    running: dict[int, tuple[Traffic, int]] = {}
    waiting: dict[int, tuple[Traffic, int]] = {}

    def begun(waiters: Sequence[int]) -> None:
        for each in waiters:
            running[each] = waiting.pop(each)

    for number in range(500):
        if random.random() < 0.6 or not running:
            traffic = random.choice(list(Traffic))
            wanted = traffic, turns.places(traffic, random.choice([0, 1, 2, 30, 500]) * PLACE_BYTES)
            at_once = turns.begin(*wanted, number)
            (running if at_once else waiting)[number] = wanted
            assert at_once or traffic is not Traffic.WAL
        elif waiting and random.random() < 0.2:
            gone = random.choice(list(waiting))
            traffic, _ = waiting.pop(gone)
            begun(turns.give_up(traffic, gone))
        else:
            begun(turns.end(*running.pop(random.choice(list(running)))))
        taken = sum(each for traffic, each in running.values() if traffic is not Traffic.WAL)
        assert taken <= max(places, 2 * len(Traffic)) * 3 // 4
        for traffic in Traffic:
            assert turns.running(traffic) == sum(each[0] is traffic for each in running.values())
            assert turns.waiting(traffic) == sum(each[0] is traffic for each in waiting.values())
    while running:
        number, ended = running.popitem()
        begun(turns.end(*ended))
    assert not waiting


# -- the store -----------------------------------------------------------------------------------------------


class SlowStore:
    """Keeps every request until it is told to answer, and notes the order in which they came."""

    location = "fake://slow"
    capabilities = ObjectStoreCapabilities(put_if_absent=True, multipart=True, requests_max=64)

    def __init__(self) -> None:
        self.began: list[str] = []
        self.answers = anyio.Semaphore(0)

    async def _answer(self, what: str) -> None:
        self.began.append(what)
        await self.answers.acquire()

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        await self._answer(f"get {key}")
        return bytes(10)

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        await self._answer(f"put {key}")
        return ""

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        for number in range(3):
            yield ObjectInfo(key=str(number), size=0)

    async def create_multipart(self, key: str) -> Any:
        return SlowUpload(self)

    def statistics(self) -> ObjectStoreStatistics:
        return ObjectStoreStatistics(gets=len(self.began))


class SlowUpload:
    def __init__(self, store: SlowStore) -> None:
        self.store = store

    async def write_part(self, part: Sequence[Buffer]) -> None:
        await self.store._answer("part")

    async def complete(self) -> None:
        await self.store._answer("complete")

    async def abort(self) -> None:
        self.store.began.append("abort")


@pytest.fixture
def slow() -> SlowStore:
    return SlowStore()


@pytest.fixture
def shared(slow: SlowStore) -> SharedStore:
    return SharedStore(slow, lambda: 0.0)  # type: ignore[arg-type] # as much of one as is needed


async def settle() -> None:
    with anyio.fail_after(HANG_S):
        await anyio.wait_all_tasks_blocked()


async def test_a_put_of_the_wal_does_not_wait_behind_a_hundred_catch_up_reads_of_a_store_at_its_limit(
    slow: SlowStore, shared: SharedStore
) -> None:
    catch_up, wal = shared.view(Traffic.CATCH_UP), shared.view(Traffic.WAL)
    async with anyio.create_task_group() as tasks:
        for number in range(100):
            tasks.start_soon(catch_up.get, str(number), 0, 10)
        await settle()
        assert len(slow.began) == 24
        tasks.start_soon(wal.put_if_absent, "log", [b"group"])
        await settle()
        assert slow.began[24:] == ["put log"]
        told = shared.statistics()
        assert (told.waiting["catch_up"], told.in_flight["catch_up"]) == (76, 24)
        assert (told.waiting["wal"], told.in_flight["wal"]) == (0, 1)
        for _ in range(101):
            slow.answers.release()
    told = shared.statistics()
    assert (told.requests["catch_up"], told.waits["catch_up"], told.bytes["catch_up"]) == (100, 76, 1000)
    assert (told.requests["wal"], told.waits["wal"], told.bytes["wal"]) == (1, 0, 5)
    assert set(told.in_flight.values()) == set(told.waiting.values()) == {0}


async def test_a_tail_read_passes_waiting_catch_up_reads_and_lake_reads(
    slow: SlowStore, shared: SharedStore
) -> None:
    async with anyio.create_task_group() as tasks:
        for traffic in (Traffic.UPLOAD, Traffic.CATCH_UP, Traffic.LAKE):
            for _ in range(50):
                tasks.start_soon(shared.view(traffic).get, traffic, 0, 10)
        await settle()
        tasks.start_soon(shared.view(Traffic.TAIL).get, "tail", 0, 10)
        await settle()
        assert "get tail" not in slow.began  # all places are taken
        slow.answers.release()
        await settle()
        assert slow.began[-1] == "get tail"
        tasks.cancel_scope.cancel()
    told = shared.statistics()
    assert set(told.in_flight.values()) == set(told.waiting.values()) == {0}


async def test_parts_of_an_upload_take_places_and_an_abort_needs_none(
    slow: SlowStore, shared: SharedStore
) -> None:
    view = shared.view(Traffic.UPLOAD)
    upload = await view.create_multipart("object")
    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(upload.write_part, [bytes(8 * PLACE_BYTES)])
        await settle()
        assert slow.began == ["part"] * 3
        await upload.abort()
        assert slow.began[-1] == "abort"
        tasks.cancel_scope.cancel()


async def test_a_listing_is_one_request_and_holds_no_place_between_two_objects(shared: SharedStore) -> None:
    listing = shared.view(Traffic.COMPACTION).list()
    assert (await anext(listing)).key == "0"
    assert shared.statistics().in_flight["compaction"] == 0
    assert [info.key async for info in listing] == ["1", "2"]
    assert shared.statistics().requests["compaction"] == 1


async def test_a_view_leads_to_the_view_of_another_class_and_a_plain_store_is_left_as_it_is(
    slow: SlowStore, shared: SharedStore
) -> None:
    lake = shared.view(Traffic.LAKE)
    assert view_of(lake, Traffic.LAKE) is lake
    assert view_of(lake, Traffic.WAL) is shared.view(Traffic.WAL)
    plain: Any = slow
    assert view_of(plain, Traffic.LAKE) is plain
    assert (lake.location, lake.capabilities) == (slow.location, slow.capabilities)
    assert lake.statistics().gets == 0
