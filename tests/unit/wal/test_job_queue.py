"""Handing jobs to a few threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue

import pytest
from tests.patience import HANG_S

from penstock.wal.job_queue import JobQueue


@contextmanager
def takers(jobs: JobQueue[int | None], count: int) -> Iterator[SimpleQueue[tuple[str, int]]]:
    """Threads that take jobs one after the other, in the order of their names, and tell what they got."""
    got: SimpleQueue[tuple[str, int]] = SimpleQueue()

    def take(name: str) -> None:
        while (job := jobs.get()) is not None:
            got.put((name, job))

    threads = [threading.Thread(target=take, args=[name]) for name in "abc"[:count]]
    for number, thread in enumerate(threads, 1):
        thread.start()
        wait_for(jobs, number)
    try:
        yield got
    finally:
        for _ in threads:
            jobs.put(None)
        for thread in threads:
            thread.join(HANG_S)


def wait_for(jobs: JobQueue[int | None], waiting: int) -> None:
    """Until so many threads wait."""
    turn = threading.Event()
    for _ in range(int(HANG_S * 1000)):
        if jobs.waiting == waiting:
            return
        turn.wait(0.001)
    raise AssertionError(f"waiting={jobs.waiting}")


def test_a_job_wakes_one_thread_and_the_one_that_waited_for_the_shortest_time() -> None:
    jobs: JobQueue[int | None] = JobQueue()
    with takers(jobs, 3) as got:
        others = jobs._waiting[:2]
        for job in range(5):
            jobs.put(job)
            assert got.get(timeout=HANG_S) == ("c", job)
            wait_for(jobs, 3)
            assert jobs._waiting[:2] == others, (
                "the others weren't woken: each would wait with a place of its own"
            )
            assert all(wake_up.locked() for wake_up in others)


def test_jobs_are_taken_in_order_each_once_by_whoever_is_free() -> None:
    jobs: JobQueue[int | None] = JobQueue()
    with takers(jobs, 3) as got:
        for job in range(1000):
            jobs.put(job)
        taken = [got.get(timeout=HANG_S) for _ in range(1000)]
    assert sorted(job for _, job in taken) == list(range(1000))
    for name in "abc":
        mine = [job for taker, job in taken if taker == name]
        assert mine == sorted(mine)
    assert got.empty()


def test_who_waits_in_vain_is_told_and_waits_no_more() -> None:
    jobs: JobQueue[int] = JobQueue()
    with pytest.raises(Empty):
        jobs.get(0.001)
    assert (jobs.waiting, jobs.empty()) == (0, True)
    jobs.put(1)
    assert jobs.get(0.001) == 1
