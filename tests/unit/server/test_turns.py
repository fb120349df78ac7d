"""Turns on the loop: who asks for much gets slices, and everybody else is served in between."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import anyio.lowlevel
import pytest

from penstock.server.turns import SLICE_S, Turns, metered
from penstock.time_shares import WINDOW_S, TimeMember, TimeShares


class Work:
    """Needs so many slices, each of which takes ``SLICE_S``."""

    def __init__(self, loop: Loop, name: str, slices: int) -> None:
        self._loop = loop
        self._name = name
        self._slices = slices
        self.time = loop.shares.join(name)

    def turn(self) -> None:
        self._loop.now += SLICE_S
        self._loop.history.append(self._name)
        self._slices -= 1
        if self._slices:
            self._loop.turns.add(self)


class Loop:
    """Iterations of an event loop."""

    def __init__(self) -> None:
        self.now = 0.0
        self.history: list[str] = []
        self._next: list[Callable[[], None]] = []
        self._later: list[tuple[float, Callable[[], None]]] = []
        self.shares = TimeShares()
        self.turns = Turns(
            self._next.append,
            lambda at, call: self._later.append((at, call)),
            lambda: self.now,
            lambda: self.now,
            self.shares,
        )

    def iterate(self) -> None:
        calls, self._next[:] = list(self._next), []
        for call in calls:
            call()

    def idle(self) -> None:
        """Go to the next thing that is due."""
        self.now, call = self._later.pop(0)
        call()

    def limit(self, greedy: TimeMember) -> None:
        """Have it use all of the loop's time, beside others that use little."""
        modest = self.shares.join("modest")
        for _ in range(3):
            self.now += WINDOW_S
            self.shares.used(modest, SLICE_S, SLICE_S, self.now)
            self.shares.used(greedy, WINDOW_S, WINDOW_S, self.now)


def test_connections_take_turns_and_all_of_them_together_one_slice_per_iteration() -> None:
    loop = Loop()
    for name, slices in (("a", 3), ("b", 1), ("c", 2)):
        loop.turns.add(Work(loop, name, slices))
    for count in range(1, 7):
        loop.iterate()
        assert len(loop.history) == count
    assert loop.history == ["a", "b", "c", "a", "c", "a"]
    loop.iterate()
    assert len(loop.history) == 6
    assert len(loop.turns) == 0


def test_one_alone_gets_one_slice_per_iteration_too() -> None:
    loop = Loop()
    loop.turns.add(Work(loop, "a", 50))
    for _ in range(10):
        loop.iterate()
    assert loop.history == ["a"] * 10


def test_who_used_its_part_waits_until_it_may_go_on_and_others_go_first() -> None:
    loop = Loop()
    greedy = Work(loop, "a", 2)
    loop.limit(greedy.time)
    loop.turns.add(greedy)
    loop.turns.add(Work(loop, "b", 2))
    for _ in range(4):
        loop.iterate()
    assert loop.history == ["b", "b"]
    assert len(loop.turns) == 1
    for _ in range(20):
        loop.idle()
        loop.iterate()
        if not len(loop.turns):
            break
    assert loop.history == ["b", "b", "a", "a"]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_metered_handler_pays_for_its_time_returns_its_result_and_is_cancelled_where_it_waits() -> (
    None
):
    shares, now = TimeShares(), [0.0]
    member = shares.join("a")

    async def work(fails: bool) -> str:
        now[0] += 0.01
        await anyio.lowlevel.checkpoint()
        now[0] += 0.02
        if fails:
            raise ValueError("a fault of its own")
        return "done"

    assert await metered(work(False), member, shares, lambda: now[0], lambda: now[0]) == "done"
    assert member.used_s == pytest.approx(0.03)
    with pytest.raises(ValueError, match="a fault of its own"):
        await metered(work(True), member, shares, lambda: now[0], lambda: now[0])

    ended = []

    async def waits() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(True)

    async def run() -> None:
        await metered(waits(), member, shares, lambda: now[0], lambda: now[0])

    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await anyio.lowlevel.checkpoint()
            scope.cancel()
    assert ended
