"""The mechanisms of ``penstock.work``, on a virtual clock."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from random import Random

import anyio
import pytest
from tests.patience import HANG_S

from penstock.errors import ClosedError, InvariantError, UnavailableError
from penstock.work.finish import Finisher
from penstock.work.periodic import Jobs, PeriodicJob
from penstock.work.pieces import pieces
from penstock.work.retry import Backoff, doubling, retry
from penstock.work.room import Room

pytestmark = pytest.mark.anyio
logger = logging.getLogger("penstock.test")


class VirtualClock:
    """Time passes only while somebody sleeps; the job is cancelled when it is over."""

    def __init__(self, ends_at: float) -> None:
        self.now = 0.0
        self.sleeps: list[float] = []
        self._ends_at = ends_at

    def __call__(self) -> float:
        return self.now

    async def sleep(self, pause_s: float) -> None:
        await anyio.lowlevel.checkpoint()
        if self.now + pause_s > self._ends_at:
            raise _OverError
        self.sleeps.append(pause_s)
        self.now += pause_s


class _OverError(Exception):
    """The virtual time is over."""


# -- pieces --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("items", "size", "wanted"),
    [
        ([], 2, []),
        ([1], 2, [[1]]),
        ([1, 2], 2, [[1, 2]]),
        ([1, 2, 3], 2, [[1, 2], [3]]),
        ([1, 2], 9, [[1, 2]]),
    ],
)
def test_pieces_are_all_items_in_order(items: list[int], size: int, wanted: list[list[int]]) -> None:
    assert [list(piece) for piece in pieces(items, size)] == wanted


# -- retry ---------------------------------------------------------------------------------------------------


def test_pauses_double_up_to_the_last() -> None:
    assert doubling(1, 10) == (1, 2, 4, 8, 10)
    assert doubling(10, 10) == (10,)
    assert doubling(20, 10) == (10,)
    assert doubling(0, 10) == (0,)


def test_the_last_pause_comes_again_and_a_success_begins_anew() -> None:
    backoff = Backoff((1, 2, 5))
    assert [backoff.failed() for _ in range(5)] == [1, 2, 5, 5, 5]
    backoff.succeeded()
    assert backoff.failed() == 1


def test_jitter_spreads_a_pause_around_its_length() -> None:
    pauses = [Backoff((10,), jitter=0.2, random=Random(seed).random).failed() for seed in range(200)]
    assert 8 <= min(pauses) < 8.5
    assert 11.5 < max(pauses) <= 12


def test_people_are_told_of_the_first_the_fifth_and_every_so_many_failures() -> None:
    backoff = Backoff((0,), told_every=10)
    told = []
    for number in range(1, 31):
        backoff.failed()
        if backoff.is_news:
            told.append(number)
    assert told == [1, 5, 10, 20, 30]


async def test_a_step_is_repeated_until_it_succeeds(caplog: pytest.LogCaptureFixture) -> None:
    clock = VirtualClock(100)
    outcomes: list[str | Exception] = [UnavailableError("no"), UnavailableError("not yet"), "done"]
    failures: list[str] = []

    async def step() -> str:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    result = await retry(
        "the step",
        step,
        (1, 3),
        logger=logger,
        on_failure=lambda error: failures.append(str(error)),
        sleep=clock.sleep,
    )
    assert (result, clock.sleeps, failures) == ("done", [1, 3], ["no", "not yet"])
    assert "the step failed 1 times, trying again: no" in caplog.text
    assert "the step works again after 2 failures" in caplog.text


async def test_what_cannot_be_retried_is_raised_at_once() -> None:
    async def step() -> None:
        raise InvariantError("broken")

    with pytest.raises(InvariantError):
        await retry("the step", step, (1,), logger=logger)


# -- periodic ------------------------------------------------------------------------------------------------


async def _run(clock: VirtualClock, job: PeriodicJob) -> None:
    with pytest.raises(_OverError):
        await job.run()


def _job(clock: VirtualClock, outcomes: Sequence[Exception | None], **options: object) -> PeriodicJob:
    left = list(outcomes)

    async def work() -> None:
        clock.now += 0.5
        outcome = left.pop(0) if left else None
        if outcome is not None:
            raise outcome

    return PeriodicJob("the job", work, 10, logger=logger, clock=clock, sleep=clock.sleep, **options)  # type: ignore[arg-type]


async def test_a_job_runs_after_each_interval() -> None:
    clock = VirtualClock(35)
    job = _job(clock, [])
    await _run(clock, job)
    assert clock.sleeps == [10, 10, 10]
    statistics = job.statistics()
    assert (statistics.runs, statistics.failures, statistics.last_ms, statistics.last_error) == (
        3,
        0,
        500,
        "",
    )


async def test_the_first_run_may_come_sooner() -> None:
    clock = VirtualClock(25)
    await _run(clock, _job(clock, [], first_s=1))
    assert clock.sleeps == [1, 10, 10]


async def test_a_failed_run_is_told_counted_and_put_off(caplog: pytest.LogCaptureFixture) -> None:
    clock = VirtualClock(25)
    job = _job(clock, [None, UnavailableError("the store is away")])
    await _run(clock, job)
    assert clock.sleeps == [10, 10]
    assert "the job failed, trying again in 10000 ms: the store is away" in caplog.text
    assert (job.statistics().runs, job.statistics().failures) == (1, 1)
    assert job.statistics().last_error == "the store is away"


async def test_failed_runs_have_pauses_of_their_own_until_one_succeeds() -> None:
    clock = VirtualClock(40)
    away = UnavailableError("away")
    await _run(clock, _job(clock, [away, away, None, away], retry_s=(1, 2)))
    assert clock.sleeps == [10, 1, 2, 10, 1, 10]


async def test_an_error_that_cannot_be_retried_ends_the_job() -> None:
    clock = VirtualClock(100)
    with pytest.raises(InvariantError):
        await _job(clock, [None, InvariantError("broken")]).run()
    assert clock.sleeps == [10, 10]


async def test_the_pauses_of_a_job_are_spread() -> None:
    clock = VirtualClock(1000)
    await _run(clock, _job(clock, [], jitter=0.1, random=Random(1)))
    assert len(set(clock.sleeps)) > 50
    assert all(9 <= pause <= 11 for pause in clock.sleeps)


async def test_a_job_may_be_of_plain_calls() -> None:
    clock = VirtualClock(25)
    ran: list[float] = []
    job = PeriodicJob(
        "the job", lambda: ran.append(clock.now), 10, logger=logger, clock=clock, sleep=clock.sleep
    )
    await _run(clock, job)
    assert ran == [10, 20]


async def test_a_paused_job_runs_once_it_is_resumed() -> None:
    clock = VirtualClock(25)
    job = _job(clock, [])
    job.pause()
    with anyio.fail_after(HANG_S):
        async with anyio.create_task_group() as tasks:

            async def run() -> None:
                await _run(clock, job)

            tasks.start_soon(run)
            await anyio.wait_all_tasks_blocked()
            assert job.statistics().paused
            assert job.statistics().runs == 0
            job.resume()
    assert job.statistics().runs == 2
    assert not job.statistics().paused


async def test_a_job_tells_when_it_runs_next() -> None:
    clock = VirtualClock(25)
    told: list[float] = []
    job = PeriodicJob(
        "the job",
        lambda: told.append(job.statistics().next_s),
        10,
        logger=logger,
        clock=clock,
        sleep=clock.sleep,
    )
    assert job.statistics().next_s == 0, "nobody runs it yet"
    await _run(clock, job)
    assert told == [0, 0], "it is under way"
    assert job.statistics().next_s == 10
    clock.now += 4
    assert job.statistics().next_s == 6


async def test_the_jobs_of_a_room_are_run_and_told_together() -> None:
    clock = VirtualClock(25)
    jobs = Jobs(_job(clock, []), PeriodicJob("Look at it", lambda: None, 10, logger=logger))
    with pytest.raises(ExceptionGroup):
        async with anyio.create_task_group() as tasks:
            jobs.start(tasks)
    told = jobs.statistics().by_name
    assert {name: job.runs for name, job in told.items()} == {"the_job": 2, "look_at_it": 0}


def test_two_jobs_of_a_room_with_one_name_are_refused() -> None:
    job = PeriodicJob("upload", lambda: None, 10, logger=logger)
    with pytest.raises(InvariantError, match="two jobs of a room have one name"):
        Jobs(job, job)


# -- room ----------------------------------------------------------------------------------------------------


async def test_all_who_wait_for_room_are_woken_and_later_ones_wait_anew() -> None:
    room = Room()
    woken: list[int] = []

    async def wait(number: int) -> None:
        await room.wait()
        woken.append(number)

    with anyio.fail_after(HANG_S):
        async with anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(wait, number)
            await anyio.wait_all_tasks_blocked()
            assert room.waiters == 3
            room.wake()
            await anyio.wait_all_tasks_blocked()
            assert (sorted(woken), room.waiters) == ([0, 1, 2], 0)
            tasks.start_soon(wait, 3)
            await anyio.wait_all_tasks_blocked()
            assert room.waiters == 1
            room.wake()
    assert woken[3:] == [3]


async def test_who_gives_up_waiting_for_room_is_not_counted() -> None:
    room = Room()
    with anyio.move_on_after(0):
        await room.wait()
    assert room.waiters == 0


# -- finish --------------------------------------------------------------------------------------------------


def _finisher(tasks: anyio.abc.TaskGroup, waiting_max: int = 10) -> Finisher:
    return Finisher(tasks, waiting_max=waiting_max, full="too much to do", stopped="the room has ended")


async def test_work_is_finished_although_who_asked_for_it_was_cancelled() -> None:
    done: list[str] = []
    go_on = anyio.Event()

    async def work() -> None:
        await go_on.wait()
        done.append("whole")

    async with anyio.create_task_group() as tasks:
        finisher = _finisher(tasks)
        with anyio.move_on_after(0):
            await finisher.finish(work)
        assert (done, finisher.waiting) == ([], 1)
        go_on.set()
    assert (done, finisher.waiting) == (["whole"], 0)


async def test_the_result_of_work_is_returned_and_its_error_raised() -> None:
    async def work() -> int:
        return 7

    async def fail() -> int:
        raise ValueError("odd")

    async with anyio.create_task_group() as tasks:
        finisher = _finisher(tasks)
        assert await finisher.finish(work) == 7
        with pytest.raises(ValueError, match="odd"):
            await finisher.finish(fail)


async def test_an_error_that_nobody_waits_for_is_dropped_if_it_may_happen_and_ends_the_room_if_not() -> None:
    async def leave(error: Exception) -> None:
        async def fail() -> None:
            await anyio.lowlevel.checkpoint()
            raise error

        async with anyio.create_task_group() as tasks:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await _finisher(tasks).finish(fail)

    await leave(UnavailableError("away"))
    with pytest.raises(ExceptionGroup):
        await leave(ValueError("a mistake"))


async def test_work_that_the_end_of_the_room_cut_off_is_told_as_such() -> None:
    async with anyio.create_task_group() as outer, anyio.create_task_group() as tasks:
        finisher = _finisher(tasks)

        async def ask() -> None:
            with pytest.raises(ClosedError, match="the room has ended"):
                await finisher.finish(anyio.sleep_forever)

        outer.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()


async def test_what_is_under_way_is_bounded() -> None:
    async with anyio.create_task_group() as tasks:
        finisher = _finisher(tasks, waiting_max=1)
        with anyio.move_on_after(0):
            await finisher.finish(anyio.sleep_forever)
        with pytest.raises(UnavailableError, match=r"too much to do: waiting=1"):
            await finisher.finish(anyio.lowlevel.checkpoint)
        tasks.cancel_scope.cancel()
