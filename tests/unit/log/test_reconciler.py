"""What is marked is made so: in few passes, one at a time for each, and again until it works."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import pytest
from anyio.abc import TaskGroup
from tests.patience import HANG_S

from penstock.errors import ClosedError, FencedError, PenstockError, UnavailableError
from penstock.log import reconciler as reconciler_module
from penstock.log.reconciler import Reconciler

pytestmark = pytest.mark.anyio
A, B, C = b"a", b"b", b"c"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciler_module, "_PAUSES_S", (0,))


@dataclass
class Work:
    """Notes its passes; what is in ``errors`` fails once, and ``gate`` holds it up."""

    passes: list[Sequence[bytes]] = field(default_factory=list)
    errors: dict[bytes, PenstockError] = field(default_factory=dict)
    raises: list[PenstockError] = field(default_factory=list)
    gate: anyio.Event = field(default_factory=anyio.Event)
    under_way: set[bytes] = field(default_factory=set)

    async def reconcile(self, ids: Sequence[bytes]) -> dict[bytes, PenstockError]:
        self.passes.append(list(ids))
        assert self.under_way.isdisjoint(ids), "one pass at a time for each"
        self.under_way.update(ids)
        try:
            await self.gate.wait()
            if self.raises:
                raise self.raises.pop(0)
            return {one: self.errors.pop(one) for one in ids if one in self.errors}
        finally:
            self.under_way.difference_update(ids)


@asynccontextmanager
async def opened(work: Work) -> AsyncIterator[tuple[Reconciler, TaskGroup]]:
    with anyio.fail_after(HANG_S):
        async with anyio.create_task_group() as tasks:
            yield Reconciler(work.reconcile, tasks), tasks
            tasks.cancel_scope.cancel()


async def test_marks_of_one_turn_share_a_pass_and_later_ones_come_again() -> None:
    work = Work()
    async with opened(work) as (reconciler, _):
        reconciler.mark([A, B])
        reconciler.mark([A])
        await anyio.wait_all_tasks_blocked()
        assert work.passes == [[A, B]]
        reconciler.mark([A, C])
        await anyio.wait_all_tasks_blocked()
        assert work.passes == [[A, B], [C]], "another one isn't held up; A is under way"
        work.gate.set()
        await reconciler.settled([A, B, C])
        assert work.passes == [[A, B], [C], [A]]


async def test_settled_waits_for_what_was_marked_before() -> None:
    work = Work()
    async with opened(work) as (reconciler, tasks):
        await reconciler.settled([A])
        reconciler.mark([A])
        done: list[bytes] = []

        async def wait() -> None:
            await reconciler.settled([A])
            done.append(A)

        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        assert not done
        work.gate.set()
        await anyio.wait_all_tasks_blocked()
        assert done


async def test_what_fails_is_told_to_who_waits_and_tried_again_alone() -> None:
    work = Work(errors={A: UnavailableError("not now")})
    work.gate.set()
    async with opened(work) as (reconciler, _):
        reconciler.mark([A, B])
        await reconciler.settled([B])
        with pytest.raises(UnavailableError, match="not now"):
            await reconciler.settled([A, B])
        await anyio.wait_all_tasks_blocked()
        assert work.passes == [[A, B], [A]]
        reconciler.mark([A])
        await reconciler.settled([A])


async def test_an_error_of_the_whole_pass_is_everyones() -> None:
    work = Work(raises=[UnavailableError("the log hangs")])
    work.gate.set()
    async with opened(work) as (reconciler, _):
        reconciler.mark([A, B])
        for one in (A, B):
            with pytest.raises(UnavailableError, match="the log hangs"):
                await reconciler.settled([one])
        await anyio.wait_all_tasks_blocked()
        assert work.passes == [[A, B], [A, B]]


@pytest.mark.parametrize("error", [FencedError("another life"), ClosedError("the end")])
async def test_who_is_fenced_or_closed_tries_nothing_again(error: PenstockError) -> None:
    work = Work(raises=[error])
    work.gate.set()
    async with opened(work) as (reconciler, _):
        reconciler.mark([A])
        with pytest.raises(type(error)):
            await reconciler.settled([A])
        await anyio.wait_all_tasks_blocked()
        assert work.passes == [[A]]


async def test_what_a_pass_sees_itself_needs_no_other() -> None:
    """Its own commands mark what it is at."""
    work = Work()
    async with opened(work) as (reconciler, _):
        reconciler.mark([A])
        await anyio.wait_all_tasks_blocked()
        reconciler.mark([A])
        reconciler.unmark([A])
        work.gate.set()
        await reconciler.settled([A])
        assert work.passes == [[A]]


async def test_the_end_begins_nothing_and_lets_nobody_wait() -> None:
    work = Work()
    async with opened(work) as (reconciler, tasks):
        reconciler.mark([A])
        await anyio.wait_all_tasks_blocked()
        failed: list[PenstockError] = []

        async def wait() -> None:
            try:
                await reconciler.settled([A])
            except ClosedError as error:
                failed.append(error)

        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        reconciler.end()
        reconciler.mark([B])
        await anyio.wait_all_tasks_blocked()
        assert len(failed) == 1
        assert work.passes == [[A]]
