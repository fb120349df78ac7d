"""The writer thread: order, results, errors, and that nothing is left behind."""

from __future__ import annotations

import threading

import anyio
import pytest
from tests.patience import HANG_S

from penstock.errors import ClosedError
from penstock.threads import run_in_thread
from penstock.wal import WriterThread

pytestmark = pytest.mark.anyio


async def test_jobs_run_in_order_in_one_thread_and_report_on_the_loop() -> None:
    ran: list[tuple[int, int]] = []
    told: list[tuple[object, int]] = []
    async with WriterThread("test-writer") as thread:
        for number in range(100):

            def work(number: int = number) -> int:
                ran.append((number, threading.get_ident()))
                return number

            thread.submit(work, lambda result, _: told.append((result, threading.get_ident())))
    assert [number for number, _ in ran] == list(range(100))
    assert [number for number, _ in told] == list(range(100))
    assert len({ident for _, ident in ran}) == 1
    assert {ident for _, ident in told} == {threading.get_ident()}
    assert not thread.running


async def test_jobs_of_several_threads_overlap_and_all_report_on_the_loop() -> None:
    together = threading.Barrier(3)
    told: list[tuple[object, int]] = []
    async with WriterThread("test-writer", threads=3) as thread:
        for _ in range(6):
            thread.submit(
                lambda: together.wait(HANG_S),
                lambda result, error: told.append((error, threading.get_ident())),
            )
    assert told == [(None, threading.get_ident())] * 6
    assert not thread.running


async def test_jobs_begin_in_order_with_several_threads_too() -> None:
    begun: list[int] = []
    one_at_a_time = threading.Lock()
    async with WriterThread("test-writer", threads=4) as thread:
        waiting = list(range(200))

        def work() -> None:
            with one_at_a_time:
                begun.append(waiting.pop(0))

        for _ in range(200):
            thread.submit(work, lambda result, error: None)
    assert begun == list(range(200))


async def test_run_returns_the_result_or_raises() -> None:
    async with WriterThread("test-writer") as thread:
        assert await thread.run(lambda: 42) == 42
        with pytest.raises(ZeroDivisionError):
            await thread.run(lambda: 1 // 0)


async def test_notify_comes_before_the_result_of_its_job() -> None:
    seen: list[str] = []
    async with WriterThread("test-writer") as thread:
        await thread.run(lambda: thread.notify(lambda: seen.append("notified")))
        seen.append("done")
    assert seen == ["notified", "done"]


async def test_leaving_under_cancellation_still_joins() -> None:
    release = threading.Event()
    with anyio.CancelScope() as scope:
        async with WriterThread("test-writer") as thread:
            thread.submit(release.wait, lambda result, error: None)
            scope.cancel()
            release.set()
    assert not thread.running


async def test_a_closed_thread_refuses_jobs() -> None:
    async with WriterThread("test-writer") as thread:
        pass
    with pytest.raises(ClosedError):
        thread.submit(lambda: None, lambda result, error: None)


async def test_a_raising_callback_keeps_no_other_result_waiting() -> None:
    loop_errors: list[object] = []

    def bug(result: object, error: Exception | None) -> None:
        raise ZeroDivisionError

    import asyncio

    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: loop_errors.append(context["exception"])
    )
    async with WriterThread("test-writer") as thread:
        gate = threading.Event()
        thread.submit(gate.wait, bug)
        gate.set()
        assert await thread.run(lambda: "still served") == "still served"
    assert isinstance(loop_errors[0], ZeroDivisionError)


async def test_a_thread_without_a_further_job_says_once_that_it_is_idle() -> None:
    idle = threading.Semaphore(0)
    async with WriterThread("test", idle=idle.release, idle_after_s=0.001) as thread:
        for _ in range(3):
            assert await thread.run(lambda: 1) == 1
            assert await run_in_thread(idle.acquire, True, HANG_S)
    assert not idle.acquire(blocking=False)
