"""A queue for a few threads, which wakes one of them for each job."""

from __future__ import annotations

__all__ = ("JobQueue",)

import threading
from collections import deque
from queue import Empty
from typing import Generic, TypeVar

T = TypeVar("T")


class JobQueue(Generic[T]):
    """Jobs in the order of ``put``, taken by a few threads. From any thread.

    For each job one thread is woken, if any waits: the one that has waited for the shortest time, as its caches are
    warm. ``queue.SimpleQueue`` wakes a second one too, since who takes a job from it lets the next waiter look: for
    nothing, and at the price of the interpreter (5 calls of futex and 3 switches of threads per lone request).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: deque[T] = deque()
        #: Of each thread that waits a lock that is held, and let go of to wake it; who came last is at the end.
        self._waiting: list[threading.Lock] = []

    def put(self, job: T) -> None:
        """Add a job, and wake a thread for it."""
        with self._lock:
            self._jobs.append(job)
            if not self._waiting:
                return
            wake_up = self._waiting.pop()
        wake_up.release()

    def get(self, timeout_s: float | None = None) -> T:
        """The next job; waits for one. Raises ``queue.Empty`` if none came in ``timeout_s``."""
        wake_up: threading.Lock | None = None
        while True:
            with self._lock:
                if self._jobs:
                    return self._jobs.popleft()
                if wake_up is None:
                    wake_up = threading.Lock()
                    wake_up.acquire()
                self._waiting.append(wake_up)
            if wake_up.acquire(timeout=-1 if timeout_s is None else timeout_s):
                continue  # there was a job; if another thread was faster, wait again
            with self._lock:
                if wake_up in self._waiting:
                    self._waiting.remove(wake_up)
                    raise Empty
            wake_up.acquire()  # a job came at the last moment: it is being let go of

    def empty(self) -> bool:
        """No job waits to be taken."""
        return not self._jobs

    @property
    def waiting(self) -> int:
        """Threads that wait for a job."""
        return len(self._waiting)
