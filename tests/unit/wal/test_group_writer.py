"""The writer whose writes are awaited, on a medium that the test steers: no time is waited for but by its clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from tests.patience import HANG_S

from penstock.errors import ClosedError, CorruptError, FencedError, UnavailableError
from penstock.spi.wal import WalAppend
from penstock.wal import Group, GroupCommit, GroupWriter

pytestmark = pytest.mark.anyio

GROUP_BYTES_MAX = 1000


class Medium:
    """Writes stay under way until the test ends them."""

    def __init__(self, **options: Any) -> None:
        self.now = 0.0
        self.begun: list[int] = []
        self.writes: dict[int, anyio.Event] = {}
        self.errors: dict[int, Exception] = {}
        self.begin_errors: dict[int, Exception] = {}
        self.cancelled: list[int] = []
        self.told: list[Exception] = []
        self.entries: dict[int, int] = {}
        self.commit = GroupCommit(group_bytes_max=GROUP_BYTES_MAX)
        self.commit.start(0, 0)
        options = {"writes_max": 3, "linger_s": 3600.0, **options}
        self.writer = GroupWriter(
            self.commit,
            begin=self._begin,
            write=self._write,
            failed=self.told.append,
            clock=lambda: self.now,
            **options,
        )
        #: Indexes of appends, as they end.
        self.acked: list[int] = []
        self.failed: dict[int, Exception] = {}
        self._count = 0

    async def _begin(self, group: Group) -> int:
        if error := self.begin_errors.get(group.sequence):
            raise error
        self.begun.append(group.sequence)
        self.entries[group.sequence] = len(group.entries)
        return group.sequence

    async def _write(self, number: int) -> None:
        self.writes[number] = anyio.Event()
        try:
            await self.writes[number].wait()
        except anyio.get_cancelled_exc_class():
            self.cancelled.append(number)
            raise
        if error := self.errors.get(number):
            raise error

    def append(self, size: int = 100) -> WalAppend:
        append = self.commit.append([bytes(size)])
        index = self._count
        self._count += 1

        def ended(append: WalAppend) -> None:
            if append.error is None:
                self.acked.append(index)
            else:
                self.failed[index] = append.error

        append.set_callback(ended)
        self.writer.wake()
        return append

    async def land(self, number: int, error: Exception | None = None) -> None:
        if error is not None:
            self.errors[number] = error
        self.writes[number].set()
        await wait_all_tasks_blocked()


@asynccontextmanager
async def opened(**options: Any) -> AsyncIterator[Medium]:
    """A medium and its open writer; what is under way at the end is let land."""
    medium = Medium(**options)
    async with medium.writer:
        yield medium
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_land_all, medium)
            await medium.writer.close()
            tasks.cancel_scope.cancel()


async def _land_all(medium: Medium) -> None:
    """Until it is cancelled."""
    while True:
        for write in list(medium.writes.values()):
            write.set()
        await anyio.lowlevel.checkpoint()


async def test_a_lone_append_is_not_held_back() -> None:
    """The linger time is an hour, which the test would run into."""
    async with opened() as medium:
        medium.append()
        await wait_all_tasks_blocked()
        assert medium.begun == [0]
        await medium.land(0)
        assert medium.acked == [0]


async def test_what_one_turn_of_the_loop_appends_goes_together() -> None:
    async with opened() as medium:
        for _ in range(5):
            medium.append()
        await wait_all_tasks_blocked()
        assert medium.entries == {0: 5}


async def test_what_comes_beside_a_write_lingers_for_company_and_goes_with_the_next() -> None:
    async with opened() as medium:
        medium.append()
        await wait_all_tasks_blocked()
        for _ in range(4):
            medium.append()
            await wait_all_tasks_blocked()
        assert medium.begun == [0], "it lingers"
        await medium.land(0)
        assert medium.entries == {0: 1, 1: 4}, "nothing is under way any more, so it goes"


async def test_nothing_lingers_longer_than_it_may() -> None:
    async with opened(linger_s=0.0) as medium:
        medium.append()
        await wait_all_tasks_blocked()
        medium.append()
        await wait_all_tasks_blocked()
        assert medium.begun == [0, 1]


async def test_the_timer_runs_out_beside_a_write_that_never_ends() -> None:
    async with opened(linger_s=0.001) as medium:
        medium.append()
        await wait_all_tasks_blocked()
        medium.append()
        medium.now = 1.0
        with anyio.fail_after(HANG_S):
            while 1 not in medium.writes:
                await anyio.lowlevel.checkpoint()


async def test_under_load_groups_fill_to_the_limit() -> None:
    async with opened() as medium:
        for _ in range(30):
            medium.append()
        await wait_all_tasks_blocked()
        full = (GROUP_BYTES_MAX - 72) // 124
        assert medium.entries == {0: full, 1: full, 2: full}, "as many as may be under way, each full"


async def test_no_more_writes_are_under_way_than_allowed() -> None:
    async with opened(writes_max=2) as medium:
        for _ in range(50):
            medium.append()
        await wait_all_tasks_blocked()
        assert medium.begun == [0, 1]
        await medium.land(1)
        assert medium.begun == [0, 1], "the oldest one still is, so nothing is completed"
        await medium.land(0)
        assert medium.begun == [0, 1, 2, 3]


async def test_appends_complete_in_order_whichever_write_ends_first() -> None:
    async with opened(linger_s=0.0) as medium:
        for _ in range(3):
            medium.append()
            await wait_all_tasks_blocked()
        await medium.land(2)
        await medium.land(1)
        assert medium.acked == []
        await medium.land(0)
        assert medium.acked == [0, 1, 2]


async def test_after_a_failed_write_nothing_later_is_acknowledged_and_what_was_earlier_is() -> None:
    async with opened(linger_s=0.0) as medium:
        for _ in range(3):
            medium.append()
            await wait_all_tasks_blocked()
        await medium.land(1, UnavailableError("lost"))
        await medium.land(2)
        assert (medium.acked, medium.failed) == ([], {}), "the first one's end isn't known"
        await medium.land(0)
        assert medium.acked == [0]
        assert {index: str(error) for index, error in medium.failed.items()} == {1: "lost", 2: "lost"}
        assert [str(error) for error in medium.told] == ["lost"]
        with pytest.raises(ClosedError):
            medium.append()
        assert medium.commit.state == "failed"


async def test_a_group_that_can_not_be_begun_fails_and_the_one_before_is_acknowledged() -> None:
    async with opened(linger_s=0.0) as medium:
        medium.begin_errors[1] = CorruptError("no")
        medium.append()
        await wait_all_tasks_blocked()
        medium.append()
        await wait_all_tasks_blocked()
        await medium.land(0)
        assert medium.acked == [0]
        assert [type(error) for error in medium.failed.values()] == [CorruptError]


async def test_a_fenced_write_fences() -> None:
    async with opened() as medium:
        medium.append()
        await wait_all_tasks_blocked()
        await medium.land(0, FencedError("taken over"))
        assert medium.commit.state == "fenced"
        with pytest.raises(FencedError, match="taken over"):
            medium.append()


async def test_an_error_that_is_no_error_of_a_medium_is_told_as_one() -> None:
    """Whoever appended isn't asked to know of it; it is told to the loop's handler, with its traceback."""
    told: list[object] = []
    async with opened() as medium:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
        append = medium.append()
        await wait_all_tasks_blocked()
        await medium.land(0, ZeroDivisionError("a bug"))
        with pytest.raises(UnavailableError, match="the wal's writer failed"):
            await append.wait_durable()
    assert told == ["a bug ended the writer of the wal"]


async def test_leaving_writes_what_is_pending() -> None:
    async with opened() as medium:
        medium.append()
        await wait_all_tasks_blocked()
        for _ in range(20):
            medium.append()
    assert medium.acked == list(range(21))


async def test_leaving_by_cancellation_writes_what_is_pending() -> None:
    medium = Medium()
    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:
            async with medium.writer:
                medium.append()
                await wait_all_tasks_blocked()
                medium.append()
                tasks.start_soon(_land_all, medium)
                scope.cancel()
        tasks.cancel_scope.cancel()
    assert medium.acked == [0, 1]
    assert medium.cancelled == []


async def test_a_write_that_hangs_is_cancelled_at_the_end_and_everybody_is_answered() -> None:
    medium = Medium(close_timeout_s=0.01)
    async with medium.writer:
        medium.append()
        await wait_all_tasks_blocked()
        medium.append()
    assert sorted(medium.cancelled) == [0, 1]
    assert [type(error) for error in medium.failed.values()] == [ClosedError] * 2


async def test_what_the_body_raises_is_no_group() -> None:
    medium = Medium()
    with pytest.raises(KeyError):
        async with medium.writer:
            raise KeyError


async def test_a_callback_that_raises_is_told_and_the_others_run() -> None:
    told: list[object] = []
    async with opened() as medium:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
        bad = medium.commit.append([b"x"])
        bad.set_callback(lambda _: 1 / 0)  # type: ignore[arg-type]
        medium.append()
        await wait_all_tasks_blocked()
        await medium.land(0)
        assert medium.acked == [0]
        medium.append()
        await wait_all_tasks_blocked()
        await medium.land(1)
        assert medium.acked == [0, 1], "it goes on"
    assert told == ["a callback of the wal raised"]


async def test_holding_waits_for_what_is_under_way_and_begins_nothing() -> None:
    async with opened() as medium, anyio.create_task_group() as tasks:
        medium.append()
        await wait_all_tasks_blocked()
        held = anyio.Event()

        async def hold() -> None:
            await medium.writer.hold()
            held.set()

        tasks.start_soon(hold)
        await wait_all_tasks_blocked()
        assert not held.is_set()
        medium.append()
        await medium.land(0)
        assert held.is_set()
        assert medium.begun == [0]
        medium.writer.resume()
        await wait_all_tasks_blocked()
        assert medium.begun == [0, 1]


async def test_nothing_runs_while_nothing_is_pending(monkeypatch: pytest.MonkeyPatch) -> None:
    """No request when idle: the pump has no timer to wake it."""
    timers: list[asyncio.TimerHandle] = []
    loop = asyncio.get_running_loop()
    call_later = loop.call_later

    def told(*args: Any, **options: Any) -> asyncio.TimerHandle:
        timers.append(call_later(*args, **options))
        return timers[-1]

    monkeypatch.setattr(loop, "call_later", told)
    async with opened(linger_s=0.05) as medium:
        medium.append()
        await wait_all_tasks_blocked()
        await medium.land(0)
        assert all(timer.cancelled() for timer in timers)
        assert medium.begun == [0]
    async with opened(linger_s=0.05) as medium:
        medium.append()
        await wait_all_tasks_blocked()
        medium.append()  # lingers
        await wait_all_tasks_blocked()
        assert any(not timer.cancelled() for timer in timers)
        await medium.land(0, UnavailableError("lost"))
        assert list(medium.failed) == [0, 1]
        assert all(timer.cancelled() for timer in timers), "what lingered was answered, its timer goes, too"
